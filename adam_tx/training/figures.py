"""The figures of one update: what `monitor` keeps of it, and how each is made of sums over leaves."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from adam_tx._core import averages, manual, numerics, sharding
from adam_tx._core.abstract_link import AbstractLink
from adam_tx._core.leafwise import Leafwise
from adam_tx._core.leaves import Leaves
from adam_tx._core.states import Fields, State
from adam_tx.describe import visit

SAMPLE = 8192  # of how many elements the quantiles are
ROW = 1024  # the most elements of a vector that are added up one after the other
QUANTILES = {"step_size_p10": 0.1, "step_size_p50": 0.5, "step_size_p90": 0.9}
FIGURES = (
    *("learning_rate", "grad_norm", "param_norm", "update_rms", "update_to_param"),
    *(*QUANTILES, "step_size_max", "signal_to_noise", "eps_share", "rounded_away"),
)
UNKNOWN = float(np.finfo(np.float32).min)
"""What stands in a state for a figure that is not known; a NaN there would stop a run under `jax_debug_nans`."""


class Leaf(NamedTuple):
    """One leaf in working precision, and what is known of how it is stepped.

    Attributes:
      grad, update, param: what came in and went out, and the parameter before.
      rate: the learning rate.
      m, v: averages of the gradient and of its square, from zero.
      start: what debiases |m| / sqrt(v).
      floor: the root of v below which epsilon is larger than the root that divides.
    """

    grad: jax.Array
    update: jax.Array
    param: jax.Array | None
    rate: Any = None
    m: jax.Array | None = None
    v: jax.Array | None = None
    start: Any = 1.0
    floor: Any = 0.0


_NAMES = {"gradient": ("m", "weight_1"), "square": ("v", "weight_2")}
"""What the average of a kind and its weight are called here."""


def known_of(link: AbstractLink, state: State, leaves: Leaves, count: jax.Array | None) -> dict[int, dict[str, Any]]:
    """For each leaf its rate, averages and epsilon, as far as the links inside have them."""
    known: dict[int, dict[str, Any]] = {i: {} for i in leaves.present}

    def enter(part: visit.Part) -> None:
        link = part.leafwise
        if link is not None and part.count is not None and part.acts:
            own = [known[i] for i in leaves.present if part.leaves is None or i in part.leaves]
            given = link.numbers.values(jnp.maximum(part.count - 1, 0))  # those of the update that was made
            _know_scalars(link, part.state, own, given)
            _know_averages(link, part, leaves, known, given)

    visit.visit(link, state, enter, tree=leaves, count=count)
    made: dict[Any, Any] = {}
    return {i: _with_bounds(of_leaf, numerics.real_dtype(leaves.dtypes[i]), made) for i, of_leaf in known.items()}


_SCALARS = {"weight_1": 1.0, "weight_2": 1.0, "divided": 1.0, "eps_root": 0.0, "eps": 0.0}
"""By which m and v are debiased, and v where its root divides; what is added to it there, and to the root."""


def _with_bounds(known: dict[str, Any], dtype: Any, made: dict[Any, Any]) -> dict[str, Any]:
    """What is known of a leaf, with `start` and `floor`, which are made once for all leaves of the same scalars."""
    given = [known.pop(name, usual) for name, usual in _SCALARS.items()]
    key = (dtype, *map(id, given))
    if key not in made:
        weight_1, weight_2, divided, eps_root, eps = (jnp.asarray(x, dtype) for x in given)
        root = jnp.sqrt(eps_root)
        # sqrt(v / divided + eps_root) < eps, solved for sqrt(v); the square of a small eps would be zero
        floor = jnp.sqrt(divided) * jnp.sqrt(jnp.maximum(eps - root, 0.0)) * jnp.sqrt(eps + root)
        made[key] = {"start": jnp.sqrt(weight_2) / weight_1, "floor": floor}, given  # kept, so that ids stay theirs
    return known | made[key][0]


def _know_scalars(link: Leafwise, state: Any, own: Iterable[dict[str, Any]], given: Mapping[str, Any]) -> None:
    """The learning rate, and the weights by which averages are corrected."""
    rate = link.rule.multiplies_by
    weights = dict(averages.corrected_by(link, state))
    for leaf in own:
        if rate is not None:
            leaf["rate"] = leaf["rate"] * given[rate] if "rate" in leaf else given[rate]
        for kind, weight in weights.items():
            leaf.setdefault(_NAMES[kind][1], _or_one(weight))  # at first nothing was averaged yet


def _know_averages(
    link: Leafwise, part: visit.Part, leaves: Leaves, known: dict[int, dict[str, Any]], given: Mapping[str, Any]
) -> None:
    """The first averages of a kind and of a leaf's shape."""
    try:
        found = list(averages.kept_by(link, part.tree or leaves, cast(Fields, part.state)))
    except ValueError:  # a wrapper has made another tree of it
        return
    for average in found:
        name, of_weight = _NAMES[average.slot.kind]
        weight = None if average.weight is None else _or_one(average.weight)
        for i in leaves.present:
            x = average.column[i]
            own = part.leaves is None or i in part.leaves
            if not own or x is None or x.shape != leaves.updates[i].shape or name in known[i]:
                continue
            known[i][name] = x
            if weight is not None:
                known[i][of_weight] = weight
            if name == "v":
                known[i]["divided"] = 1.0 if weight is None else weight
                floors = {"eps": average.slot.eps, "eps_root": average.slot.eps_root}
                known[i] |= {of: given[said] for of, said in floors.items() if said and given[said] is not None}


