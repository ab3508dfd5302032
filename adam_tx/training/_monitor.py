"""`monitor` keeps figures of every step in the state, for `metrics` to read."""

from __future__ import annotations

import functools
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from adam_tx._core import hyperparams, states
from adam_tx._core.abstract_leaf_step import AbstractLeafStep, KeptOfLeaf, StoredSlot
from adam_tx._core.leaf_step import Leaf
from adam_tx._core.leaves import Column, Leaves, Told, increment
from adam_tx._core.paths import PathPattern, Pattern, shape_of
from adam_tx._core.states import Fields, State
from adam_tx._core.term import Sample, Term
from adam_tx._link import optimizer
from adam_tx._wrapper import Wrapper
from adam_tx.training.figures import (
    FIGURES,
    SAMPLE,
    UNKNOWN,
    every_of,
    figures_of,
    known_of,
    rows_of,
    sampled,
    sums_of,
    terms_of,
)
from adam_tx.training.figures import Leaf as Watched


@optimizer
def monitor(
    inner: optax.GradientTransformation, *, groups: Mapping[str, PathPattern] | None = None, every: int = 1
) -> Monitor:
    """Keep figures of the last step in the state, for `metrics` to read.

    What `inner` emits and keeps is not touched. With g the gradient, u the update in the
    dtype in which it leaves, p the parameters before it, and sums over all elements::

        learning_rate    the rate in force; the largest, where groups have several
        grad_norm        sqrt(Σ|g|²)
        param_norm       sqrt(Σ|p|²)
        update_rms       sqrt(mean |u|²)
        update_to_param  sqrt(Σ|u|²) / sqrt(Σ|p|²)
        step_size_p10…   quantiles of |u| / learning_rate: 10 %, 50 %, 90 % and the largest
        signal_to_noise  mean |m| / sqrt(v), where v is not zero
        eps_share        share of elements whose sqrt(v), as it divides, is below eps
        rounded_away     share of updates, those that are zero apart, that leave their
                         parameter as it is, because its dtype has no number in between

    m and v are the first averages of gradients and of squares of the parameter's shape
    that a link keeps, debiased where the chain debiases them; eps_share has v as it divides,
    which Keras does not debias. The quantiles
    but for the largest are of a sample: of every leaf each k-th element, with the least k
    that leaves no more than 8192 in all (one more a leaf). A figure is made of
    those leaves of which all is known that it needs; others may be frozen, or have another
    optimizer. `metrics` gives NaN where it is known of none: the rate of an optimizer that is
    not of adam_tx, unless Optax injects it, or parameters that `update` was not given. No
    derivative goes through figures.

    Figures cost about as much as the step. In bytes that are read and written for each
    parameter, XLA makes of AdamW 28 on an H100, and 56 in a monitor; 28 and 48 on a TPU v5e; 40
    and 88 on a CPU, where that takes about six times as long (`adam_tx.step` forms figures in
    its own pass there). With `every=100` a hundred steps share it.

    Args:
      inner: a link, a chain, or any transformation, with its clip. A guard stands around the
        monitor: in a step that it skips, the figures and `step` stay as they were. A monitor
        around a guard would see gradients that are still multiplied by the loss scale.
      groups: figures of these parameters too, by name: patterns as for `adam_tx.groups`.
        Their keys are `name/grad_norm` and so on.
      every: measure the updates whose number this divides; the others keep the figures and
        cost little.

    Returns:
      A `Link` with state `(count, metrics, inner)`; metrics is a dict of float32 scalars.

    Raises:
      TypeError: what is no transformation or no pattern.
      ValueError: an `every` below 1; at `init`, a pattern that matches no leaf.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.monitor(adam_tx.adam(0.5))
    >>> params = jnp.array([3.0, 4.0])
    >>> _, state = tx.update(params, tx.init(params), params)
    >>> figures = adam_tx.metrics(state)
    >>> {name: float(figures[name]) for name in ("step", "grad_norm", "learning_rate", "update_rms")}
    {'step': 1.0, 'grad_norm': 5.0, 'learning_rate': 0.5, 'update_rms': 0.5}
    """
    return Monitor(inner, groups, every)


class _Numbers(NamedTuple):
    """What one update has in common for all leaves.

    Attributes:
      state: that of the link inside, before it.
      inside: the same of the link inside.
      new: its numbers after the step.
    """

    state: State
    inside: object
    new: object


