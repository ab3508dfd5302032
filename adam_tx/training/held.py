"""What a guard holds: elements that a step would make infinite or NaN stay what they were."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adam_tx._core import manual, numerics, sharding
from adam_tx._core.abstract_link import AbstractLink
from adam_tx._core.ahead import apart
from adam_tx._core.leaves import Column, Leaves
from adam_tx._core.states import State
from adam_tx._core.storage import Storage, Stored
from adam_tx.describe.arrays import arrays_of

_MOST = 2.0**31 - 128  # the largest float32 that is an int32


class Slot(NamedTuple):
    """An array that a step changes.

    Attributes:
      storage: what knows its numbers.
      new, old: what is stored after the step, and before it.
      starts_finite: whether it is known that all its numbers were finite at first.
    """

    storage: Storage
    new: Stored
    old: Stored
    starts_finite: bool = False

    def stays_finite(self) -> jax.Array | None:
        """Whether each number is finite, or was not so before; None where no other could be kept."""
        now = self.storage.finite(self.new)
        if self.starts_finite or (before := self.storage.finite(self.old)) is None:
            return now
        return None if now is None else now | ~before

    def where(self, ok: jax.Array, taken: jax.Array) -> Stored:
        """The new numbers where they are taken, and else the old ones; codes have the scales of a step that is made."""
        scales = jax.tree.map(functools.partial(jnp.where, ok), self.new.scales, self.old.scales)
        return Stored(jnp.where(taken, self.new.values, self.old.values), scales)


class Step(NamedTuple):
    """The step of a link on all leaves.

    Attributes:
      link: the link.
      emitted: its updates.
      lowered: by the leaf's number, its update in the dtype in which it leaves.
      state: the state after it.
    """

    link: AbstractLink
    emitted: Column
    lowered: Mapping[int, jax.Array]
    state: State


def taken(ok: jax.Array, slots: Sequence[Slot], *finite: jax.Array) -> jax.Array:
    """Which elements of a leaf, or of a tile of one, take the step; where `ok` holds, the others are held.

    With it a leaf's step is `jnp.where(taken, update, 0)`, and of each slot `slot.where(ok, taken)` is kept.

    Args:
      ok: whether any of them takes it.
      slots: what is kept of the leaf, in arrays of one shape.
      *finite: whether each element's update is finite, and whatever else is asked of it.
    """
    asked = [*finite, *(slot.stays_finite() for slot in slots)]
    flags = sharding.together({f"{k}": x for k, x in enumerate(asked) if x is not None})
    return functools.reduce(jnp.logical_and, flags.values(), ok)


def counted_on(before: jax.Array, held: jax.Array) -> jax.Array:
    """How many numbers were held so far, at most the largest int32; with those of a step, float32."""
    return before + jnp.minimum(jnp.minimum(held, _MOST).astype(jnp.int32), jnp.iinfo(jnp.int32).max - before)


def hold_leaves(
    leaves: Leaves, step: Step, ok: jax.Array, old: State, *, counts_apart: bool
) -> tuple[Column, State, jax.Array]:
    """Take the step of all leaves but for what is held.

    Args:
      leaves: the leaves.
      step: the step.
      ok: whether any of it is taken.
      old: the state before it.
      counts_apart: whether a GPU counts what is held in a kernel of its own, as it does where floats are rounded at
        random; of one kernel its compiler would make several, and keep what is between them.

    Returns:
      The updates, the state, and how many numbers are held, float32.
    """
    emitted = list(step.emitted)
    taken_of: dict[tuple[int, int], Any] = {}
    held: list[jax.Array] = []
    for place, slots in _slots(leaves, step, old).items():
        finite = [jnp.isfinite(step.lowered[place])] if isinstance(place, int) else []
        chosen = _formed_once(taken(ok, slots, *finite))
        if isinstance(place, int):
            emitted[place] = jnp.where(chosen, emitted[place], -jnp.zeros_like(emitted[place]))
        for slot in slots:
            stored = slot.where(ok, chosen)
            taken_of |= {(id(now), id(was)): x for now, was, x in zip(slot.new, slot.old, stored, strict=True)}
        marks = ok & ~chosen
        at_random = any(slot.storage.at_random and not slot.storage.looks_ahead for slot in slots)
        held.append(_number(apart(marks) if counts_apart or at_random else marks))

    def state(new: jax.Array, old: jax.Array) -> jax.Array:
        known = taken_of.get((id(new), id(old)))
        return jnp.where(ok, new, old) if known is None else known

    number = jnp.sum(numerics.sorted_apart([jnp.zeros((), jnp.float32), *held]))
    return emitted, jax.tree.map(state, step.state, old), number


def _slots(leaves: Leaves, step: Step, old: State) -> dict[int | str, list[Slot]]:
    """What is kept of each leaf, by its number; by their paths other arrays, which are held each by itself."""
    numbers: dict[str | None, int] = {leaves.paths[i]: i for i in leaves.present}
    slots: dict[int | str, list[Slot]] = {i: [] for i in leaves.present}
    for was, now in zip(arrays_of(step.link, old), arrays_of(step.link, step.state), strict=True):
        place = numbers.get(now.leaf, now.path)
        if isinstance(place, int) and now.stored.values.shape != step.emitted[place].shape:
            place = now.path
        slots.setdefault(place, []).append(Slot(now.storage, now.stored, was.stored, now.starts_finite))
    return slots


@jax.jit
def _formed_once(marks: jax.Array) -> jax.Array:
    """The marks, which a CPU's compiler would otherwise form anew for every array that they choose from."""
    return lax.platform_dependent(marks, cpu=lax.optimization_barrier, default=_as_it_is)


def _as_it_is(x: jax.Array) -> jax.Array:
    return x


def _number(marks: jax.Array) -> jax.Array:
    """How many are marked on all devices, float32."""
    return jnp.ceil(manual.total(jnp.sum(marks, dtype=jnp.int32).astype(jnp.float32)))
