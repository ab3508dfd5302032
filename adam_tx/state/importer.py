"""`StateImporter`: the leaves of a state as they are found in a dict, and what became of everything in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from adam_tx._core import blocks
from adam_tx._core.leaves import Leaves
from adam_tx._core.rounding import Bits
from adam_tx._core.storage import Stored
from adam_tx.state.arrays import Array, decoded
from adam_tx.state.averages import Averages
from adam_tx.state.conversion import misfit, rescaling, times, why_not
from adam_tx.state.entries import Average, LeafEntry, arrays_of
from adam_tx.state.exported import Exported
from adam_tx.state.policy import ImportPolicy
from adam_tx.state.report import Report
from adam_tx.state.roles import COUNTS, GATHERED_STEPS, RECIPES, Key, Role


@dataclass
class StateImporter:
    """Fills the leaves of a state with what is kept of each parameter.

    Attributes:
      leaves: the parameters.
      exported: the dict.
      policy: what may start fresh and be left over.
      report: is told what became of everything.
      old: the arrays of the state as `init` makes them.
      averages: the decays by which the averages in the dict were made.
      new: the arrays that the state is to have.
      filled: of each average what was put in its place, and the key of that.
      started: of each average the role of what starts fresh.
      young: by role the parameters of which it starts fresh, though its start may be over by the count.
      missing: the roles of what starts fresh though nobody asked for it, but for bases.
    """

    leaves: Leaves
    exported: Exported
    policy: ImportPolicy
    report: Report
    old: Sequence[jax.Array]
    averages: Averages
    new: dict[int, Array | jax.Array] = field(default_factory=dict)
    filled: dict[Average, list[tuple[LeafEntry, Key]]] = field(default_factory=dict)
    started: dict[Average, Role] = field(default_factory=dict)
    young: dict[Role, list[int]] = field(default_factory=dict)
    missing: dict[Role, None] = field(default_factory=dict)
    _in_basis: dict[int, list[Key]] = field(default_factory=dict)
    _bases: dict[int, list[Role]] = field(default_factory=dict)

    def key(self, entry: LeafEntry) -> Key:
        """The key of an entry."""
        return Key(entry.role, self.leaves.paths[entry.leaf])

    def take(self, entry: LeafEntry) -> None:
        """The slot of one parameter."""
        key = self.key(entry)
        source = self._source(entry, key)
        if self.policy.starts(key):
            self.exported.use(key)
            self._start(entry, key)
        elif source is not None:
            self.exported.use(source)
            self._convert(entry, key, source)
        elif self.policy.recipe or (entry.gathers and self._steps(key) is None):  # nothing gathers where it comes from
            if not entry.of_basis:
                self.missing.setdefault(entry.role)
            self._start(entry, key)
        else:
            self.report.wrong.append(f"{key} is missing")

    def _source(self, entry: LeafEntry, key: Key) -> Key | None:
        """The key of what is there for a slot: that of its name, or of several averages the first of its decay."""
        alike = [key._replace(role=role) for role in self.exported.with_decay(entry.role)]
        if entry.decay is not None and len(alike) > 1:
            key = next((other for other in (key, *alike) if self.averages.decay(other) == entry.decay), key)
        return key if key in self.exported.entries else self.exported.lookalike(entry.role, key.path)

    def _convert(self, entry: LeafEntry, key: Key, source: Key) -> None:
        """The value of an entry, of this name or of one that looks alike, where it can be made of that exactly."""
        value = self.exported.number(source)
        if value is None:
            return
        role, had = entry.role, source.role
        shape = entry.shape or self.old[entry.values].shape
        is_same = had.unnumbered == role.unnumbered
        is_blocked = role.of == "blocks" and had == role._replace(of="") and blocks.divides(shape, value.shape)
        rate = self.exported.get(Key(had, key.path, "rate"))
        wanted = self._gathered(entry, key, rate) if entry.gathers else entry.source.rate
        by = rescaling(role, rate, wanted, fades=is_same and "steps" in entry.source.words)
        if by is None or not (is_same or is_blocked or had.without_steps == role.without_steps):
            missing = "" if source == key else f"{key} is missing, and "
            self.report.wrong.append(f"{missing}{source} is another quantity: {why_not(role, had)}")
            return
        value = np.asarray(blocks.mean(jnp.asarray(value), shape)) if is_blocked else value
        self._fill(entry, key, times(value, by), source, converted=not is_same or by != 1.0)

    def _steps(self, key: Key) -> Any:
        """How many steps are gathered where it comes from; None if nothing gathers there."""
        return self.exported.get(Key(GATHERED_STEPS, key.path))

    def _gathered(self, entry: LeafEntry, key: Key, rate: ArrayLike | None) -> float:
        """The factor of the mean of the gradients in what gathers them."""
        found = self._steps(key)
        steps = 1.0 if found is None else max(1.0, float(found))
        if rate is None and steps > 1:
            self.report.wrong.append(
                f"{Key(entry.role, about='rate')} is missing: it is 1 if {entry.role} is the mean of the {steps:g} "
                f"gradients so far, {steps:g} if it is their sum"
            )
        return steps if entry.gathers == "sum" else 1.0

    def _stored(self, entry: LeafEntry, key: Key) -> Stored | None:
        """What was stored in codes and scales, if this state stores it so, and it is what the value says."""
        if entry.scales is None or not all(k in self.exported.entries for k in entry.stored_keys(key)):
            return None
        values, scales = (np.asarray(self.exported.entries[k]) for k in entry.stored_keys(key))
        like = self._like(entry)
        if [(x.shape, x.dtype) for x in (values, scales)] != [(x.shape, x.dtype) for x in like if x is not None]:
            return None
        says = np.array_equal(decoded(entry, values, scales), np.asarray(self.exported.entries[key]), equal_nan=True)
        return Stored(values, scales) if says else None  # pyright: ignore[reportArgumentType]

    def _like(self, entry: LeafEntry) -> Stored:
        """The slot as `init` makes it."""
        return Stored(self.old[entry.values], None if entry.scales is None else self.old[entry.scales])

    def _fill(self, entry: LeafEntry, key: Key, value: Array, source: Key, *, converted: bool) -> None:
        """Put a value in the place of a slot, as it is stored where both sides store it so."""
        by, unknown = self.averages.factor(entry, source)
        if unknown:
            self.report.wrong.append(unknown)
        like = self._like(entry)
        value = times(value, by)
        if entry.shape == value.shape:  # some of its axes the state leaves out
            value = value.reshape(like.values.shape)
        if entry.is_square and value.dtype.kind == "c" and not np.any(value.imag):
            value = value.real  # as Optax keeps it
        wrong = misfit(value, like.values, coded=like.scales is not None)
        if entry.is_square and np.any(value < 0):
            wrong = "has negative numbers, but is of squares"
        if wrong:
            self.report.wrong.append(f"{key} {wrong}")
            return
        stored = None if converted or by != 1.0 else self._stored(entry, source)
        new = stored or self._encoded(entry, value, like)
        self.new |= {n: array for n, array in zip(arrays_of(entry), new, strict=False) if array is not None}
        self.filled.setdefault(entry.average, []).append((entry, source))
        if "basis" in entry.source.words:
            self._in_basis.setdefault(entry.leaf, []).append(key)
        elif entry.role.is_basis:
            self._bases.setdefault(entry.leaf, []).append(entry.role)
        self.report.tell("converted" if converted or source != key else "kept", key, source)

    def _encoded(self, entry: LeafEntry, value: Array, like: Stored) -> Stored:
        """A value as its link stores it, on the devices where that lies."""
        if entry.link is None:
            return Stored(value)  # pyright: ignore[reportArgumentType]
        if value.dtype.kind in "fc":
            value = value.astype(np.result_type(np.float32, value.dtype))
        noise = Bits(jnp.full((), -1, jnp.int32), entry.leaf, f"{entry.link.name}.{entry.slot}")
        placed = jax.device_put(value, like.values.sharding) if like.values.committed else jnp.asarray(value)
        return entry.layers.encode(entry.link.storage[entry.slot], placed, like, noise)

    def _start(self, entry: LeafEntry, key: Key) -> None:
        self.report.tell("started fresh", key)
        self.started.setdefault(entry.average, entry.role)
        if entry.starts_by_count:
            self.young.setdefault(entry.role, []).append(entry.leaf)

    def finish(self, figures: set[str]) -> None:
        """What can only be said once all is there: of bases that are not kept, and of what is left over.

        Args:
          figures: the owners of what counts or measures in the new state. What else of theirs came is not needed.
        """
        for leaf, keys in self._in_basis.items():
            came = self.exported.of_path(self.leaves.paths[leaf])
            were = sorted(str(key.role) for key in came if key.role.is_basis)
            if were != sorted(map(str, self._bases.get(leaf, []))):
                self.report.wrong += [
                    f"{key} is in the basis that {were or 'nothing'} says, which is not kept" for key in keys
                ]
        for key in self.exported.unused:
            if self.policy.drops(key) and key.stored:
                continue  # its value is told of
            no_state = any(key.role.is_within(role) for role in (*RECIPES.values(), *COUNTS))
            if self.policy.drops(key) or no_state or key.role.owner in figures:
                self.report.tell("dropped", key)
            else:
                self.report.wrong.append(f"{key} is left over")
