"""`Reading`: the leaves of a state as they are found in a dict, and what became of everything in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adam_tx._core import blocks
from adam_tx._core.leaves import Leaves
from adam_tx._core.storage import Stored
from adam_tx.state import rates
from adam_tx.state.account import Account
from adam_tx.state.averages import Averages
from adam_tx.state.choice import Choice
from adam_tx.state.export import ABOUT, NARROW, NUMBERED, RAW, decoded, key_of, of_parameter, raw_keys
from adam_tx.state.lookalikes import Array, misfit, why_not, without_steps
from adam_tx.state.naming import COUNTS, RECIPES
from adam_tx.state.roles import OfLeaf, Part, Role


class Reading:
    """Fills the leaves of a state, and remembers all that is wrong, so that an error can name it at once.

    Attributes:
      account: what became of everything.
      averages: by which decays the averages in the dict were made.
      leaves: the parameters.
      exported: the dict.
      choice: what may start fresh and be left over.
      old: the arrays of the state as `init` makes them.
      new: those that it is to have.
      wrong: what does not fit.
      kept: of each kind of average and parameter what was put in its place, and the key of that.
      started: of each kind of average and parameter the role of what starts fresh.
      young: by role the parameters of which it starts fresh, though its start may be over by the count.
      missing: the roles of what starts fresh though nobody asked for it, but for bases.
      by_path: the roles of which there is an entry for a parameter.
      idle: what to say of parts of `choice` that mean nothing.
      figures: what counts or measures in the new state; of others' figures of the same name none is left over.
    """

    def __init__(
        self, leaves: Leaves, exported: Mapping[str, Any], choice: Choice, arrays: Sequence[Any], parts: list[Part]
    ) -> None:
        self.wrong = _wrong_about(exported, choice)
        exported = {
            key: value for key, value in exported.items() if not any(w.startswith(f"{key} ") for w in self.wrong)
        }
        self.averages = Averages(exported, leaves, parts)
        self.account = Account()
        self.leaves, self.exported, self.choice = leaves, exported, choice
        self.old, self.new = arrays, list(arrays)
        self.kept: dict[tuple[str, int], list[tuple[OfLeaf, str]]] = {}
        self.started: dict[tuple[str, int], str] = {}
        self.young: dict[str, list[int]] = {}
        self.missing: dict[str, None] = {}
        self.figures: set[str] = set()
        self.idle: list[str] = []
        self.by_path = {role_of(key) for key in exported if "/" in key}
        self._unused = {key: None for key in exported if not role_of(key).endswith(ABOUT)}
        self._in_basis: dict[int, list[str]] = {}
        self._bases: dict[int, list[str]] = {}
        self._of_path: dict[str, list[str]] = {}
        self._decays = {
            role_of(key).removesuffix(".decay"): None for key in exported if role_of(key).endswith(".decay")
        }
        for key in self._unused:
            self._of_path.setdefault(RAW.sub("", key.partition("/")[2]), []).append(key)

    def has(self, part: OfLeaf) -> bool:
        """Whether there is an entry of just this name."""
        return key_of(part.role, self.leaves.paths[part.leaf]) in self.exported

    def take(self, part: OfLeaf) -> None:
        """The slot of one parameter."""
        path = self.leaves.paths[part.leaf]
        key = key_of(part.role, path)
        own = key_of(self._of_decay(part, path), path)
        if self.choice.starts(key):
            self.use(key, *self._raw_of(key, path))
            self._start(part, key)
        elif own in self.exported:
            self.use(own, *self._raw_of(own, path))
            self._scale(part, key, own)
        elif (alike := self._alike(part.role, path)) is not None:
            self.use(alike, *self._raw_of(alike, path))
            self._scale(part, key, alike)
        elif self.choice.recipe or self._gathers_nothing(part, path):
            if not {"basis", "memory"} & set(part.role.base.split(".")):
                self.missing.setdefault(str(part.role))
            self._start(part, key)
        else:
            self.wrong.append(f"{key} is missing")

    def _of_decay(self, part: OfLeaf, path: str) -> str:
        """Of several averages of a role the one with the decay of this, else the one of its number."""
        role = str(part.role)
        alike = [other for other in self._decays if NUMBERED.sub("", other) == NUMBERED.sub("", role)]
        known = part.decay is not None and len(alike) > 1
        return next((other for other in alike if known and self.averages.decay(other, path) == part.decay), role)

    def _scale(self, part: OfLeaf, key: str, source: str) -> None:
        """The value of an entry, of this name or of one that looks alike, where it can be made of that exactly."""
        role, had, value = part.role, role_of(source), self.number(source)
        if value is None:
            return
        path, shape = self.leaves.paths[part.leaf], part.shape or self.old[part.values].shape
        rate = of_parameter(self.exported, f"{had}.rate", path)
        same, inside = NUMBERED.sub("", had) == NUMBERED.sub("", str(role)), "steps" in role.of
        blocked = role.of == ("blocks",) and had == role.base and blocks.divides(shape, value.shape)
        but_for_steps = without_steps(had) == without_steps(str(role))
        wanted = self._gathered(part, path, rate) if part.gathers else role.rate
        by = rates.factor(role.base, 1.0 if rate is None else float(rate), wanted, fades=same and inside)
        if by is None or not (same or blocked or but_for_steps):
            missing = "" if source == key else f"{key} is missing, and "
            self.wrong.append(f"{missing}{source} is another quantity: {why_not(role, had)}")
        elif same and by == 1.0:
            self._put(part, key, value, source, self._raw(part, source))
        else:
            value = np.asarray(blocks.mean(jnp.asarray(value), shape)) if blocked else value
            self._put(part, key, value if by == 1.0 else value * np.asarray(by, value.dtype), source, converted=True)

    def _gathers_nothing(self, part: OfLeaf, path: str) -> bool:
        """Whether it gathers gradients for an update, but where this comes from nothing does."""
        return bool(part.gathers) and of_parameter(self.exported, "MultiSteps.mini_step", path) is None

    def _gathered(self, part: OfLeaf, path: str, rate: Any) -> float:
        """By what the mean of the gradients is multiplied in what gathers them."""
        found = of_parameter(self.exported, "MultiSteps.mini_step", path)
        steps = 1.0 if found is None else max(1.0, float(found))
        if rate is None and steps > 1:
            self.wrong.append(
                f"{part.role}.rate is missing: it is 1 if {part.role} is the mean of the {steps:g} gradients so far, "
                f"{steps:g} if it is their sum"
            )
        return steps if part.gathers == "sum" else 1.0

    def _raw_of(self, key: str, path: str) -> list[str]:
        """The keys of what was stored in codes and scales."""
        return [name for name in self._of_path.get(path, ()) if RAW.sub("", name) == key != name]

    def _raw(self, part: OfLeaf, key: str) -> Stored | None:
        """What was stored in codes and scales, if this state stores it so, and it is what the value says."""
        raw = self._raw_of(key, self.leaves.paths[part.leaf])
        if part.scales is None or not set(raw_keys(part, key)) <= set(raw):
            return None
        kept: list[Any] = [np.asarray(self.exported[name]) for name in raw_keys(part, key)]
        stored = Stored(*kept)
        like = Stored(self.old[part.values], self.old[part.scales])
        if [(x.shape, x.dtype) for x in stored if x is not None] != [(x.shape, x.dtype) for x in like if x is not None]:
            return None
        says = np.array_equal(decoded(part, *stored), np.asarray(self.exported[key]), equal_nan=True)
        return stored if says else None

    def _put(
        self, part: OfLeaf, key: str, value: Array, source: str, raw: Stored | None = None, *, converted: bool = False
    ) -> None:
        """Put a value in the place of a slot, as it is stored where both sides store it so."""
        like = Stored(self.old[part.values], None if part.scales is None else self.old[part.scales])
        by, wrong = self.averages.factor(part, source, restarts=self.choice.starts("count"))
        if wrong:
            self.wrong.append(wrong)
        if by != 1.0:
            value, raw = value * np.asarray(by, value.dtype), None
        if part.shape == value.shape:
            value = value.reshape(like.values.shape)
        if part.is_square and value.dtype.kind == "c" and not np.any(value.imag):
            value = value.real  # as Optax keeps it
        wrong = misfit(value, like.values, coded=like.scales is not None)
        if part.is_square and np.any(value < 0):
            wrong = "has negative numbers, but is of squares"
        if wrong:
            self.wrong.append(f"{key} {wrong}")
            return
        stored = raw or self._encoded(part, value, like)
        self.new[part.values] = stored.values
        if part.scales is not None:
            self.new[part.scales] = stored.scales
        self.kept.setdefault((part.averages, part.leaf), []).append((part, source))
        if "basis" in part.role.of:
            self._in_basis.setdefault(part.leaf, []).append(key)
        elif part.role.base.startswith("basis."):
            self._bases.setdefault(part.leaf, []).append(str(part.role))
        self.account.convert(key, source) if converted or source != key else self.account.keep(key)

    def _encoded(self, part: OfLeaf, value: Any, like: Stored) -> Stored:
        """A value as its link stores it, on the devices where that lies."""
        if part.link is None:
            return Stored(value)
        if value.dtype.kind in "fc":
            value = value.astype(np.result_type(np.float32, value.dtype))
        noise = part.link.noise(jnp.full((), -1, jnp.int32), part.leaf, part.slot)
        placed = jax.device_put(value, like.values.sharding) if like.values.committed else jnp.asarray(value)
        return part.link.storage[part.slot].encode(placed, like, noise)

    def _alike(self, role: Role, path: str) -> str | None:
        """The key of what looks alike for the same parameter, but is of something else."""
        keys = [key for key in self._of_path.get(path, ()) if key in self._unused and not RAW.search(key)]
        return next((key for key in keys if role_of(key).partition("_of_")[0] == role.base), None)

    def number(self, key: str) -> Array | None:
        """The array under a key, if it is one of numbers."""
        try:
            value = np.asarray(self.exported[key])
        except Exception as error:  # whatever came makes of being an array
            self.wrong.append(f"{key} is no array: {error}")
            return None
        if value.dtype in NARROW:
            value = value.astype(np.float32)
        if value.dtype.kind not in "biufc":
            self.wrong.append(f"{key} is no array of numbers, but of {value.dtype}")
            return None
        return value

    def use(self, *keys: str) -> None:
        """Take note that these are not left over."""
        for key in keys:
            self._unused.pop(key, None)

    def is_left(self, role: str) -> bool:
        """Whether there is an entry of this role that was not used so far."""
        return any(role_of(key) == role for key in self._unused)

    def _start(self, part: OfLeaf, key: str) -> None:
        self.account.start(key)
        self.started.setdefault((part.averages, part.leaf), str(part.role))
        if part.counts_on:
            self.young.setdefault(str(part.role), []).append(part.leaf)

    def finished(self) -> list[Any]:
        """The new leaves, if nothing was wrong."""
        for leaf, keys in self._in_basis.items():
            path = self.leaves.paths[leaf]
            were = sorted(role_of(key) for key in self._of_path.get(path, ()) if key.startswith("basis."))
            if were != sorted(self._bases.get(leaf, [])):
                self.wrong += [
                    f"{key} is in the basis that {were or 'nothing'} says, which is not kept" for key in keys
                ]
        for key in self._unused:
            if self.choice.drops(key) and RAW.search(key):
                continue  # its value is told of
            if self.choice.drops(key) or key.startswith(_NO_STATE) or key.partition(".")[0] in self.figures:
                self.account.drop(key)
            else:
                self.wrong.append(f"{key} is left over")
        if self.wrong:
            listing = "".join(f"\n  {entry}" for entry in [*self.wrong, *self.idle])
            if self.choice.recipe:
                raise ValueError(
                    f"migrate: {len(self.wrong)} of what the old state keeps does not fit new_tx:{listing}\nSay "
                    "what may start as init does, as in fresh='nu_max|*/new_head/*'; what came for it is then dropped."
                )
            raise ValueError(
                f"exported: {len(self.wrong)} of the entries do not fit the state of this tx:{listing}\nMend them, or "
                "say what may start as init does, as in fresh='nu_max|*/new_head/*', and what may be left over, as in "
                "drop='trace'."
            )
        return self.new


_NO_STATE = (*(f"{maker}.{field}" for maker, field in RECIPES.items()), *COUNTS)
"""How the keys of a recipe's own numbers begin, and those of second counts, which are never left over."""


def _wrong_about(exported: Mapping[str, Any], choice: Choice) -> list[str]:
    """Which entries say something about others that are not there, or nothing that can be."""
    roles, wrong = {role_of(key) for key in exported}, list[str]()
    for key, value in exported.items():
        about, _, what = role_of(key).rpartition(".")
        if f".{what}" not in ABOUT or callable(value):
            continue
        try:
            number = float(np.asarray(value))
        except (TypeError, ValueError):
            wrong.append(f"{key} is no number: {value!r}")
            continue
        if about not in roles and not choice.drops(key):
            wrong.append(f"{key} is about {about}, which is not there")
        elif what == "decay" and not 0.0 <= number < 1.0:
            wrong.append(f"{key} is {number}, but a decay must be at least 0 and below 1")
    return wrong


def role_of(key: str) -> str:
    """The role that a key begins with."""
    return key.partition("/")[0]
