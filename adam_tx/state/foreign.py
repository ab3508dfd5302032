"""The parts of the states of transformations that are not of adam_tx: Optax's by what they keep, any other by name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adam_tx._core import states
from adam_tx._core.leaves import is_absent
from adam_tx.describe import closures, visit
from adam_tx.state.naming import COUNTS, OPTAX, RECIPES, Kept, Place, Seen, after_optax, after_unknown
from adam_tx.state.roles import OfLeaf, OfMany, Part, Role

if TYPE_CHECKING:
    from adam_tx.state.parts import Reader


def parts(reader: Reader, tx: Any, state: Any, place: Place) -> Iterator[Part]:
    """What a transformation keeps, as far as it is known, and of any other what its fields are called."""
    maker, found = closures.name(tx.update), closures.values(tx)
    keeps = bool(jax.tree.leaves(state))
    if not visit.is_optax(tx):
        yield from reader.unknown(maker, state, place)
        reader.emitted = after_unknown(maker, place.updates, keeps=keeps)
        return
    if maker in OPTAX:
        yield from _known(reader, maker, found, state, place)
    elif maker not in _OF_OTHER_TREES and (taken := _taken_apart(reader, tx, maker, found, state)) is not None:
        own, members = taken
        for name, tree in own.items():
            field = f"{maker}.{name}" if name else maker
            for part in _field(reader, maker, name, found, tree, place):
                yield _of_wrapper(reader, field, found, state, part)
        emitted = list[Seen]()
        for key, member, part in members:
            chosen = visit.chosen(tx, key, reader.leaves)
            yield from reader.read(member, part, place.within(chosen))
            if maker in ("chain", "named_chain"):
                place = dataclasses.replace(place, updates=reader.emitted)
            elif maker == "masked" and chosen is not None and place.leaves - chosen:
                emitted.append(place.updates)
            emitted.append(reader.emitted)
        if members:
            reader.emitted = Seen.joined(emitted) if maker in ("partition", "masked") else emitted[-1]
            return
    elif visit.is_wrapper(maker) and maker not in _OF_OTHER_TREES:
        raise of_another(maker, state)
    elif maker in RECIPES:
        for name, tree in state._asdict().items():
            yield from _field(reader, maker, name, found, tree, place)
    else:
        yield from reader.unknown(maker, state, place)
    reader.emitted = after_optax(maker, found, place.updates, keeps=keeps)


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
    role = place.updates.role(kept.role)
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
            yield OfLeaf(place.updates.role("nu"), i, number, averages="square", decay=0.0)
        else:
            lost = int(np.argsort(shape)[-1 if name == "v_row" else -2])
            other = int(np.argsort(shape)[-2 if name == "v_row" else -1])
            role = place.updates.role("nu_row" if lost > other else "nu_col")
            yield OfLeaf(role, i, number, shape=tuple(1 if d == lost else n for d, n in enumerate(shape)))


def _taken_apart(reader: Reader, tx: Any, maker: str, found: Mapping[str, Any], state: Any) -> visit.Parts | None:
    """The parts of a wrapper's state; from hyperparameters that are injected, as they are, its inside is made."""
    if maker != "inject_hyperparams":
        return visit.parts(tx, state)
    given = state._replace(hyperparams=jax.tree.map(lambda x: reader.arrays[x.number], state.hyperparams))
    reader.varying |= {id(given.hyperparams[name]) for name in found["sched_hps"]}
    taken = visit.parts(tx, given)
    return None if taken is None else (state._replace(inner_state=None)._asdict() | {"inner_state": ()}, taken[1])


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