@functools.partial(jax.jit, static_argnames="dtype")  # traced once for all leaves of a shape
def sums_of(leaf: Leaf, dtype: Any) -> dict[str, jax.Array]:
    """The sums over a leaf that its figures are made of, as far as they are known; of step sizes the largest.

    Args:
      leaf: in working precision.
      dtype: that of the parameter.
    """
    terms = terms_of(leaf, dtype)
    *sums, largest = _reduced(list(sharding.together(terms).values()))
    sums = [*map(manual.total, sums), manual.largest(largest)]
    return {name: value.astype(jnp.float32) for name, value in zip(terms, sums, strict=True)}


def terms_of(leaf: Leaf, dtype: Any) -> dict[str, jax.Array]:
    """For each element what is added up, and last the size of its step, of which the largest is looked for.

    XLA forms an array anew for each use that it fuses, so each is used as seldom as it can be.
    """
    size = jnp.abs(leaf.update)
    terms: dict[str, Any] = {"grad": numerics.square(leaf.grad), "update": numerics.square(leaf.update)}
    if leaf.param is not None:
        terms |= {"param": numerics.square(leaf.param), "moved": size > 0}
        if jnp.issubdtype(dtype, jnp.floating):
            # explicit, because XLA takes float32 -> bfloat16 -> float32 for the identity
            precision = jnp.finfo(dtype)
            new = lax.reduce_precision(leaf.param + leaf.update, precision.nexp, precision.nmant)
            terms["rounded_away"] = (leaf.update != 0) & (new == leaf.param)
    if leaf.v is not None:
        root = jnp.sqrt(leaf.v)
        seen = root != 0
        terms |= {"seen": seen, "below_eps": root < leaf.floor}
        if leaf.m is not None:
            terms["signal"] = lax.select(seen, jnp.abs(leaf.m) / root * leaf.start, jnp.zeros_like(root))
    terms["largest"] = size
    real = numerics.real_dtype(leaf.grad.dtype)
    return {name: term.astype(real) for name, term in terms.items()}


def _reduced(terms: Sequence[jax.Array]) -> Sequence[jax.Array]:
    """The sums of all terms but the last, and its largest."""
    while terms[0].ndim:  # row by row, so that no sum is of too many numbers
        if terms[0].ndim == 1 and terms[0].size > ROW:
            terms = [jnp.pad(x, (0, -x.size % ROW)).reshape(-1, ROW) for x in map(sharding.gathered, terms)]
        terms = lax.platform_dependent(*terms, tpu=_rows_apart, default=_rows_at_once)
    return terms


