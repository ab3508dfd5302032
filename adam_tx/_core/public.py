"""What a module shows of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def shows(names: Sequence[str]) -> Callable[[], list[str]]:
    """A `__dir__` for a module, which completion asks: its public names alone."""
    return lambda: [*names, "__all__", "__doc__", "__name__"]
