"""What several parameters share: counts, debiasing weights, and other numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adam_tx._core.leaves import some
from adam_tx.state import weights
from adam_tx.state.averages import asked, uncounted
from adam_tx.state.export import NUMBERED, key_of, keys_of_count, same
from adam_tx.state.lookalikes import Array, misfit
from adam_tx.state.naming import number
from adam_tx.state.reading import Reading, role_of
from adam_tx.state.roles import OfMany


class Shared:
    """Takes what several parameters share, once a reading has what is kept of each."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def take(self, part: OfMany) -> None:
        """A count, a debiasing weight, or another number."""
        reading, name = self._reading, str(part.role)
        names = dict.fromkeys((*keys_of_count(name), *part.also))
        paths = self._paths(part) if reading.by_path & names.keys() else [""]
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
        return [self._reading.leaves.paths[leaf] for leaf in sorted(part.leaves)] or [""]

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
            path, source = reading.leaves.paths[leaf], self._source(part, leaf)
            if source is None and part.is_of_average:
                continue  # it starts fresh
            if (count := reading.averages.updates(path)) is None:
                reading.wrong.append(f"{name} and count are missing{uncounted(role_of(source or name))}")
                return
            decay = reading.averages.decay(role_of(source), path) if source and part.is_of_average else self._own(part)
            if decay is None and count:
                reading.wrong.append(f"{name} is missing{asked(role_of(source or '') or part.argument)}")
                return
            values[path] = reading.averages.weight(decay, count) if count else np.zeros(2)
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
        made = self._reading.averages.updates(self._paths(part)[0]) if part.link is not None else None
        if made and not np.any(value) and self._has_average(part) and not self._reading.choice.starts("count"):
            return f"is 0, but its average was made of {made} updates; take it away to have it computed from the count"
        if part.below is None or not value:
            return ""
        updates = self._key(("MultiSteps.gradient_step", "count"), self._paths(part)[0])
        count = self._reading.number(updates) if updates else None
        most = part.below(0 if count is None else int(np.max(count)))
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
                f"note: {role} of {some([reading.leaves.paths[leaf] for leaf in started])} starts from zero, but is "
                f"debiased by {name} like that of older parameters: its first steps are of another length. Where "
                "that matters, give new parameters a state of their own, by a pair (name, optimizer) in adam_tx.groups."
            )

    def _note_first(self, part: OfMany, count: Array) -> None:
        """Say where what starts from zero is taken for old by the count."""
        for role, leaves in self._reading.young.items():
            if own := [leaf for leaf in leaves if leaf in part.leaves]:
                self._reading.account.note(
                    f"note: {role} of {some([self._reading.leaves.paths[leaf] for leaf in own])} starts from zero, but "
                    f"its count is {count}, so a correction of its start, or a first look at the gradient, is over. "
                    "Start count fresh too, where that matters."
                )

    def finish(self) -> None:
        """What can only be said once all is there."""
        reading, gathered = self._reading, "MultiSteps.mini_step"
        for key in reading.averages.weights:
            reading.use(key)
            reading.account.compute(role_of(key))
        for role, factors in reading.averages.factors.items():
            size = " to ".join(f"{by:.3g}" for by in sorted({min(factors), max(factors)}))
            reading.account.note(
                f"note: {role} was multiplied by {size}: another decay made it, and the new optimizer takes it for an "
                "average by its own decay, of as many updates."
            )
        steps = reading.exported.get(gathered, 0)
        if reading.is_left(gathered) and np.any(steps):
            reading.account.note(f"note: the gradients of {steps} steps, gathered for the next update, are lost.")
