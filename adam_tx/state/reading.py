"""`Reading`: the leaves of a state as they are found in a dict, and what became of everything in it."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adam_tx._core import blocks
from adam_tx._core.paths import Pattern
from adam_tx._core.storage import Stored
from adam_tx._core.trees import Walk, some
from adam_tx.state import rates, weights
from adam_tx.state.account import Account
from adam_tx.state.export import ABOUT, NARROW, NUMBERED, RAW, decoded, key_of, keys_of_count, raw_keys, same
from adam_tx.state.roles import OfLeaf, OfMany, Role

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Choice:
    """What may be started fresh, and what may be dropped.

    Attributes:
      fresh: a pattern of what starts as `init` starts it, whatever came.
      drop: a pattern of what may be left over.
      recipe: whether the recipe is another, so that what is simply missing starts fresh, and what is left over is
        dropped; only what looks alike and is another quantity needs to be named.
    """

    fresh: str = ""
    drop: str = ""
    recipe: bool = False

    def starts(self, key: str) -> bool:
        """Whether this starts fresh, whatever came."""
        return _names(self.fresh, key)

    def drops(self, key: str) -> bool:
        """Whether this may be left over."""
        return self.recipe or _names(self.drop, key)


def _names(pattern: str, key: str) -> bool:
    """Whether a pattern means this key, or its role."""
    matches = Pattern(pattern or "!*").matches
    return matches(key, ()) or matches(key.partition("/")[0], ())


class Reading:
    """Fills the leaves of a state, and remembers all that is wrong, so that an error can name it at once.

    Attributes:
      account: what became of everything.
    """

    def __init__(self, walk: Walk, exported: Mapping[str, Any], choice: Choice, leaves: Sequence[Any]) -> None:
        self.account = Account()
        self._walk, self._exported, self._choice = walk, exported, choice
        self._old, self._new = leaves, list(leaves)
        self._unused = {key: None for key in exported if not _role(key).endswith(ABOUT)}
        self._wrong: list[str] = []
        self._kept: set[tuple[str, int]] = set()
        self._young: dict[str, list[int]] = {}
        self._in_basis: dict[int, list[str]] = {}
        self._bases: dict[int, list[str]] = {}
        self._started: dict[tuple[str, int], str] = {}
        self._of_path: dict[str, list[str]] = {}
        decays = {_role(key): value for key, value in exported.items() if _role(key).endswith(".decay")}
        self._decays = {role.removesuffix(".decay"): float(np.asarray(decay)) for role, decay in decays.items()}
        for key in self._unused:
            self._of_path.setdefault(RAW.sub("", key.partition("/")[2]), []).append(key)

    def has(self, part: OfLeaf) -> bool:
        """Whether there is an entry of just this name."""
        return key_of(part.role, self._walk.paths[part.leaf]) in self._exported

    def take(self, part: OfLeaf) -> None:
        """The slot of one parameter."""
        path = self._walk.paths[part.leaf]
        key = key_of(part.role, path)
        own = key_of(self._of_decay(part), path)
        if self._choice.starts(key):
            self._use(key, *self._raw_of(key, path))
            self._start(part, key)
        elif own in self._exported:
            self._use(own, *self._raw_of(own, path))
            self._scale(part, key, own)
        elif (alike := self._alike(part.role, path)) is not None:
            self._use(alike, *self._raw_of(alike, path))
            self._scale(part, key, alike)
        elif self._choice.recipe:
            self._start(part, key)
        else:
            self._wrong.append(f"{key} is missing")

    def _of_decay(self, part: OfLeaf) -> str:
        """Of several averages of a role the one with the decay of this, else the one of its number."""
        role, decay = str(part.role), part.decay_value
        alike = [other for other in self._decays if NUMBERED.sub("", other) == NUMBERED.sub("", role)]
        known = isinstance(decay, float | int)
        return next((other for other in alike if known and self._decays[other] == decay), role)

    def _scale(self, part: OfLeaf, key: str, source: str) -> None:
        """The value of an entry, of this name or of one that looks alike, where it can be made of that exactly."""
        role, had, value = part.role, _role(source), self._number(source)
        if value is None:
            return
        path, shape = self._walk.paths[part.leaf], self._old[part.values].shape
        rate = self._exported.get(key_of(f"{had}.rate", path), self._exported.get(f"{had}.rate", 1.0))
        same, inside = NUMBERED.sub("", had) == NUMBERED.sub("", str(role)), "steps" in role.of
        blocked = role.of == ("blocks",) and had == role.base and blocks.divides(shape, value.shape)
        but_for_steps = _without_steps(had) == _without_steps(str(role))
        by = rates.factor(role.base, float(rate), role.rate, fades=same and inside)
        if by is None or not (same or blocked or but_for_steps):
            missing = "" if source == key else f"{key} is missing, and "
            self._wrong.append(f"{missing}{source} is another quantity: {_why(role, had)}")
        elif same and by == 1.0:
            self._put(part, key, value, self._raw(part, source), source="" if source == key else source)
        else:
            value = np.asarray(blocks.mean(jnp.asarray(value), shape)) if blocked else value
            self._put(part, key, value if by == 1.0 else value * np.asarray(by, value.dtype), source=source)

    def _raw_of(self, key: str, path: str) -> list[str]:
        """The keys of what was stored in codes and scales."""
        return [name for name in self._of_path.get(path, ()) if RAW.sub("", name) == key != name]

    def _raw(self, part: OfLeaf, key: str) -> Stored | None:
        """What was stored in codes and scales, if this state stores it so, and it is what the value says."""
        raw = self._raw_of(key, self._walk.paths[part.leaf])
        if part.scales is None or not set(raw_keys(part, key)) <= set(raw):
            return None
        kept: list[Any] = [np.asarray(self._exported[name]) for name in raw_keys(part, key)]
        stored = Stored(*kept)
        like = Stored(self._old[part.values], self._old[part.scales])
        if [(x.shape, x.dtype) for x in stored if x is not None] != [(x.shape, x.dtype) for x in like if x is not None]:
            return None
        says = np.array_equal(decoded(part, *stored), np.asarray(self._exported[key]), equal_nan=True)
        return stored if says else None

    def _put(self, part: OfLeaf, key: str, value: Array, raw: Stored | None = None, source: str = "") -> None:
        """Put a value in the place of a slot, as it is stored where both sides store it so."""
        like = Stored(self._old[part.values], None if part.scales is None else self._old[part.scales])
        if wrong := _misfit(value, like.values, coded=like.scales is not None):
            self._wrong.append(f"{key} {wrong}")
            return
        stored = raw or self._encoded(part, value, like)
        self._new[part.values] = stored.values
        if part.scales is not None:
            self._new[part.scales] = stored.scales
        self._kept.add((part.averages, part.leaf))
        if "basis" in part.role.of:
            self._in_basis.setdefault(part.leaf, []).append(key)
        elif part.role.base.startswith("basis."):
            self._bases.setdefault(part.leaf, []).append(str(part.role))
        self.account.convert(key, source) if source else self.account.keep(key)

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
        return next((key for key in keys if _role(key).partition("_of_")[0] == role.base), None)

    def take_shared(self, part: OfMany) -> None:
        """A count, a debiasing weight, or another number that several parameters share."""
        name, paths = str(part.role), [self._walk.paths[leaf] for leaf in sorted(part.leaves)] or [""]
        found = {path: key for path in paths if (key := self._shared_key(keys_of_count(name), path)) is not None}
        self._use(*found.values())
        if self._choice.starts(name):
            self.account.start(name)
        elif part.link is not None and part.leaves and not self._has_average(part):
            self._start_weight(name, found)
        elif len(found) < len(paths):
            self._make(part, paths)
        else:
            values = {path: self._number(key) for path, key in found.items()}
            source = next(iter(found.values()))
            elsewhere = name.startswith("steps") and source.startswith("count")
            tell = functools.partial(self.account.convert, source=source) if elsewhere else self.account.keep
            self._share(part, values, tell)

    def _start_weight(self, name: str, found: Mapping[str, str]) -> None:
        """The weight of averages that all start from zero starts from zero."""
        if found:
            self.account.start(name)
        elif not self._choice.recipe:
            self._wrong.append(f"{name} is missing")

    def _make(self, part: OfMany, paths: Sequence[str]) -> None:
        """What is missing: a weight from the count, or as `init` starts it where that is allowed."""
        name = str(part.role)
        counts = {path: key for path in paths if (key := self._shared_key(("count",), path)) is not None}
        if part.link is not None and len(counts) == len(paths):
            dtype, values = self._old[part.values].dtype, dict[str, Any]()
            for path, key in counts.items():
                if (count := self._number(key)) is None:
                    return
                try:
                    values[path] = weights.after(part.link, part.decay, int(count), dtype)
                except (TypeError, ValueError) as error:
                    self._wrong.append(f"{name} is missing, and {error}")
                    return
            self._share(part, values, self.account.compute)
        elif self._choice.recipe:
            self.account.start(name)
        else:
            self._wrong.append(f"{name} is missing")

    def _share(self, part: OfMany, values: Mapping[str, Any], tell: Callable[[str], None]) -> None:
        """Put one value in the place of what several parameters share."""
        name, first = str(part.role), next(iter(values.values()))
        if any(value is None for value in values.values()):
            return
        if different := [path for path, value in values.items() if not same(value, first)]:
            listing = ", ".join(f"{path} {values[path]}" for path in (next(iter(values)), *different)[:4])
            self._wrong.append(
                f"{name} is one for all parameters of a link, but came as {listing}; give those that differ a state of "
                "their own, with optax.partition"
            )
            return
        like = self._old[part.values]
        if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
            like = jax.random.key_data(like)
        elif part.link is not None and first.shape == like.shape:
            first = weights.pair(first.astype(np.float64), like.dtype)
        if wrong := _misfit(first, like, coded=False):
            self._wrong.append(f"{name} {wrong}")
            return
        if "count" in name and like.dtype.kind == "i" and np.any(first < 0):
            self._wrong.append(f"{name} is {first}, but must be at least 0")
            return
        self._new[part.values] = first
        tell(name)
        if part.link is not None and np.any(first):
            self._note_young(part, name)
        if name == "count" and np.any(first):
            self._note_first(part, first)

    def _note_young(self, part: OfMany, name: str) -> None:
        """Say where an average starts from zero that is debiased as if it were older."""
        started = [leaf for leaf in sorted(part.leaves) if part.averages and (part.averages, leaf) in self._started]
        if started:
            role = self._started[part.averages, started[0]]
            self.account.note(
                f"note: {role} of {some([self._walk.paths[leaf] for leaf in started])} starts from zero, but is "
                f"debiased by {name} like that of older parameters: its first steps are of another length. Give new "
                "parameters a chain of their own, with optax.partition, where that matters."
            )

    def _note_first(self, part: OfMany, count: Array) -> None:
        """Say where what starts from zero is taken for old by the count."""
        for role, leaves in self._young.items():
            if own := [leaf for leaf in leaves if leaf in part.leaves]:
                self.account.note(
                    f"note: {role} of {some([self._walk.paths[leaf] for leaf in own])} starts from zero, but its count "
                    f"is {count}, so a correction of its start, or a first look at the gradient, is over. Start count "
                    "fresh too, where that matters."
                )

    def _shared_key(self, names: Sequence[str], path: str) -> str | None:
        """The key of the first of these for a parameter, or of what all share."""
        keys = [key for name in names for key in (key_of(name, path), name)]
        return next((key for key in keys if key in self._exported), None)

    def _has_average(self, part: OfMany) -> bool:
        """Whether one of the averages that a weight belongs to was kept."""
        return not part.averages or any((part.averages, leaf) in self._kept for leaf in part.leaves)

    def _number(self, key: str) -> Array | None:
        """The array under a key, if it is one of numbers."""
        try:
            value = np.asarray(self._exported[key])
        except Exception as error:  # whatever came makes of being an array
            self._wrong.append(f"{key} is no array: {error}")
            return None
        if value.dtype in NARROW:
            value = value.astype(np.float32)
        if value.dtype.kind not in "biufc":
            self._wrong.append(f"{key} is no array of numbers, but of {value.dtype}")
            return None
        return value

    def _use(self, *keys: str) -> None:
        for key in keys:
            self._unused.pop(key, None)

    def _start(self, part: OfLeaf, key: str) -> None:
        self.account.start(key)
        self._started.setdefault((part.averages, part.leaf), str(part.role))
        if part.counts_on:
            self._young.setdefault(str(part.role), []).append(part.leaf)

    def finished(self) -> list[Any]:
        """The new leaves, if nothing was wrong."""
        for leaf, keys in self._in_basis.items():
            path = self._walk.paths[leaf]
            were = sorted(_role(key) for key in self._of_path.get(path, ()) if key.startswith("basis."))
            if were != sorted(self._bases.get(leaf, [])):
                self._wrong += [
                    f"{key} is in the basis that {were or 'nothing'} says, which is not kept" for key in keys
                ]
        for key in self._unused:
            if self._choice.drops(key) and RAW.search(key):
                continue  # its value is told of
            if self._choice.drops(key):
                self.account.drop(key)
            else:
                self._wrong.append(f"{key} is left over")
        if self._wrong:
            listing = "".join(f"\n  {entry}" for entry in self._wrong)
            raise ValueError(
                f"exported: {len(self._wrong)} of the entries do not fit the state of this tx:{listing}\nMend them, or "
                "say what may start as init does, as in fresh='nu_max|*/new_head/*', and what may be left over, as in "
                "drop='trace'."
            )
        return self._new


def _misfit(value: Array, like: Any, *, coded: bool) -> str:
    """Why a value cannot take the place of another, if it cannot."""
    if value.shape != like.shape:
        return f"has shape {value.shape}, but the state has {like.shape}"
    kind = "f" if coded or like.dtype in NARROW else like.dtype.kind
    if value.dtype.kind == "c" and kind != "c":
        return f"is complex, but the state is {like.dtype}"
    if kind in "fc" and not coded and np.any(np.isfinite(value) & ~np.isfinite(_narrowed(value, like.dtype))):
        return f"has numbers that are too large for the state's {like.dtype}"
    if kind in "iub" and not np.array_equal(value, value.astype(like.dtype)):
        return f"is {value.dtype}, whose values the state's {like.dtype} does not have"
    return ""


def _narrowed(value: Array, dtype: Any) -> Array:
    with np.errstate(over="ignore"):
        return value.astype(dtype).astype(value.dtype if dtype not in NARROW else np.float32)


def _role(key: str) -> str:
    return key.partition("/")[0]


def _without_steps(role: str) -> str:
    return re.sub(r"(_of)?_steps$", "", role)


def _why(role: Role, had: str) -> str:
    """Why one cannot be made of the other."""
    words = {*role.of, *had.partition("_of_")[2].split("_")}
    if had == str(role):
        return "it is of gradients that were multiplied by another constant, which is not known"
    for word, reason in _REASONS.items():
        if words & set(word.split("|")) and (word != "steps" or _without_steps(had) == _without_steps(str(role))):
            return reason
    return "they are averages of different things"


_REASONS = {
    "bits": "it is of another number of bits",
    "sums": "one is of sums over blocks",
    "debiased": "one is the maximum of v, the other of v debiased, and neither follows from the other",
    "stored|stored_eps|eps": "in one of them epsilon was added before the maximum, and cannot be taken out",
    "steps": "the learning rate is inside one of them, and it varied, or its value is not known",
    "basis": "one is in another basis",
    "blocks": "one stands for blocks of the other",
    "scaled": "one is of updates that were divided by their size before",
    "changed": "one is of what another link made of the gradient",
}
