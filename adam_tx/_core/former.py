"""Former addresses: modules that have moved, as pickles of earlier versions name them.

A pickle names what it was made with by module and name. So an old pickle loads for as long
as its modules can be found here. Fields of states that have other names now are in
`states.FORMER`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType

from adam_tx._core.call import Call, make


def register(moved: Mapping[str, str]) -> None:
    """Find what was in a module under its former address, too.

    Args:
      moved: by the former address the modules of today, with spaces between them.
    """
    for former, today in moved.items():
        sys.modules.setdefault(former, _Former(former, today.split()))


class _Former(ModuleType):
    """A module whose contents are in others now."""

    def __init__(self, name: str, today: list[str]) -> None:
        super().__init__(name)
        self._today = today

    def __getattr__(self, name: str) -> object:
        for module in self.__dict__["_today"]:
            if hasattr(sys.modules[module], name):
                return getattr(sys.modules[module], name)
        raise AttributeError(name)

    def __reduce__(self) -> tuple[Callable[[str], ModuleType], tuple[str]]:
        """It is pickled by its name: cloudpickle takes it for what `adam_tx.chain` in a user's function means."""
        return importlib.import_module, (self.__name__,)


_call = make


def _make_anew(call: Call) -> object:  # pyright: ignore[reportUnusedFunction]
    return call().implementation
