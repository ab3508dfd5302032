"""`SharedImporter`: what several parameters share, which are counts, debiasing weights and other numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adam_tx._core.paths import some
from adam_tx.state.arrays import Array, number, same
from adam_tx.state.averages import uncounted, unknown_decay
from adam_tx.state.conversion import misfit
from adam_tx.state.debiasing import Decay, as_pair
from adam_tx.state.entries import SharedEntry
from adam_tx.state.importer import StateImporter
from adam_tx.state.roles import COUNT, GATHERED, GATHERED_STEPS, GATHERED_UPDATES, Key, Role


class SharedImporter:
    """Takes what several parameters share, once an importer has what is kept of each.

    Attributes:
      figures: the owners of what counts or measures in the new state.
    """

    def __init__(self, importer: StateImporter) -> None:
        self.figures: set[str] = set()
        self._importer = importer
        self._exported = importer.exported
        self._averages = importer.averages
        self._report = importer.report
        self._policy = importer.policy

    def take(self, entry: SharedEntry) -> None:
        """A count, a debiasing weight, or another number."""
        names = dict.fromkeys((*entry.role.known_as, *entry.also))
        paths = self._paths(entry) if self._exported.by_path & names.keys() else [""]
        found = {path: key for path in paths if (key := self._key(names, path)) is not None}
        self._exported.use(*found.values())
        key = Key(entry.role)
        if entry.of == "figure":
            self.figures.add(entry.role.owner)
        if entry.of in ("recipe", "update"):
            self._tell_recipe(entry)
        elif self._policy.starts(key) or (entry.is_weight and entry.leaves and not self._has_average(entry)):
            self._report.tell("started fresh", key)
        elif len(found) < len(paths):
            self._make(entry)
        else:
            values = {path: self._exported.number(source) for path, source in found.items()}
            known = {path: value for path, value in values.items() if value is not None}
            if len(known) == len(values) and self._fill(entry, known):
                source = next(iter(found.values()))
                is_same = source.role.unnumbered == key.role.unnumbered
                self._report.tell("kept" if is_same else "converted", key, source)

    def _paths(self, entry: SharedEntry) -> list[str]:
        return [self._importer.leaves.paths[leaf] for leaf in sorted(entry.leaves)] or [""]

    def _key(self, names: Iterable[Role], path: str) -> Key | None:
        """The key of the first of these for a parameter, or of what all share."""
        keys = (key for role in names for key in (Key(role, path), Key(role)))
        return next((key for key in keys if key in self._exported.entries), None)

    def _has_average(self, entry: SharedEntry) -> bool:
        """Whether one of the averages that a weight belongs to was kept."""
        return not entry.averages or any((entry.averages, leaf) in self._importer.filled for leaf in entry.leaves)

    def _tell_recipe(self, entry: SharedEntry) -> None:
        """A number of the recipe stays what the recipe says; say so where the old state had another."""
        if entry.of == "update" or Key(entry.role) not in self._exported.entries:
            return
        old, now = self._exported.number(Key(entry.role)), np.asarray(self._importer.old[entry.values])
        if old is not None and (old.shape != now.shape or not np.allclose(old, now, rtol=1e-6, atol=0.0)):
            self._report.keep_recipe(entry.role.field, now, old)

    def _make(self, entry: SharedEntry) -> None:
        """What is missing: a weight from the count, or as `init` starts it where that is allowed."""
        if entry.is_weight and (not self._policy.recipe or self._has_average(entry)):
            self._weigh(entry)
        elif self._policy.recipe or entry.of == "figure":
            self._report.tell("started fresh", Key(entry.role))
        else:
            self._report.wrong.append(f"{entry.role} is missing")

    def _weigh(self, entry: SharedEntry) -> None:
        """A weight from the count, and from the decay that made what it is the weight of."""
        values: dict[str, Array] = {}
        for leaf in sorted(entry.leaves):
            path = self._importer.leaves.paths[leaf]
            source = self._source(entry, leaf)
            if source is None and entry.is_of_average:
                continue  # it starts fresh
            count = self._averages.updates(path)
            if count is None:
                role = source.role if source else entry.role
                self._report.wrong.append(f"{entry.role} and count are missing{uncounted(role)}")
                return
            decay = self._averages.decay(source) if source and entry.is_of_average else self._own_decay(entry)
            if decay is None and count:
                role = source.role if source else Role.parse(entry.argument)
                self._report.wrong.append(f"{entry.role} is missing{unknown_decay(role)}")
                return
            values[path] = np.zeros(2) if decay is None or not count else self._averages.weight(decay, count)
        if values and self._fill(entry, values):
            self._report.tell("from the count", Key(entry.role))

    def _own_decay(self, entry: SharedEntry) -> Decay | None:
        """The decay that a link looks ahead with, which nothing was averaged by."""
        decay: Any = entry.link and entry.link.hyperparams[entry.argument]
        return decay if callable(decay) and not isinstance(decay, jax.Array) else number(decay)

    def _source(self, entry: SharedEntry, leaf: int) -> Key | None:
        """The key of the average of a parameter that a weight belongs to."""
        filled = self._importer.filled.get((entry.averages, leaf), [])
        own = [key for average, key in filled if average.decay == entry.decay]
        return next(iter(own or [key for _, key in filled]), None)

    def _fill(self, entry: SharedEntry, values: Mapping[str, Array]) -> bool:
        """Put one value in the place of what several parameters share; whether it fits there."""
        first = next(iter(values.values()))
        if different := [path for path, value in values.items() if not same(value, first)]:
            listing = ", ".join(f"{path} {values[path]}" for path in (next(iter(values)), *different)[:4])
            self._report.wrong.append(
                f"{entry.role} is one for all parameters of a link, but came as {listing}; give those that differ a "
                "state of their own, with optax.partition"
            )
            return False
        like = self._importer.old[entry.values]
        if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
            like = jax.random.key_data(like)
        elif entry.is_weight and first.shape == like.shape:
            first = as_pair(first.astype(np.float64), like.dtype)
        if misfits := misfit(first, like) or self._out_of_range(entry, first, like):
            self._report.wrong.append(f"{entry.role} {misfits}")
            return False
        self._importer.new[entry.values] = first
        if np.any(first):
            self._note_young(entry, first)
        return True

    def _out_of_range(self, entry: SharedEntry, value: Array, like: jax.Array) -> str:
        """Why a value cannot be, if it cannot."""
        if entry.is_count and like.dtype.kind == "i" and np.any(value < 0):
            return f"is {value}, but must be at least 0"
        if entry.is_weight and not 0 <= np.sum(value) <= 1 + 4 * np.finfo(like.dtype).eps:
            return f"is {np.sum(value)}, but a debiasing weight must be from 0 to 1"
        made = self._averages.updates(self._paths(entry)[0]) if entry.is_weight else None
        if made and not np.any(value) and self._has_average(entry) and not self._policy.starts(Key(COUNT)):
            return f"is 0, but its average was made of {made} updates; take it away to have it computed from the count"
        return self._too_many(entry, int(value)) if entry.below is not None and value else ""

    def _too_many(self, entry: SharedEntry, steps: int) -> str:
        """Why the gradients of so many steps cannot be gathered, if they cannot."""
        assert entry.below is not None
        updates = self._key((GATHERED_UPDATES, COUNT), self._paths(entry)[0])
        count = self._exported.number(updates) if updates else None
        most = entry.below(0 if count is None else int(np.max(count)))
        if steps < most:
            return ""
        return (
            f"is {steps}: the gradients of so many steps are gathered, but an update is made of {most}; go on with the "
            f"old recipe until it has made its update, or lose them, fresh='{GATHERED_STEPS}|{GATHERED}'"
        )

    def _note_young(self, entry: SharedEntry, value: Array) -> None:
        """Say where what starts from zero is taken for older, because it shares a weight or a count."""
        importer = self._importer
        paths = importer.leaves.paths
        started = [leaf for leaf in sorted(entry.leaves) if (entry.averages, leaf) in importer.started]
        if entry.is_weight and entry.averages and started:
            role = importer.started[entry.averages, started[0]]
            self._report.notes.append(
                f"note: {role} of {some([paths[leaf] for leaf in started])} starts from zero, but is "
                f"debiased by {entry.role} like that of older parameters: its first steps are of another length. Where "
                "that matters, give new parameters a state of their own, by a pair (name, optimizer) in adam_tx.groups."
            )
        if entry.role != COUNT:
            return
        for role, leaves in importer.young.items():
            if own := [leaf for leaf in leaves if leaf in entry.leaves]:
                self._report.notes.append(
                    f"note: {role} of {some([paths[leaf] for leaf in own])} starts from zero, but "
                    f"its count is {value}, so a correction of its start, or a first look at the gradient, is over. "
                    "Start count fresh too, where that matters."
                )

    def finish(self) -> None:
        """What can only be said once all is there."""
        for key in self._averages.weights:
            self._exported.use(key)
            self._report.tell("from the count", key.shared)
        for role, factors in self._averages.factors.items():
            size = " to ".join(f"{by:.3g}" for by in sorted({min(factors), max(factors)}))
            self._report.notes.append(
                f"note: {role} was multiplied by {size}: another decay made it, and the new optimizer takes it for an "
                "average by its own decay, of as many updates."
            )
        steps = self._exported.entries.get(Key(GATHERED_STEPS), 0)
        if self._exported.is_left(GATHERED_STEPS) and np.any(steps):
            self._report.notes.append(f"note: the gradients of {steps} steps, gathered for the next update, are lost.")
