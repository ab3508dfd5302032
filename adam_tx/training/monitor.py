"""`monitor` keeps figures of every step in the state, `metrics` reads them, `plot_metrics` draws them."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from adam_tx import inside
from adam_tx._core import hyperparams, numerics, sharding, states
from adam_tx._core.boxes import unboxed
from adam_tx._core.declaration import Call, Declaration
from adam_tx._core.paths import PathPattern, Pattern, shape_of
from adam_tx._core.trees import Column, State, Walk, increment
from adam_tx.link import Link, as_link, link_of, may_change_gradient
from adam_tx.training.guard import usual

SAMPLE = 8192  # of how many elements the quantiles are
QUANTILES = {"step_size_p10": 0.1, "step_size_p50": 0.5, "step_size_p90": 0.9, "step_size_max": 1.0}
FIGURES = (
    *("learning_rate", "grad_norm", "param_norm", "update_rms", "update_to_param"),
    *(*QUANTILES, "signal_to_noise", "eps_share", "rounded_away"),
)


@hyperparams.readable
def monitor(
    inner: optax.GradientTransformation, *, groups: Mapping[str, PathPattern] | None = None, every: int = 1
) -> Link:
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
    that leaves no more than 8192 in all (one more a leaf). What is known of some leaves
    only, because others are frozen or have another optimizer, is of these. A figure is
    NaN where what it is made of is known of none: the rate of an optimizer that is not of
    adam_tx, unless Optax injects it, parameters that are not given to `update`. No
    derivative goes through figures.

    Args:
      inner: a link, a chain, or any transformation. Put the monitor around all of it, and a
        guard or `optax.MultiSteps` around the monitor or inside.
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
    return link_of(Monitor(inner, groups, every))


class Monitor(Declaration):
    """A link that looks at what another does."""

    formula, told = "inner(u), and figures of it", ("metrics",)

    def __init__(self, inner: Any, groups: Mapping[str, PathPattern] | None, every: int) -> None:
        self.name, self.call = "monitor", Call(monitor, (inner,), {"groups": groups, "every": every})
        self._every = hyperparams.whole("monitor: every", every)
        if groups is not None and not isinstance(groups, Mapping):
            raise TypeError(f"monitor: groups must be a dict of patterns by name, got {groups!r}.")
        self.links = {"inner": as_link(inner)}
        self._inner = self.links["inner"].declaration
        self._patterns = {f"{name}/": Pattern(of) for name, of in (groups or {}).items()}
        self.reads_grad, self.changes_gradient = self._inner.reads_grad, may_change_gradient(self._inner)
        self.terminal, self.elementwise = self._inner.terminal, self._inner.elementwise
        self.averages = self._inner.averages

    def begin(self, walk: Walk) -> State:
        """Nothing is measured yet."""
        self._groups(walk)
        keys = [f"{prefix}{name}" for prefix in ("", *self._patterns) for name in FIGURES]
        figures = {key: jnp.full((), jnp.nan, jnp.float32) for key in keys}
        return _MONITOR(figures, self._inner.begin(walk))

    def step(self, walk: Walk, updates: Column, state: State) -> tuple[Column, State]:
        """The link's step, and figures of it."""
        states.check(self.name, state, _MONITOR)
        emitted, inner = walk.through("inner", self._inner, updates, state.inner)
        figures: Any = functools.partial(self._figures, walk, updates, emitted, inner)
        if self._every == 1:
            return emitted, _MONITOR(figures(), inner)
        due = increment(walk.count) % self._every == 0
        return emitted, _MONITOR(lax.cond(due, figures, lambda: dict(state.metrics)), inner)

    def _groups(self, walk: Walk) -> dict[str, list[int]]:
        """The leaves of every group by its prefix."""
        leaves = list(zip(walk.paths, map(shape_of, walk.leaves), strict=True))
        for prefix, pattern in self._patterns.items():
            pattern.check(f"monitor: groups[{prefix[:-1]!r}]", leaves)
        chosen = {
            prefix: [i for i in walk.present if pattern.matches(*leaves[i])]
            for prefix, pattern in self._patterns.items()
        }
        return {"": list(walk.present)} | chosen

    def _figures(self, walk: Walk, updates: Column, emitted: Column, inner: Any) -> dict[str, jax.Array]:
        grad = updates if walk.grad is None else walk.grad
        still = lax.stop_gradient  # no derivative goes through figures
        walk, grad, emitted, inner = walk.with_params(still(walk.params)), still(grad), still(emitted), still(inner)
        known = _known(self.links["inner"], inner, walk, None if walk.count is None else increment(walk.count))
        leaves = {
            i: _Leaf(
                grad[i],
                emitted[i] if self.terminal else walk.lowered(i, emitted[i]).astype(walk.dtypes[i]),
                None if walk.params is None else walk.params[i],
                walk.param_dtypes[i],
                **known.get(i, {}),
            )
            for i in walk.present
        }
        sums = {i: _sums(leaf) for i, leaf in leaves.items()}
        return {
            f"{prefix}{name}": value
            for prefix, chosen in self._groups(walk).items()
            for name, value in _figures([leaves[i] for i in chosen], [sums[i] for i in chosen]).items()
        }

    def whole(self, walk: Walk, state: State) -> Walk:
        """The parameters as the last link inside knows them."""
        return self._inner.whole(walk, state.inner)

    def layout(self) -> Hashable:
        """Its figures are of the leaves that it is given, all together."""
        return object()

    def parts(self, state: State) -> tuple[Mapping[str, Any], Sequence[tuple[str, Any, Any]]]:
        """The figures are its own."""
        return states.counts(state) | {"metrics": state.metrics}, [("inner", self.links["inner"], state.inner)]


