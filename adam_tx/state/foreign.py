"""The parts of the states of transformations that are not of adam_tx: Optax's by what they keep, any other by name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adam_tx._core import states
from adam_tx._core.call import maker_name
from adam_tx._core.leaves import is_absent
from adam_tx._core.provenance import Provenance
from adam_tx.describe import closures, visit
from adam_tx.state.naming import COUNTS, OPTAX, RECIPES, Kept, Place, after_optax, after_unknown, role_after
from adam_tx.state.roles import OfLeaf, OfMany, Part, Role

if TYPE_CHECKING:
    from adam_tx.state.parts import Reader


def parts(reader: Reader, part: visit.Part, place: Place) -> tuple[list[Part], Provenance | None]:
    """What a transformation keeps, as far as it is known, and what it emits; None for what its members make of it."""
    tx, state, updates = part.tx, part.state, place.updates
    maker, found = maker_name(tx), closures.values(tx)
    keeps = bool(jax.tree.leaves(state))
    if not visit.is_optax(tx):
        if part.apart is not None and part.apart.members:
            return list(_own(reader, maker, found, part, place)), None
        return list(reader.unknown(maker, state, place)), after_unknown(maker, updates, keeps=keeps)
    emitted = after_optax(maker, found, updates, keeps=keeps)
    if maker in OPTAX:
        return list(_known(reader, maker, found, state, place)), emitted
    if maker not in _OF_OTHER_TREES and part.apart is not None:
        return list(_own(reader, maker, found, part, place)), None if part.apart.members else emitted
    if visit.is_wrapper(maker) and maker not in _OF_OTHER_TREES:
        raise of_another(maker, state)
    if maker in RECIPES:
        fields = state._asdict().items()
        return [one for name, tree in fields for one in _field(reader, maker, name, found, tree, place)], emitted
    return list(reader.unknown(maker, state, place)), emitted


def _own(reader: Reader, maker: str, found: Mapping[str, Any], part: visit.Part, place: Place) -> Iterator[Part]:
    """What a wrapper keeps itself."""
    assert part.apart is not None
    if maker == "inject_hyperparams":
        reader.varying |= {id(part.state.hyperparams[name].concrete) for name in found["sched_hps"]}
    for name, tree in part.apart.own.items():
        field = f"{maker}.{name}" if name else maker
        for one in _field(reader, maker, name, found, tree, place):
            yield _of_wrapper(reader, field, found, part.state, one)


_OF_OTHER_TREES = ("flatten", "lookahead")
"""Wrappers whose inside does not see the tree of parameters."""


def _known(reader: Reader, maker: str, found: Mapping[str, Any], state: Any, place: Place) -> Iterator[Part]:
    """What one of Optax's that is known keeps."""
    known = OPTAX[maker]
    if not known.keys() <= set(getattr(state, "_fields", ())):
        raise of_another(maker, state)
    count = getattr(state, "count", None)
    for name, tree in state._asdict().items():
        if name.startswith("count"):
            yield OfMany(Role("count"), place.leaves, tree.number)
        elif name not in known:
            yield from reader.unknown(f"{maker}.{name}", tree, place)
        elif maker == "scale_by_factored_rms":
            yield from _factored(reader, name, tree, state.v, place)
        else:
            kept = known[name]
            about: dict[str, Any] = {"averages": kept.averages}
            if kept.decay:
                about["decay"] = reader.decay(found.get(kept.decay))
            if count is not None and kept.is_corrected(found):
                about["corrected_by"] = count.number
            yield from _of_leaves(reader, kept, about, maker, tree, place)


def _of_leaves(
    reader: Reader, kept: Kept, about: Mapping[str, Any], maker: str, tree: Any, place: Place
) -> Iterator[Part]:
    role = role_after(place.updates, kept.role)
    for i, node in enumerate(reader.column(tree, maker)):
        if not is_absent(node):
            ndim = len(reader.shape(i))
            yield OfLeaf(role, i, node.number, shape=(1,) * ndim if ndim and not node.shape else None, **about)


def _factored(reader: Reader, name: str, tree: Any, whole: Any, place: Place) -> Iterator[Part]:
    """Rows, columns, or all of a second moment; what a parameter does not have of these is one zero."""
    column, wholes = (reader.column(t, "scale_by_factored_rms") for t in (tree, whole))
    for i in sorted(place.leaves):
        if is_absent(column[i]):
            continue
        number, shape, factored = column[i].number, reader.shape(i), wholes[i].shape != reader.shape(i)
        if factored == (name == "v"):
            reader.nothing.add(number)
        elif name == "v":
            # whose decay begins with zero
            yield OfLeaf(role_after(place.updates, "nu"), i, number, averages="square", decay=0.0)
        else:
            lost = int(np.argsort(shape)[-1 if name == "v_row" else -2])
            other = int(np.argsort(shape)[-2 if name == "v_row" else -1])
            role = role_after(place.updates, "nu_row" if lost > other else "nu_col")
            yield OfLeaf(role, i, number, shape=tuple(1 if d == lost else n for d, n in enumerate(shape)))


def _field(reader: Reader, maker: str, name: str, found: Mapping[str, Any], tree: Any, place: Place) -> Iterator[Part]:
    """A field of which no more is known than whether it has numbers of the recipe."""
    role = f"{maker}.{name}" if name else maker
    if RECIPES.get(maker) != name:
        yield from reader.unknown(role, tree, place)
        return
    for path, node in jax.tree_util.tree_leaves_with_path(tree):
        key = jax.tree_util.keystr(path, simple=True, separator=".")
        of = "update" if key in found.get("sched_hps", ()) else "recipe"
        yield OfMany(Role(f"{role}.{key}" if key else role), place.leaves, node.number, of=of)


def _of_wrapper(reader: Reader, field: str, found: Mapping[str, Any], state: Any, part: Part) -> Part:
    """A part of a field of a wrapper, with what is known of that."""
    if isinstance(part, OfLeaf):
        if field != "MultiSteps.acc_grads":
            return part
        means = found.get("use_grad_mean", True)
        rate = 1.0 if means else max(1.0, _now(reader, state.mini_step))
        return part._replace(role=part.role._replace(rate=rate), gathers="mean" if means else "sum")
    if part.of != "state":
        return part
    # of the state of a schedule only its count is known
    counts = field in COUNTS and (not field.endswith("_states") or str(part.role).endswith(".count"))
    part = part._replace(of="figure", also=COUNTS[field] if counts else ())
    return part._replace(below=functools.partial(_every, found)) if field == "MultiSteps.mini_step" else part


def _now(reader: Reader, node: Any) -> float:
    array = reader.arrays[node.number]
    return 0.0 if isinstance(array, jax.ShapeDtypeStruct | Tracer) else float(array)


def _every(found: Mapping[str, Any], count: int) -> int:
    """Of how many micro-steps the next update is made."""
    every: Callable[[Any], Any] = found["every_k_schedule"]
    return int(every(jnp.asarray(count, jnp.int32)))


def of_another(name: str, state: Any) -> ValueError:
    """The error for a state in the place of another."""
    plain = " Restore checkpoints into tx.init(params), without which they give plain dicts."
    return ValueError(
        f"opt_state: {states.described(state)} came in the place of what {name} keeps. Give the state and the "
        f"transformation that made it.{plain if isinstance(state, Mapping | list) else ''}"
    )