def _rows_at_once(*terms: jax.Array) -> tuple[jax.Array, ...]:
    """What becomes of each row, all at once, so that the leaf is read once."""

    def together(one: Sequence[jax.Array], other: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        *sums, largest = zip(one, other, strict=True)
        return *(a + b for a, b in sums), jnp.maximum(*largest)

    start = (jnp.zeros((), terms[0].dtype),) * len(terms)
    return tuple(lax.reduce(terms, start, together, [terms[0].ndim - 1]))


def _rows_apart(*terms: jax.Array) -> tuple[jax.Array, ...]:
    """The same, each by itself: a TPU's compiler forms such sums together, and would keep the terms of the others."""
    *summed, last = terms
    return *(jnp.sum(x, axis=-1) for x in summed), jnp.max(last, axis=-1, initial=0.0)


def rows_of(sums: Sequence[Mapping[str, jax.Array]]) -> dict[str, jax.Array]:
    """The sums of leaves by name, each as an array with one number of every leaf for which it is known."""
    names = dict.fromkeys(name for of_leaf in sums for name in of_leaf)
    known = {name: [of_leaf[name] for of_leaf in sums if name in of_leaf] for name in names}
    return {name: jnp.stack(of) if name == "largest" else numerics.sorted_apart(of) for name, of in known.items()}


def every_of(leaves: Sequence[Leaf]) -> int:
    """Of how many elements one is in the sample of which the quantiles are."""
    return max(-(-_elements(leaves) // SAMPLE), 1)


def sampled(x: jax.Array, every: int) -> jax.Array:
    """The elements of a leaf that are in the sample."""
    flat = sharding.gathered(x).ravel()
    return lax.slice(flat, (0,), flat.shape, (every,))  # an index may be beyond int32


def figures_of(
    leaves: Sequence[Leaf], sums: Mapping[str, jax.Array], samples: Sequence[jax.Array]
) -> dict[str, jax.Array]:
    """The figures of some leaves.

    Args:
      leaves: the leaves.
      sums: what `rows_of` gives.
      samples: of each leaf the updates that are in the sample.
    """

    def total(name: str) -> Any:
        return jnp.sum(sums[name]) if name in sums else None

    elements, update, param = _elements(leaves), _root(total("update")), _root(total("param"))
    moved = total("moved")
    rates = [jnp.float32(rate) for rate, _ in _of_one_rate(leaves)]
    figures = {
        "learning_rate": functools.reduce(jnp.maximum, rates) if rates else None,
        "grad_norm": _root(total("grad")),
        "param_norm": param,
        "update_rms": _ratio(update, elements**0.5),
        "update_to_param": _ratio(update, param),
        "signal_to_noise": _ratio(total("signal"), total("seen")),
        "eps_share": _ratio(total("below_eps"), _elements([leaf for leaf in leaves if leaf.v is not None])),
        "rounded_away": _ratio(total("rounded_away"), None if moved is None else jnp.maximum(moved, 1.0)),
        **_step_sizes(leaves, sums, samples),
    }
    known = {name: figure for name, figure in figures.items() if figure is not None}
    return {name: jnp.asarray(known.get(name, UNKNOWN), jnp.float32) for name in FIGURES}


def _step_sizes(leaves: Sequence[Leaf], sums: Mapping[str, jax.Array], samples: Sequence[jax.Array]) -> dict[str, Any]:
    """Quantiles of |u| / learning rate, of a sample; the largest of all."""
    sample, largest = [], []
    for rate, places in _of_one_rate(leaves):
        of_rate = jnp.concatenate([manual.gathered(samples[k]) for k in places])
        sample.append(_relative(jnp.abs(of_rate), rate))
        largest.append(_relative(lax.sort(sums["largest"][np.array(places)])[-1], rate))
    if not sum(of_rate.size for of_rate in sample):
        return {}
    ordered = lax.sort(jnp.concatenate(sample))  # NaNs come last
    places = {name: share * (ordered.size - 1) for name, share in QUANTILES.items()}
    found = {n: ordered[int(at)] * (1 - at % 1) + ordered[math.ceil(at)] * (at % 1) for n, at in places.items()}
    found = {name: jnp.where(jnp.isnan(ordered[-1]), ordered[-1], quantile) for name, quantile in found.items()}
    return found | {"step_size_max": functools.reduce(jnp.maximum, largest)}


def _of_one_rate(leaves: Sequence[Leaf]) -> Iterable[tuple[Any, list[int]]]:
    """Every learning rate that is known, and the leaves that have it."""
    found: dict[int, tuple[Any, list[int]]] = {}
    for k, leaf in enumerate(leaves):
        if leaf.rate is not None:
            found.setdefault(id(leaf.rate), (leaf.rate, []))[1].append(k)
    return found.values()


def _relative(size: jax.Array, rate: Any) -> jax.Array:
    """A size in units of the learning rate; no step is none at a rate of zero, too."""
    rate = jnp.abs(jnp.asarray(rate, size.dtype))
    beyond = jnp.where(size == 0, 0.0, numerics.largest(size.dtype))
    return jnp.where(rate == 0, beyond, size / _or_one(rate)).astype(jnp.float32)


def _elements(leaves: Sequence[Leaf]) -> int:
    """The number of elements, over all devices."""
    return sum(leaf.grad.size * manual.parts(leaf.grad) for leaf in leaves)


def _root(x: Any) -> Any:
    return None if x is None else jnp.sqrt(x)


def _ratio(x: Any, by: Any) -> Any:
    """The quotient, infinite where only the divisor is zero; not known where both are."""
    if x is None or by is None:
        return None
    by = jnp.float32(by)
    return jnp.where(by == 0, jnp.where(x == 0, UNKNOWN, jnp.inf), x / _or_one(by))


def _or_one(x: Any) -> Any:
    """The number, but one for zero: what is divided by it is left out."""
    return jnp.where(x == 0, jnp.ones_like(x), x)