_MONITOR = states.wrapper_type("monitor", "metrics", "inner")


class _Leaf(NamedTuple):
    """One leaf in working precision, and what is known of how it is stepped."""

    grad: jax.Array
    update: jax.Array
    param: jax.Array | None
    dtype: Any
    rate: Any = None
    m: jax.Array | None = None
    v: jax.Array | None = None
    weight_1: Any = 1.0
    weight_2: Any = 1.0
    divisor: jax.Array | None = None
    eps: Any = None


def _known(link: Link, state: State, walk: Walk, count: Any) -> dict[int, dict[str, Any]]:
    """For each leaf its rate, averages and epsilon, as far as the links inside have them."""
    known: dict[int, dict[str, Any]] = {i: {} for i in walk.present}
    for held in inside.held(link, state, walk, count):
        if held.count is None:
            continue
        own = [i for i in walk.present if held.leaves is None or i in held.leaves]
        given = held.link.hyperparams_at(jnp.maximum(held.count - 1, 0))  # those of the update that was made
        if held.link.name == "scale_by_learning_rate":
            for i in own:
                known[i]["rate"] = known[i].get("rate", 1.0) * given["learning_rate"]
        for order, weight in held.link.weights_corrected(held.state):
            for i in own:
                known[i].setdefault(f"weight_{order}", weight)
        try:
            averages = list(held.link.averages_in(walk, held.state))
        except ValueError:  # a wrapper has made another tree of it
            continue
        for slot, weight, column in averages:
            for i in own:
                x = column[i]
                if x is None or x.shape != walk.updates[i].shape:
                    continue
                order, name = (1, "m") if slot.kind == "gradient" else (2, "v")
                if name in known[i]:
                    continue
                known[i] |= {name: x} | ({} if weight is None else {f"weight_{order}": weight})
                if name == "v":
                    total = 1.0 if weight is None else numerics.scalar(weight, x)
                    eps, inside_root = (given.get(name, 0.0) for name in ("eps", "eps_root"))
                    known[i] |= {"divisor": jnp.sqrt(x / total + inside_root), "eps": eps}
    return known