class Monitor(Wrapper):
    """A link that looks at what another does."""

    formula = "inner(u), and figures of it"
    is_straight = True
    told = ("metrics",)

    def __init__(
        self, inner: optax.GradientTransformation, groups: Mapping[str, PathPattern] | None, every: int
    ) -> None:
        super().__init__(inner, name="monitor", keeps=("metrics",))
        self._every = hyperparams.check_int("monitor: every", every)
        if groups is not None and not isinstance(groups, Mapping):
            raise TypeError(f"monitor: groups must be a dict of patterns by name, got {groups!r}.")
        self._patterns = {f"{name}/": Pattern(of) for name, of in (groups or {}).items()}
        self._keys = [f"{prefix}{name}" for prefix in ("", *self._patterns) for name in FIGURES]

    def init_own(self, leaves: Leaves) -> dict[str, dict[str, jax.Array]]:
        """Nothing is measured yet."""
        self._groups(leaves)
        return {"metrics": {key: jnp.full((), UNKNOWN, jnp.float32) for key in self._keys}}

    def fields(self, state: State) -> Fields:
        """A state with the figures of this monitor."""
        return states.checked(self.name, state, self._type, metrics=self._keys)

    def update_leaves(self, leaves: Leaves, updates: Column, state: State) -> tuple[Column, State]:
        """The link's step, and figures of it."""
        fields = self.fields(state)
        emitted, inner = self.run_inner(leaves, updates, fields.inner)
        figures = functools.partial(self._figures, leaves, updates, emitted, inner)
        if self._every == 1:
            return emitted, self.state(inner, metrics=figures())
        due = increment(leaves.count) % self._every == 0
        return emitted, self.state(inner, metrics=lax.cond(due, figures, lambda: dict(fields.metrics)))

    def _groups(self, leaves: Leaves) -> dict[str, list[int]]:
        """The leaves of every group by its prefix."""
        arrays = list(zip(leaves.paths, leaves.nodes, strict=True))
        chosen = {"": list(leaves.present)}
        for prefix, pattern in self._patterns.items():
            what = f"monitor: groups[{prefix[:-1]!r}]"
            pattern.check(what, arrays, of_updates=leaves.given("updates") is not None)
            chosen[prefix] = [i for i in leaves.present if pattern.matches(arrays[i][0], shape_of(arrays[i][1]))]
        return chosen

    def _figures(self, leaves: Leaves, updates: Column, emitted: Column, inner: State) -> dict[str, jax.Array]:
        watched = self._watched(leaves, updates, emitted, inner)
        sums = {i: sums_of(leaf, leaves.param_dtypes[i]) for i, leaf in watched.items()}
        figures: dict[str, jax.Array] = {}
        for prefix, chosen in self._groups(leaves).items():
            each = [watched[i] for i in chosen]
            samples = [sampled(leaf.update, every_of(each)) for leaf in each]
            found = figures_of(each, rows_of([sums[i] for i in chosen]), samples)
            figures |= {f"{prefix}{name}": value for name, value in found.items()}
        return figures

    def _watched(self, leaves: Leaves, updates: Column, emitted: Column, inner: State) -> dict[int, Watched]:
        """What is known of each leaf."""
        still = lax.stop_gradient  # no derivative goes through figures
        grad = updates if leaves.grad is None else leaves.grad
        params = [None] * len(leaves) if leaves.params is None else leaves.params
        inner = still(inner)
        count = None if leaves.count is None else increment(leaves.count)
        known = known_of(self.inner, inner, leaves, count)
        return {
            i: Watched(
                still(grad[i]),
                still(emitted[i] if self.facts.terminal else leaves.lowered(i, emitted[i]).astype(leaves.dtypes[i])),
                still(params[i]),
                **known.get(i, {}),
            )
            for i in leaves.present
        }

    # One leaf's step without the tree, in which sums are formed and a sample is taken.

    @property
    def reduces(self) -> bool:
        """Figures are sums over all leaves."""
        return True

    def moved(self, leaves: Leaves) -> Collection[int]:
        """Those that the link inside may move."""
        return self.inner.moved(leaves)

    def ways(self, leaves: Leaves) -> list[Hashable]:
        """Those of the link inside."""
        return self.inner.ways(leaves)

    def fusing_obstacles(self, way: Hashable = None, *, tiled: bool = False) -> Iterator[str]:
        """Those of the link inside, and groups: of figures each has a sample, of leaves each has links of its own."""
        yield from self.inner.fusing_obstacles(way, tiled=tiled)
        if self._patterns:
            yield f"{self.name} has groups, of which each has a sample of its own"
        if _has_groups(self.inner):
            yield f"{self.name} stands around groups, of which each has links of its own"

    def numbers_at(self, count: jax.Array, state: State, found: Any = None) -> tuple[_Numbers, dict[str, Any]]:
        """What the link inside has in common for all leaves; and whether figures are due."""
        fields = self.fields(state)
        for name, shape in {name: jnp.shape(figure) for name, figure in fields.metrics.items()}.items():
            if shape:
                raise ValueError(
                    f"{self.name}: the figure {name} in its state must be a number, but came with the shape {shape}. "
                    "Give step the state that init returned; restore checkpoints into tx.init(params)."
                )
        inside, new = self.inner.numbers_at(count, fields.inner, found)
        due = jnp.ones((), bool) if self._every == 1 else increment(count) % self._every == 0
        return _Numbers(fields.inner, inside, new), {
            "inner": new,
            "due": due,
            "count": count,
            "metrics": dict(fields.metrics),
        }

    def numbers_of(self, state: State) -> dict[str, Any]:
        """The figures, which stay as they are."""
        fields = self.fields(state)
        of_inner = self.inner.numbers_of(fields.inner)
        nothing = jnp.zeros((), jnp.int32)
        return {"inner": of_inner, "due": nothing > 0, "count": nothing, "metrics": dict(fields.metrics)}

    def leaf_survey(self, numbers: _Numbers, leaf: Leaf, kept: KeptOfLeaf) -> Mapping[str, Any]:
        """That of the link inside."""
        return self.inner.leaf_survey(numbers.inside, leaf.within(self.member), kept)

    def leaf_step(self, numbers: _Numbers, leaf: Leaf, kept: KeptOfLeaf) -> tuple[jax.Array, KeptOfLeaf]:
        """The step of the link inside, and what figures are made of."""
        emitted, new = self.inner.leaf_step(numbers.inside, leaf.within(self.member), kept)
        if leaf.told is not None:
            leaves = leaf.as_tree()
            state = self.inner.with_kept(numbers.state, leaves, numbers.new, [new])
            watched = self._watched(leaves, leaves.updates, [emitted], state)[0]
            terms = terms_of(watched, leaves.param_dtypes[0])
            sums = {name: Term([x], "largest" if name == "largest" else "sum") for name, x in terms.items()}
            leaf.told[leaf.place] = {"sums": sums, "sample": Sample(watched.update.real, SAMPLE)}
        return emitted, new

    def kept_of_leaves(self, leaves: Leaves, state: State) -> list[KeptOfLeaf]:
        """What the link inside keeps."""
        return self.inner.kept_of_leaves(leaves, self.fields(state).inner)

    def stored_of(self, kept: KeptOfLeaf) -> Iterator[StoredSlot]:
        """Those of the link inside."""
        return self.inner.stored_of(kept)

    def with_kept(self, state: State, leaves: Leaves, numbers: Any, kept: Sequence[KeptOfLeaf]) -> State:
        """The state in which the link inside keeps this, and figures, if they are due and the step tells of them."""
        before = self.fields(state).inner
        inner = self.inner.with_kept(before, leaves.within(self.member), numbers["inner"], kept)
        if leaves.place not in leaves.told:
            return self.state(inner, metrics=numbers["metrics"])
        figures = functools.partial(self._of_told, leaves, inner, numbers["count"], leaves.told[leaves.place])
        return self.state(inner, metrics=lax.cond(numbers["due"], figures, lambda: numbers["metrics"]))

    def full_precision_of(self, param: jax.Array, kept: KeptOfLeaf) -> jax.Array:
        """The parameter as the link inside knows it."""
        return self.inner.full_precision_of(param, kept)

    def _of_told(self, leaves: Leaves, inner: State, count: jax.Array, told: Told) -> dict[str, jax.Array]:
        """The figures, from the sums and the sample of each leaf."""
        known = known_of(self.inner, inner, leaves.replace(count=count), increment(count))
        members = [i for of_call, _ in told for i in of_call]
        each = [Watched(leaves.updates[i], leaves.updates[i], None, **known[i]) for i in members]
        samples = [sample for _, of_call in told for sample in of_call["sample"]]
        rows: dict[str, list[jax.Array]] = {}
        for _, of_call in told:
            for name, row in of_call["sums"].items():
                rows.setdefault(name, []).append(row)
        return figures_of(each, {name: jnp.concatenate(of_calls) for name, of_calls in rows.items()}, samples)


def _has_groups(link: AbstractLeafStep) -> bool:
    return link.divides or any(map(_has_groups, link.stepping.values()))


STATES = [states.state_type("monitor", (*counted, "metrics", "inner")) for counted in ((), ("count",))]
"""The types of its states, by which `metrics` knows them; made here, so that exported programs find them."""
