"""`import_state`: the state of a transformation from a flat dict of arrays, by role and parameter."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_tx._core import blocks
from adam_tx._core.paths import Pattern
from adam_tx._core.storage import Stored
from adam_tx._core.trees import Walk, some
from adam_tx.state import weights
from adam_tx.state.account import Account
from adam_tx.state.export import NARROW, key_of, keys_of_count, raw_keys
from adam_tx.state.roles import OfLeaf, OfMany, Role, parts_of

Exported = Mapping[str, Any]
"""A state by role and parameter; see `export_state`."""


def import_state(
    tx: optax.GradientTransformation,
    params: optax.Params,
    exported: Exported,
    *,
    fresh: str = "",
    drop: str = "",
    report: Callable[[str], object] | None = print,
) -> optax.OptState:
    """The state of a transformation from what `export_state` or another framework gave.

    Its structure, dtypes and shardings are those of `tx.init(params)`. Moments go through
    float32; eight-bit ones are taken as they are if both sides store them so. A debiasing
    weight that is not there is computed from the count and the decay.

    Args:
      tx: the transformation that is to go on.
      params: the parameters.
      exported: the dict; see `export_state` for its keys.
      fresh: a pattern as for `adam_tx.groups`, of roles or whole keys that may be missing
        and then start as `init` starts them: `"nu_max"`, `"*/new_head/*"`, `"*"`.
      drop: such a pattern of what may be left over.
      report: what to do with the text that says what was started fresh, converted or
        dropped; None for nothing. It is called only if there is any.

    Returns:
      The state.

    Raises:
      ValueError: what is missing, left over, of another shape or no number, each named; a
        quantity that looks alike but is another; parameters of one link with different counts.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> import optax
    >>> params = {"kernel": jnp.ones(2)}
    >>> old, new = optax.adam(1e-3), adam_tx.adamw(1e-3)
    >>> state = adam_tx.import_state(new, params, adam_tx.export_state(old.init(params), params, old))
    >>> list(state)
    ['bias_correction', 'count', 'scale_by_momentum', 'scale_by_rms']
    """
    state, account = imported(tx, params, exported, Choice(fresh, drop))
    if report is not None and account.is_worth_telling:
        report(str(account))
    return state


@dataclasses.dataclass(frozen=True)
class Choice:
    """What may be started fresh, and what may be dropped.

    Attributes:
      fresh: a pattern of what may start as `init` starts it, whatever came.
      drop: a pattern of what may be left over.
      recipe: whether the recipe is another, so that what is simply missing starts fresh, and what is left over is
        dropped; only what looks alike and is another quantity needs to be named.
    """

    fresh: str = ""
    drop: str = ""
    recipe: bool = False

    def starts(self, key: str) -> bool:
        """Whether this may start fresh, whatever came."""
        return _names(self.fresh, key)

    def drops(self, key: str) -> bool:
        """Whether this may be left over."""
        return self.recipe or _names(self.drop, key)


def _names(pattern: str, key: str) -> bool:
    """Whether a pattern means this key, or its role."""
    matches = Pattern(pattern or "!*").matches
    return matches(key, ()) or matches(key.partition("/")[0], ())


def imported(tx: Any, params: Any, exported: Any, choice: Choice) -> tuple[Any, Account]:
    """The state, and the account of what became of everything."""
    if not isinstance(exported, Mapping):
        raise TypeError(f"exported must be a dict as export_state gives it, got a {type(exported).__name__}.")
    template = tx.init(params)
    parts = parts_of(tx, template, params)
    leaves, treedef = jax.tree.flatten(template)
    reading = _Reading(Walk.of_params(params), exported, choice, leaves)
    for part in parts:
        if isinstance(part, OfLeaf):
            reading.take(part)
    for part in parts:
        if isinstance(part, OfMany):
            reading.take_shared(part)
    new = reading.finished()
    return treedef.unflatten([_placed(now, old) for now, old in zip(new, leaves, strict=True)]), reading.account


def _placed(new: Any, old: jax.Array) -> jax.Array:
    """The array in the dtype and the place of the one that `init` made."""
    if new is old:
        return old
    if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(new), impl=jax.random.key_impl(old))
    new = new if isinstance(new, jax.Array) else np.asarray(new).astype(old.dtype)
    return jax.device_put(new, old.sharding)


class _Reading:
    """The leaves of a state, as they are found in a dict.

    Attributes:
      account: what became of everything.
    """

    def __init__(self, walk: Walk, exported: Exported, choice: Choice, leaves: Sequence[Any]) -> None:
        self.account = Account()
        self._walk, self._exported, self._choice = walk, exported, choice
        self._old, self._new = leaves, list(leaves)
        self._unused = {key: None for key in exported if not key.endswith(".rate")}
        self._wrong: list[str] = []
        self._kept: set[tuple[str, int]] = set()
        self._started: set[tuple[str, int]] = set()

    def take(self, part: OfLeaf) -> None:
        """The slot of one parameter."""
        key = key_of(part.role, self._walk.paths[part.leaf])
        alike = [] if key in self._exported else self._alike(part.role, key)
        if self._choice.starts(key) and key not in self._exported:
            self._start(key, part)
        elif key in self._exported:
            self._take(part, key, self._number(key))
        elif alike:
            self._convert(part, key, alike[0])
        elif self._choice.recipe:
            self._start(key, part)
        else:
            self._wrong.append(f"{key} is missing")

    def _take(self, part: OfLeaf, key: str, value: np.ndarray[Any, Any] | None, source: str | None = None) -> None:
        """Put a value in the place of a slot, as it is stored where both sides store it so."""
        source = source or key
        raw = raw_keys(part, source) if part.scales is not None else ()
        self._use(
            source, *(f"{source}@{name.partition('@')[2]}" for name in self._exported if name.startswith(f"{source}@"))
        )
        if value is None:
            return
        values, scales = self._old[part.values], None if part.scales is None else self._old[part.scales]
        if wrong := _misfit(value, values, coded=scales is not None):
            if self._choice.starts(key):
                self._start(key, part)
            else:
                self._wrong.append(f"{key} {wrong}")
            return
        if raw and all(name in self._exported for name in raw):
            self._new[part.values], self._new[part.scales] = (np.asarray(self._exported[name]) for name in raw)
        elif part.link is None:
            self._new[part.values] = value
        else:
            wide = np.result_type(np.float32, value.dtype) if value.dtype.kind in "fc" else value.dtype
            put = jax.device_put(value.astype(wide), values.sharding)
            noise = part.link.noise(jnp.full((), -1, jnp.int32), part.leaf, part.slot)
            stored = part.link.storage[part.slot].encode(put, Stored(values, scales), noise)
            self._new[part.values] = stored.values
            if part.scales is not None:
                self._new[part.scales] = stored.scales
        if _is_average(part):
            self._kept.add((_unnumbered(part.role.base), part.leaf))
        self.account.keep(key) if source == key else self.account.convert(key, source)

    def _alike(self, role: Role, key: str) -> list[str]:
        """The keys of what looks alike for the same parameter, but is of something else."""
        path = key.partition("/")[1:]
        return [
            other
            for other in self._unused
            if other.partition("/")[1:] == path and _base(other.partition("/")[0]) == role.base
        ]

    def _convert(self, part: OfLeaf, key: str, source: str) -> None:
        """The value from one of something else, where that can be done exactly."""
        role, had = part.role, source.partition("/")[0]
        value, rate = self._number(source), self._exported.get(f"{had}.rate")
        shape = self._old[part.values].shape
        without_rate = str(role._replace(of=tuple(word for word in role.of if word != "steps")))
        if had == without_rate and role.rate is not None and value is not None:
            self._take(part, key, value * np.asarray(role.rate, value.dtype), source)
        elif _without_steps(had) == str(role) and rate is not None and value is not None:
            self._take(part, key, value / np.asarray(rate, value.dtype), source)
        elif role.of == ("blocks",) and had == role.base and value is not None and blocks.divides(shape, value.shape):
            self._take(part, key, np.asarray(blocks.mean(jnp.asarray(value), shape)), source)
        elif self._choice.starts(key):
            self._start(key, part)
        else:
            self._use(source)
            self._wrong.append(f"{key} is missing, and {source} is another quantity: {_why(role, had)}")

    def take_shared(self, part: OfMany) -> None:
        """A count, a debiasing weight, or another number that several parameters share."""
        name, leaves = str(part.role), sorted(part.leaves)
        found = {leaf: key for leaf in leaves or [None] if (key := self._shared_key(part, leaf)) is not None}
        self._use(*found.values())
        if part.link is not None and leaves and not self._has_average(part):
            if not self._choice.recipe and not self._choice.starts(name) and not found:
                self._wrong.append(f"{name} is missing")
            elif found:
                self.account.start(name)
            return
        if len(found) < len(leaves or [None]):
            self._missing(part, leaves)
            return
        source = next(iter(found.values()))
        elsewhere = name.startswith("steps") and source.startswith("count")
        tell = functools.partial(self.account.convert, source=source) if elsewhere else self.account.keep
        self._share(part, {leaf: self._number(key) for leaf, key in found.items()}, tell)

    def _missing(self, part: OfMany, leaves: list[int]) -> None:
        name = str(part.role)
        if self._choice.starts(name):
            self._start(name)
            return
        counts = {leaf: key for leaf in leaves if (key := self._count_key("count", leaf)) is not None}
        if part.link is not None and len(counts) == len(leaves):
            try:
                dtype = self._old[part.values].dtype
                made = {
                    leaf: weights.after(part.link, part.decay, int(np.asarray(self._exported[key])), dtype)
                    for leaf, key in counts.items()
                }
            except ValueError as error:
                self._wrong.append(f"{name} is missing, and {error}")
                return
            self._share(part, made, self.account.compute)
        elif self._choice.recipe:
            self._start(name)
        else:
            self._wrong.append(f"{name} is missing")

    def _share(self, part: OfMany, values: Mapping[int | None, Any], tell: Callable[[str], None]) -> None:
        """Put one value in the place of what several parameters share."""
        name, first = str(part.role), next(iter(values.values()))
        if any(value is None for value in values.values()):
            return
        if different := [leaf for leaf, value in values.items() if not np.array_equal(value, first)]:
            paths = [f"{self._walk.paths[leaf]} {values[leaf]}" for leaf in (next(iter(values)), *different)[:4]]
            self._wrong.append(
                f"{name} is one for all parameters of a link, but came as {', '.join(paths)}; give those that differ a "
                "state of their own, with optax.partition"
            )
            return
        like = self._old[part.values]
        if part.link is not None and first.shape == (2,):
            first = weights.pair(first.astype(np.float64), like.dtype)
        if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
            like = jax.random.key_data(like)
        if wrong := _misfit(first, like, coded=False):
            self._wrong.append(f"{name} {wrong}")
            return
        self._new[part.values] = first
        tell(name)
        started = sorted(leaf for base, leaf in self._started if leaf in part.leaves and _debiased(base, part))
        young = [self._walk.paths[leaf] for leaf in dict.fromkeys(started)]
        if part.link is not None and young and np.any(first):
            self.account.note(
                f"note: {part.average} of {some(young)} starts from zero, but is debiased by {name} like that of older "
                "parameters: its first steps are of another length. Give new parameters a chain of their own, with "
                "optax.partition, where that matters."
            )

    def _shared_key(self, part: OfMany, leaf: int | None) -> str | None:
        found = (self._count_key(name, leaf) for name in keys_of_count(str(part.role)))
        return next((key for key in found if key is not None), None)

    def _count_key(self, name: str, leaf: int | None) -> str | None:
        keys = [name] if leaf is None else [key_of(name, self._walk.paths[leaf]), name]
        return next((key for key in keys if key in self._exported), None)

    def _has_average(self, part: OfMany) -> bool:
        """Whether one of the averages that a weight belongs to was kept."""
        return any(leaf in part.leaves and _debiased(base, part) for base, leaf in self._kept)

    def _number(self, key: str) -> np.ndarray[Any, Any] | None:
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

    def _start(self, key: str, part: OfLeaf | None = None) -> None:
        self.account.start(key)
        if part is not None and _is_average(part):
            self._started.add((_unnumbered(part.role.base), part.leaf))

    def finished(self) -> list[Any]:
        """The new leaves, if nothing was wrong."""
        for key in self._unused:
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


def _misfit(value: np.ndarray[Any, Any], like: Any, *, coded: bool) -> str:
    """Why a value cannot take the place of another, if it cannot."""
    if value.shape != like.shape:
        return f"has shape {value.shape}, but the state has {like.shape}"
    kind = "f" if coded or like.dtype in NARROW else like.dtype.kind
    if value.dtype.kind == "c" and kind != "c":
        return f"is complex, but the state is {like.dtype}"
    if kind in "iub" and not np.array_equal(value, value.astype(like.dtype)):
        return f"is {value.dtype}, whose values the state's {like.dtype} does not have"
    return ""


def _is_average(part: OfLeaf) -> bool:
    return part.link is None or part.link.kind.slots[part.slot].decay is not None


def _debiased(base: str, part: OfMany) -> bool:
    """Whether a slot is an average that this weight debiases, as `nu_yogi` is a `nu`."""
    return base == part.average or base.startswith(f"{part.average}_")


def _unnumbered(base: str) -> str:
    return re.sub(r"_\d+$", "", base)


def _base(role: str) -> str:
    return role.partition("_of_")[0]


def _without_steps(role: str) -> str:
    return re.sub(r"(_of)?_steps$", "", role)


def _why(role: Role, had: str) -> str:
    """Why one cannot be made of the other."""
    words = {*role.of, *had.partition("_of_")[2].split("_")}
    for word, reason in _REASONS.items():
        if words & set(word.split("|")) and (word != "steps" or _without_steps(had) == _without_steps(str(role))):
            return reason
    return "they are averages of different things"


_REASONS = {
    "debiased": "one is the maximum of v, the other of v debiased, and neither follows from the other",
    "stored|stored_eps|eps": "in one of them epsilon was added before the maximum, and cannot be taken out",
    "steps": "the learning rate is inside one of them, and it varied, or its value is not known",
    "basis": "one is in another basis",
    "blocks": "one stands for blocks of the other",
    "scaled": "one is of updates that were divided by their size before",
    "changed": "one is of what another link made of the gradient",
}
