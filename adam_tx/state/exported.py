"""`Exported`: the entries of a dict, as a state that is to be made of them looks for them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from adam_tx.state.arrays import NARROW, Array
from adam_tx.state.export import of_parameter
from adam_tx.state.policy import ImportPolicy
from adam_tx.state.report import Report
from adam_tx.state.roles import Key, Role


class Exported:
    """The entries by key, and those that were not used so far.

    Args:
      entries: the entries.
      policy: what may be left over.
      report: is told what is wrong with them.

    Attributes:
      entries: the entries that are not wrong.
      by_path: the roles of which there is an entry for a parameter.
      unused: the keys that were not used so far.
    """

    def __init__(self, entries: Mapping[Key, object], policy: ImportPolicy, report: Report) -> None:
        wrong = _wrong_about(entries, policy)
        report.wrong += [f"{key} {problem}" for key, problem in wrong.items()]
        self.entries: dict[Key, Any] = {key: value for key, value in entries.items() if key not in wrong}
        self.by_path = {key.role for key in self.entries if key.path and not key.about}
        self.unused = {key: None for key in self.entries if not key.about}
        self._report = report
        self._of_path: dict[str, list[Key]] = {}
        self._with_decay: dict[Role, list[Role]] = {}
        for key in self.entries:
            if key.about == "decay":
                self._with_decay.setdefault(key.role.unnumbered, []).append(key.role)
            elif not key.about:
                self._of_path.setdefault(key.path, []).append(key)

    def get(self, key: Key) -> Any:
        """The entry of a parameter, or the one that all share; None without either."""
        return of_parameter(self.entries, key)

    def of_path(self, path: str) -> Collection[Key]:
        """The keys of what there is of a parameter."""
        return self._of_path.get(path, ())

    def with_decay(self, role: Role) -> Iterable[Role]:
        """The roles whose decay is given, of this and others that only their number tells apart."""
        return dict.fromkeys(self._with_decay.get(role.unnumbered, ()))

    def lookalike(self, role: Role, path: str) -> Key | None:
        """The key of what looks alike for the same parameter, but is of something else."""
        alike = (key for key in self.of_path(path) if key in self.unused and not key.stored)
        return next((k for k in alike if (k.role.base, k.role.number) == (role.base, role.number)), None)

    def number(self, key: Key) -> Array | None:
        """The array under a key; None if it is not one of numbers, of which the report is told."""
        try:
            value = np.asarray(self.entries[key])
        except Exception as error:  # whatever came makes of being an array
            self._report.wrong.append(f"{key} is no array: {error}")
            return None
        if value.dtype in NARROW:
            value = value.astype(np.float32)
        if value.dtype.kind not in "biufc":
            self._report.wrong.append(f"{key} is no array of numbers, but of {value.dtype}")
            return None
        return value

    def use(self, *keys: Key) -> None:
        """Take note that these are not left over, nor their codes and scales."""
        for key in keys:
            for other in self.of_path(key.path):
                if other._replace(stored="") == key:
                    self.unused.pop(other, None)

    def is_left(self, role: Role) -> bool:
        """Whether there is an entry of this role that was not used so far."""
        return any(key.role == role for key in self.unused)


def _wrong_about(entries: Mapping[Key, object], policy: ImportPolicy) -> dict[Key, str]:
    """What is wrong with entries that say something about others."""
    roles = {key.role for key in entries if not key.about}
    wrong: dict[Key, str] = {}
    value: Any
    for key, value in entries.items():
        if not key.about or callable(value):
            continue
        try:
            number = float(np.asarray(value))
        except (TypeError, ValueError):
            wrong[key] = f"is no number: {value!r}"
            continue
        if key.role not in roles and not policy.drops(key):
            wrong[key] = f"is about {key.role}, which is not there"
        elif key.about == "decay" and not 0.0 <= number < 1.0:
            wrong[key] = f"is {number}, but a decay must be at least 0 and below 1"
    return wrong
