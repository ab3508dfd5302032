"""Former addresses: modules that have moved, as pickles of earlier versions name them.

A pickle names what it was made with by module and name. So an old pickle loads for as long
as its modules can be found here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from adam_tx._core.call import Call as Call
from adam_tx._core.call import make as _call  # pyright: ignore[reportUnusedImport]  # noqa: F401


def _make_anew(call: Call) -> Any:  # pyright: ignore[reportUnusedFunction]
    return call().implementation


def register(moved: Mapping[str, str]) -> None:
    """Find modules under their former names, too.

    Args:
      moved: the name of today, by the former one.
    """
    for former, today in moved.items():
        sys.modules.setdefault(former, sys.modules[today])
