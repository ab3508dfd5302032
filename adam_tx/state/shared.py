"""What several parameters share: counts, debiasing weights, and other numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adam_tx._core.trees import some
from adam_tx.state import weights
from adam_tx.state.export import NUMBERED, key_of, keys_of_count, same
from adam_tx.state.lookalikes import Array, misfit
from adam_tx.state.naming import AVERAGES, number
from adam_tx.state.reading import Reading, role_of
from adam_tx.state.roles import OfLeaf, OfMany

_ROUNDING = 1e-4
"""What Optax's own correction errs by: in float32 it has 1 - 0.999 to 5e-5."""


class Shared:
    """Takes what several parameters share, once a reading has what is kept of each."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._weights: dict[tuple[Any, int], Array] = {}

    def take(self, part: OfMany) -> None:
        """A count, a debiasing weight, or another number."""
        reading, name, paths = self._reading, str(part.role), self._paths(part)
        names = dict.fromkeys((*keys_of_count(name), *part.also))
        found = {path: key for path in paths if (key := self._key(names, path)) is not None}
        reading.use(*found.values())
        reading.figures |= {name.partition(".")[0]} if part.of == "figure" else set()
        if part.of in ("recipe", "update"):
            self._tell_recipe(part, name)
        elif reading.choice.starts(name) or (part.link is not None and part.leaves and not self._has_average(part)):
            reading.account.start(name)
        elif len(found) < len(paths):
            self._make(part, name)
        else:
            source = next(iter(found.values()))
            elsewhere = NUMBERED.sub("", role_of(source)) != NUMBERED.sub("", name)
            tell = functools.partial(reading.account.convert, source=source) if elsewhere else reading.account.keep
            self._share(part, {path: reading.number(key) for path, key in found.items()}, tell)

    def _paths(self, part: OfMany) -> list[str]:
        return [self._reading.walk.paths[leaf] for leaf in sorted(part.leaves)] or [""]

    def _key(self, names: Mapping[str, Any] | Sequence[str], path: str) -> str | None:
        """The key of the first of these for a parameter, or of what all share."""
        keys = [key for name in names for key in (key_of(name, path), name)]
        return next((key for key in keys if key in self._reading.exported), None)

    def _has_average(self, part: OfMany) -> bool:
        """Whether one of the averages that a weight belongs to was kept."""
        return not part.averages or any((part.averages, leaf) in self._reading.kept for leaf in part.leaves)

    def _tell_recipe(self, part: OfMany, name: str) -> None:
        """A number of the recipe stays what the recipe says; say so where the old state had another."""
        if part.of == "update" or name not in self._reading.exported:
            return
        old, now = self._reading.number(name), np.asarray(self._reading.old[part.values])
        if old is not None and (old.shape != now.shape or not np.allclose(old, now, rtol=1e-6, atol=0.0)):
            self._reading.account.own(name.rpartition(".")[2], now, old)

    def _make(self, part: OfMany, name: str) -> None:
        """What is missing: a weight from the count, or as `init` starts it where that is allowed."""
        reading = self._reading
        if part.link is not None and (not reading.choice.recipe or self._has_average(part)):
            self._weigh(part, name)
        elif reading.choice.recipe or part.of == "figure":
            reading.account.start(name)
        else:
            reading.wrong.append(f"{name} is missing")

    def _weigh(self, part: OfMany, name: str) -> None:
        """A weight from the count, and from the decay that made what it is the weight of."""
        reading, values = self._reading, dict[str, Any]()
        for leaf in sorted(part.leaves):
            path, source = reading.walk.paths[leaf], self._source(part, leaf)
            if source is None and part.is_of_average:
                continue  # it starts fresh
            counted = self._key(("count",), path)
            if counted is None:
                reading.wrong.append(f"{name} and count are missing{_uncounted(role_of(source or name))}")
                return
            if (count := self._updates(counted)) is None:
                return
            decay = reading.decay_of(role_of(source), path) if source and part.is_of_average else self._own(part)
            if decay is None and count:
                role = role_of(source or "") or part.argument
                reading.wrong.append(f"{name} is missing{_asked(role)}")
                return
            values[path] = self._weight(decay, count) if count else np.zeros(2)
        if values:
            self._share(part, values, reading.account.compute)

    def _own(self, part: OfMany) -> Any:
        """The decay that a link looks ahead with, which nothing was averaged by."""
        decay = part.link and part.link.hyperparams[part.argument]
        return decay if callable(decay) and not isinstance(decay, jax.Array) else number(decay)

    def _source(self, part: OfMany, leaf: int) -> str | None:
        """The key of the average of a parameter that a weight belongs to."""
        kept = self._reading.kept.get((part.averages, leaf), [])
        own = [key for average, key in kept if average.decay == part.decay]
        return next(iter(own or [key for _, key in kept]), None)

    def _share(self, part: OfMany, values: Mapping[str, Any], tell: Callable[[str], None]) -> None:
        """Put one value in the place of what several parameters share."""
        name, first, wrong = str(part.role), next(iter(values.values())), self._reading.wrong
        if any(value is None for value in values.values()):
            return
        if different := [path for path, value in values.items() if not same(value, first)]:
            listing = ", ".join(f"{path} {values[path]}" for path in (next(iter(values)), *different)[:4])
            wrong.append(
                f"{name} is one for all parameters of a link, but came as {listing}; give those that differ a state of "
                "their own, with optax.partition"
            )
            return
        like = self._reading.old[part.values]
        if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
            like = jax.random.key_data(like)
        elif part.link is not None and first.shape == like.shape:
            first = weights.pair(first.astype(np.float64), like.dtype)
        if misfits := misfit(first, like) or self._out_of_range(part, name, first, like):
            wrong.append(f"{name} {misfits}")
            return
        self._reading.new[part.values] = first
        tell(name)
        if part.link is not None and np.any(first):
            self._note_young(part, name)
        if name == "count" and np.any(first):
            self._note_first(part, first)

    def _out_of_range(self, part: OfMany, name: str, value: Array, like: Any) -> str:
        """Why a value cannot be, if it cannot."""
        if "count" in name and like.dtype.kind == "i" and np.any(value < 0):
            return f"is {value}, but must be at least 0"
        if part.link is not None and not 0 <= np.sum(value) <= 1 + 4 * np.finfo(like.dtype).eps:
            return f"is {np.sum(value)}, but a debiasing weight must be from 0 to 1"
        if part.below is None or not value:
            return ""
        updates = self._updates(self._key(("MultiSteps.gradient_step", "count"), self._paths(part)[0]))
        most = part.below(updates or 0)
        if value < most:
            return ""
        return (
            f"is {value}: the gradients of so many steps are gathered, but an update is made of {most}; go on with the "
            "old recipe until it has made its update, or lose them, fresh='MultiSteps.mini_step|MultiSteps.acc_grads'"
        )

    def _note_young(self, part: OfMany, name: str) -> None:
        """Say where an average starts from zero that is debiased as if it were older."""
        reading = self._reading
        started = [leaf for leaf in sorted(part.leaves) if part.averages and (part.averages, leaf) in reading.started]
        if started:
            role = reading.started[part.averages, started[0]]
            reading.account.note(
                f"note: {role} of {some([reading.walk.paths[leaf] for leaf in started])} starts from zero, but is "
                f"debiased by {name} like that of older parameters: its first steps are of another length. Give new "
                "parameters a chain of their own, with optax.partition, where that matters."
            )

    def _note_first(self, part: OfMany, count: Array) -> None:
        """Say where what starts from zero is taken for old by the count."""
        for role, leaves in self._reading.young.items():
            if own := [leaf for leaf in leaves if leaf in part.leaves]:
                self._reading.account.note(
                    f"note: {role} of {some([self._reading.walk.paths[leaf] for leaf in own])} starts from zero, but "
                    f"its count is {count}, so a correction of its start, or a first look at the gradient, is over. "
                    "Start count fresh too, where that matters."
                )

    def finish(self) -> None:
        """What can only be said once all counts are there."""
        self._correct()
        gathered = "MultiSteps.mini_step"
        steps = self._reading.exported.get(gathered, 0)
        if self._reading.is_left(gathered) and np.any(steps):
            self._reading.account.note(
                f"note: the gradients of {steps} steps, which were gathered for the next update, are lost."
            )

    def _correct(self) -> None:
        """Make averages that are corrected by a count and a decay of now what they are once corrected.

        With another decay than that which made them, or another weight, Optax would correct them by a wrong factor.
        """
        by_role: dict[str, list[float]] = {}
        for part, source in [pair for kept in self._reading.kept.values() for pair in kept]:
            if part.corrected_by is not None and (by := self._correction(part, source)) != 1.0:
                value = self._reading.new[part.values]
                self._reading.new[part.values] = value * np.asarray(by, value.dtype)
                by_role.setdefault(str(part.role), []).append(by)
        for role, factors in by_role.items():
            size = " to ".join(f"{by:.3g}" for by in sorted({min(factors), max(factors)}))
            self._reading.account.note(
                f"note: {role} was multiplied by {size}: it was averaged with another decay than that by which the new "
                "optimizer corrects it from the count. So its corrected value is what it was."
            )

    def _correction(self, part: OfLeaf, source: str) -> float:
        """The factor between what corrects an average now and the weight that it has."""
        reading, path, role = self._reading, self._reading.walk.paths[part.leaf], role_of(source)
        weight, counted = self._weight_key(part, source, path), self._key(("count",), path)
        if weight is not None:
            reading.use(weight)
            reading.account.compute(role_of(weight))
        made, count = self._updates(counted), int(reading.new[part.corrected_by or 0])
        decay = reading.decay_of(role, path)
        if counted is None or (made and not count):
            missing = "is not there" if counted is None else "starts fresh"
            reading.wrong.append(f"{source} is corrected by a count that {missing}{_uncounted(role)}")
        elif made and part.decay is not None and decay is None and weight is None:
            reading.wrong.append(f"{source} is corrected by the count{_asked(role)}")
        elif made and part.decay is not None:
            kept = reading.number(weight) if weight and decay is None else self._weight(decay, made)
            had, wanted = float(np.sum(kept)) if kept is not None else 0.0, 1.0 - part.decay**count
            if had > 0 and abs(wanted - had) > _ROUNDING * wanted:
                return wanted / had
        return 1.0

    def _updates(self, counted: str | None) -> int | None:
        """The number of updates under a key, if it is one."""
        count = None if counted is None else self._reading.number(counted)
        return None if count is None or misfit(count, np.zeros((), np.int32)) else int(count)

    def _weight(self, decay: Any, count: int) -> Array:
        """The weight of an average of so many updates, which most parameters share."""
        if (decay, count) not in self._weights:
            self._weights[decay, count] = weights.of_decay(decay, count)
        return self._weights[decay, count]

    def _weight_key(self, part: OfLeaf, source: str, path: str) -> str | None:
        numbered = role_of(source).partition("_of_")[0].rpartition("_")[2]
        name = f"weight_{AVERAGES[part.averages]}"
        return self._key((f"{name}_{numbered}" if numbered.isdigit() else name,), path)


def _uncounted(role: str) -> str:
    """What to do where it is not known how many updates an average was made of."""
    return (
        f", so it is not known how much of its start from zero is left in {role}: start it fresh, too, fresh='{role}', "
        "or give the number of updates to import_state, as in exported['count'] = 1000"
    )


def _asked(role: str) -> str:
    """What to do where it is not known by which decay something was averaged."""
    return (
        f", and it is not known by which decay {role} was averaged: give that to import_state, as in "
        f"exported['{role}.decay'] = 0.999, a number or a schedule"
    )