def _sums(leaf: _Leaf) -> dict[str, jax.Array]:
    """The sums over a leaf that its figures are made of, as far as they are known; of step sizes the largest."""
    terms: dict[str, Any] = {"grad": numerics.square(leaf.grad), "update": numerics.square(leaf.update)}
    moved = leaf.update != 0
    if leaf.param is not None:
        terms |= {"param": numerics.square(leaf.param), "moved": moved}
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            # explicit, because XLA takes float32 -> bfloat16 -> float32 for the identity
            precision = jnp.finfo(leaf.dtype)
            new = lax.reduce_precision(leaf.param + leaf.update, precision.nexp, precision.nmant)
            terms["rounded_away"] = moved & (new == leaf.param)
    if leaf.v is not None:
        terms |= {"seen": leaf.v != 0, "below_eps": leaf.divisor < leaf.eps}
        if leaf.m is not None:
            ratio = jnp.abs(leaf.m) / jnp.sqrt(jnp.where(leaf.v == 0, 1.0, leaf.v))
            terms["signal"] = jnp.where(leaf.v == 0, 0.0, ratio)
    terms["largest"] = jnp.abs(leaf.update)
    dtype = numerics.real_dtype(leaf.grad.dtype)
    arrays = [term.astype(dtype) for term in sharding.together(terms).values()]

    def together(one: Sequence[jax.Array], other: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        *sums, largest = zip(one, other, strict=True)
        return *(a + b for a, b in sums), jnp.maximum(*largest)

    # all at once, so that the leaf is read once; row by row first, so that no sum is of too many numbers
    if arrays[0].ndim > 1:
        arrays = lax.reduce(arrays, [jnp.zeros((), dtype)] * len(arrays), together, [arrays[0].ndim - 1])
    *sums, largest = arrays
    reduced = [*map(jnp.sum, sums), jnp.max(largest, initial=0.0)]
    found = {name: value.astype(jnp.float32) for name, value in zip(terms, reduced, strict=True)}
    if "signal" in found:
        found["signal"] *= (jnp.sqrt(leaf.weight_2) / leaf.weight_1).astype(jnp.float32)
    return found


def _figures(leaves: Sequence[_Leaf], sums: Sequence[Mapping[str, jax.Array]]) -> dict[str, jax.Array]:
    """The figures of some leaves; NaN where what they are made of is not known."""
    elements = sum(leaf.grad.size for leaf in leaves)
    size = jnp.float32(elements)

    def total(name: str) -> Any:
        known = [of[name] for of in sums if name in of]
        return jnp.sum(numerics.sorted_apart(known)) if known else jnp.float32(jnp.nan)

    update, param = jnp.sqrt(total("update")), jnp.sqrt(total("param"))
    rates = [jnp.float32(leaf.rate) for leaf in leaves if leaf.rate is not None]
    figures = {
        "learning_rate": functools.reduce(jnp.maximum, rates) if rates else jnp.nan,
        "grad_norm": jnp.sqrt(total("grad")),
        "param_norm": param,
        "update_rms": update / jnp.sqrt(size),
        "update_to_param": update / param,
        "signal_to_noise": total("signal") / total("seen"),
        "eps_share": total("below_eps") / jnp.float32(sum(leaf.grad.size for leaf in leaves if leaf.v is not None)),
        "rounded_away": total("rounded_away") / jnp.maximum(total("moved"), 1.0),
        **_step_sizes(leaves, sums, max(-(-elements // SAMPLE), 1)),
    }
    return {name: jnp.asarray(figures[name], jnp.float32) for name in FIGURES}


def _step_sizes(leaves: Sequence[_Leaf], sums: Sequence[Mapping[str, jax.Array]], every: int) -> dict[str, Any]:
    """Quantiles of |u| / learning rate, of a sample; the largest of all."""
    stepped = [k for k, leaf in enumerate(leaves) if leaf.rate is not None and leaf.grad.size]
    leaves, sums = [leaves[k] for k in stepped], [sums[k] for k in stepped]
    if not leaves:
        return dict.fromkeys(QUANTILES, jnp.nan)

    def relative(size: jax.Array, leaf: _Leaf) -> jax.Array:
        rate = numerics.scalar(leaf.rate, size)
        return jnp.where(size == 0, 0.0, size / rate).astype(jnp.float32)  # no step is none at a rate of zero too

    sample = jnp.concatenate(
        [relative(jnp.abs(sharding.gathered(leaf.update).ravel()[::every]), leaf) for leaf in leaves]
    )
    found = jnp.quantile(sample, jnp.asarray(list(QUANTILES.values())[:-1], jnp.float32))
    largest = [relative(of["largest"], leaf) for of, leaf in zip(sums, leaves, strict=True)]
    return dict(zip(QUANTILES, [*found, numerics.sorted_apart(largest)[-1]], strict=True))


def metrics(state: optax.OptState) -> dict[str, jax.Array]:
    """Read what is known of the last step out of a state, for any logger.

    Args:
      state: the state of an optimizer with `monitor`, `guard` or `optax.inject_hyperparams`
        anywhere in it, also inside wrappers of Optax.

    Returns:
      Float32 scalars by name: `step`, the number of updates; the figures of `monitor`; of a
      guard `skipped`, `skipped_in_a_row`, `guarded_norm` (of the gradients of the last step,
      taken or not) and `loss_scale`; the values that Optax injects, by their names. A second
      monitor's have `monitor_2/` in front, and so on.

    Raises:
      ValueError: a state with none of these.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> state = adam_tx.guard(adam_tx.monitor(adam_tx.adam(0.5))).init(jnp.ones(2))
    >>> {name: float(value) for name, value in adam_tx.metrics(state).items() if "skipped" in name}
    {'skipped': 0.0, 'skipped_in_a_row': 0.0}
    """
    state = unboxed(state)
    found: dict[str, Any] = {}
    seen: Counter[str] = Counter()
    for kind, node in _reporting(state):
        seen[kind] += 1
        prefix = f"{kind}_{seen[kind]}/" if seen[kind] > 1 else ""
        for name, value in _reported(kind, node).items():
            key = f"{prefix}{name}"
            if key not in found or (name == "learning_rate" and kind == "inject_hyperparams"):
                found[key] = value
    if not found:
        raise ValueError(
            "metrics: the state has no monitor, guard or injected hyperparameters to read. Make the optimizer "
            "adam_tx.monitor(tx), and call init of that."
        )
    scalars = {name: jnp.asarray(jax.tree.leaves(value)[0], jnp.float32) for name, value in found.items()}
    step = {} if "step" in scalars else _first_count(state)
    return dict(sorted((step | scalars).items(), key=lambda item: item[0] != "step"))


def _reporting(state: State) -> Iterator[tuple[str, Any]]:
    """The parts of a state that say something, from the outside in."""
    for node in jax.tree.leaves(state, is_leaf=lambda node: bool(_kind(node))):
        if kind := _kind(node):
            yield kind, node
            yield from _reporting(node.inner_state if kind == "inject_hyperparams" else node.inner)


def _kind(node: Any) -> str:
    """What kind of part says something, if it is one."""
    fields = getattr(node, "_fields", ())
    if {"hyperparams", "inner_state"} <= set(fields):
        return "inject_hyperparams"
    link = getattr(type(node), "link", "")
    return link if link in ("monitor", "guard") else ""


def _reported(kind: str, node: Any) -> dict[str, Any]:
    """What such a part says."""
    if kind == "inject_hyperparams":
        return {name: value for name, value in node.hyperparams.items() if jnp.shape(value) == ()}
    if kind == "monitor":
        ordered = sorted(node.metrics, key=lambda key: (key.rpartition("/")[0], FIGURES.index(key.split("/")[-1])))
        step = {"step": node.count} if "count" in node._fields else {}
        return step | {key: node.metrics[key] for key in ordered}
    counted = {"skipped": node.skipped, "skipped_in_a_row": node.skipped_in_a_row, "guarded_norm": node.norm}
    if "mean" in node._fields:
        counted |= dict(zip(("guarded_mean", "guarded_spread"), usual(node), strict=True))
    return counted | ({"loss_scale": node.scale} if "scale" in node._fields else {})


def _first_count(state: State) -> dict[str, jax.Array]:
    """The first count of updates in a state."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        named = getattr(path[-1], "key", getattr(path[-1], "name", None)) if path else None
        if named == "count" and jnp.ndim(leaf) == 0 and jnp.issubdtype(jnp.result_type(leaf), jnp.integer):
            return {"step": jnp.asarray(leaf, jnp.float32)}
    return {}
