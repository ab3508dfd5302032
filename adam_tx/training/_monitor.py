"""`monitor` keeps figures of every step in the state, for `metrics` to read."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jax import lax

from adam_tx._core import hyperparams, states
from adam_tx._core.leaves import Column, Leaves, increment
from adam_tx._core.paths import PathPattern, Pattern, shape_of
from adam_tx._core.states import Fields, State
from adam_tx._link import optimizer
from adam_tx._wrapper import Wrapper
from adam_tx.training.figures import FIGURES, UNKNOWN, Leaf, figures_of, known_of, sums_of


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
        still = lax.stop_gradient  # no derivative goes through figures
        grad = updates if leaves.grad is None else leaves.grad
        params = [None] * len(leaves) if leaves.params is None else leaves.params
        inner = still(inner)
        count = None if leaves.count is None else increment(leaves.count)
        known = known_of(self.inner, inner, leaves, count)
        arrays = {
            i: Leaf(
                still(grad[i]),
                still(emitted[i] if self.facts.terminal else leaves.lowered(i, emitted[i]).astype(leaves.dtypes[i])),
                still(params[i]),
                **known.get(i, {}),
            )
            for i in leaves.present
        }
        sums = {i: sums_of(leaf, leaves.param_dtypes[i]) for i, leaf in arrays.items()}
        return {
            f"{prefix}{name}": value
            for prefix, chosen in self._groups(leaves).items()
            for name, value in figures_of([arrays[i] for i in chosen], [sums[i] for i in chosen]).items()
        }


STATES = [states.state_type("monitor", (*counted, "metrics", "inner")) for counted in ((), ("count",))]
"""The types of its states, by which `metrics` knows them; made here, so that exported programs find them."""
