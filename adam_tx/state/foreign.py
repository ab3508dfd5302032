"""The entries of transformations that are not of adam_tx: those of Optax by what they keep, any other's by name."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adam_tx._core import states
from adam_tx._core.call import is_optax, maker_name
from adam_tx._core.leaves import is_absent
from adam_tx._core.provenance import Provenance
from adam_tx.describe import closures, visit
from adam_tx.state import roles
from adam_tx.state.entries import LeafEntry, SharedEntry, StateEntry
from adam_tx.state.numbered import NumberedState
from adam_tx.state.optax_states import FIELDS, Held, emitted_by_optax, emitted_by_unknown
from adam_tx.state.slot_roles import role_after

_OF_OTHER_TREES = ("flatten", "lookahead")
"""Wrappers whose inside does not see the tree of parameters."""


def entries(state: NumberedState, part: visit.Part) -> tuple[list[StateEntry], Provenance | None]:
    """What a transformation keeps, as far as it is known, and what it emits; None for what its members make of it."""
    foreign = _Foreign(state, part)
    maker = foreign.maker
    keeps = bool(jax.tree.leaves(part.state))
    if not is_optax(part.tx):
        if part.apart is not None and part.apart.members:
            return list(foreign.own()), None
        return list(foreign.unknown()), emitted_by_unknown(maker, part.updates, keeps=keeps)
    emitted = emitted_by_optax(maker, foreign.held, part.updates, keeps=keeps)
    if maker in FIELDS:
        return list(foreign.known()), emitted
    if maker not in _OF_OTHER_TREES and part.apart is not None:
        return list(foreign.own()), None if part.apart.members else emitted
    if visit.is_wrapper(maker) and maker not in _OF_OTHER_TREES:
        raise of_another(maker, part.state)
    return list(foreign.recipe() if maker in roles.RECIPES else foreign.unknown()), emitted


class _Foreign:
    """A transformation that is not of adam_tx."""

    def __init__(self, state: NumberedState, part: visit.Part) -> None:
        self.maker = maker_name(part.tx)
        self.held: Held = closures.variables(part.tx)
        self._whole = state
        self._part = part
        self._state = cast(states.Fields, part.state)
        self._role = roles.Role.parse(self.maker)
        self._leaves = state.leaves_of(part)

    def unknown(self) -> Iterator[StateEntry]:
        """What it keeps, if no more is known of it."""
        return self._whole.unknown(self._role, self._part.state, self._leaves)

    def own(self) -> Iterator[StateEntry]:
        """What a wrapper keeps beside its members."""
        assert self._part.apart is not None
        if self.maker == "inject_hyperparams":
            hyperparams = self._state.hyperparams
            self._whole.varying |= {id(hyperparams[name].concrete) for name in self.held["sched_hps"]}
        for name, tree in self._part.apart.own.items():
            field = self._role.part(name)
            for entry in self._field(field, tree):
                yield self._of_wrapper(field, entry)

    def recipe(self) -> Iterator[StateEntry]:
        """What it keeps beside numbers of the recipe."""
        for name, tree in self._state._asdict().items():
            yield from self._field(self._role.part(name), tree)

    def known(self) -> Iterator[StateEntry]:
        """What a transformation in the table of Optax keeps."""
        fields, state = FIELDS[self.maker], self._state
        if not fields.keys() <= set(getattr(state, "_fields", ())):
            raise of_another(self.maker, state)
        for name, tree in state._asdict().items():
            if name.startswith("count"):
                yield SharedEntry(roles.COUNT, self._leaves, tree.number)
            elif name not in fields:
                yield from self._whole.unknown(self._role.part(name), tree, self._leaves)
            elif self.maker == "scale_by_factored_rms":
                yield from self._factored(name, tree)
            else:
                yield from self._of_leaves(name, tree)

    def _of_leaves(self, name: str, tree: Any) -> Iterator[LeafEntry]:
        field, source = FIELDS[self.maker][name], self._part.updates
        count = getattr(self._state, "count", None)
        decay = self._whole.decay(self.held.get(field.decay)) if field.decay else None
        role = role_after(source, field.role)
        corrected_by = count.number if count is not None and field.is_corrected(self.held) else None
        for i, node in enumerate(self._whole.column(tree, self.maker)):
            if not is_absent(node):
                ndim = 0 if node.shape else len(self._whole.shapes[i])
                entry = LeafEntry(role, i, node.number, shape=(1,) * ndim or None, source=source)
                yield entry._replace(averages=field.averages, decay=decay, corrected_by=corrected_by)

    def _factored(self, name: str, tree: Any) -> Iterator[LeafEntry]:
        """Rows, columns, or all of a second moment; what a parameter does not have of these is one zero."""
        source = self._part.updates
        column = self._whole.column(tree, self.maker)
        unfactored = self._whole.column(self._state.v, self.maker)
        for i in sorted(self._leaves):
            if is_absent(column[i]):
                continue
            number, shape = column[i].number, self._whole.shapes[i]
            is_factored = unfactored[i].shape != shape
            if is_factored == (name == "v"):
                self._whole.nothing.add(number)
            elif name == "v":
                # whose decay begins with zero
                yield LeafEntry(role_after(source, roles.NU), i, number, averages="square", decay=0.0, source=source)
            else:
                second, first = (int(axis) for axis in np.argsort(shape)[-2:])
                lost, other = (first, second) if name == "v_row" else (second, first)
                role = role_after(source, roles.NU_ROW if lost > other else roles.NU_COL)
                kept = tuple(1 if axis == lost else n for axis, n in enumerate(shape))
                yield LeafEntry(role, i, number, shape=kept, source=source)

    def _field(self, field: roles.Role, tree: Any) -> Iterator[StateEntry]:
        """A field of which no more is known than whether it has numbers of the recipe."""
        if field != roles.RECIPES.get(self.maker):
            yield from self._whole.unknown(field, tree, self._leaves)
            return
        for path, node in jax.tree_util.tree_leaves_with_path(tree):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            of = "update" if name in self.held.get("sched_hps", ()) else "recipe"
            yield SharedEntry(field.part(name), self._leaves, node.number, of=of)

    def _of_wrapper(self, field: roles.Role, entry: StateEntry) -> StateEntry:
        """An entry of a field of a wrapper, with what is known of that field."""
        if isinstance(entry, LeafEntry):
            if field != roles.GATHERED:
                return entry
            if self.held.get("use_grad_mean", True):
                return entry._replace(gathers="mean")
            array = self._whole.arrays[self._state.mini_step.number]
            steps = 0.0 if isinstance(array, jax.ShapeDtypeStruct | Tracer) else float(array)
            return entry._replace(gathers="sum", source=entry.source.times(max(1.0, steps)))
        if entry.of != "state":
            return entry
        # of the state of a schedule only its count is known
        counts = field in roles.COUNTS and (entry.role == field or entry.role.field == "count")
        entry = entry._replace(of="figure", also=roles.COUNTS[field] if counts else ())
        return entry._replace(below=functools.partial(_every, self.held)) if field == roles.GATHERED_STEPS else entry


def _every(held: Held, count: int) -> int:
    """Of how many micro-steps the next update is made."""
    return int(held["every_k_schedule"](jnp.asarray(count, jnp.int32)))


def of_another(name: str, state: states.State) -> ValueError:
    """The error for a state in the place of another."""
    plain = " Restore checkpoints into tx.init(params), without which they give plain dicts."
    return ValueError(
        f"opt_state: {states.described(state)} came in the place of what {name} keeps. Give the state and the "
        f"transformation that made it.{plain if isinstance(state, Mapping | list) else ''}"
    )
