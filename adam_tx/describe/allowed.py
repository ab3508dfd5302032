"""What the names in a config may stand for: a part of an optimizer, and nothing that reaches further.

A config may come from a stranger, and a name in it is imported and called. So a name is
looked up only in modules that are allowed. The look-up never leaves them, and what it finds
must have been defined in them.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType

import numpy as np
import optax

_PARTS = (
    *("adam_tx._chain", "adam_tx._link", "adam_tx._parallel", "adam_tx._with_gradient"),
    *("adam_tx.interop.keras", "adam_tx.interop.torch"),
    "adam_tx.links",
    "adam_tx.optimizers",
    "adam_tx.schedules",
    "adam_tx.storage",
    *(
        f"adam_tx.training.{of}"
        for of in ("_average_weights", "_groups", "_guard", "_monitor", "_multipliers", "_stacked")
    ),
    "adam_tx.training.window",
    *("optax._src", "optax.contrib", "optax.schedules", "optax.transforms"),
)
"""Where parts of optimizers are defined. Functions that read configs or files, or compute with trees, are elsewhere."""
_DATA = ("functools:partial", "collections:OrderedDict", *(f"numpy:{kind.__name__}" for kind in np.sctypeDict.values()))
"""Classes from elsewhere that only hold what is given to them."""
_OWN = ("adam_tx", "optax")


@dataclasses.dataclass(frozen=True)
class ConfigPath:
    """A place in a config, and what may be made there.

    Attributes:
      path: the place.
      allow: modules that may be imported beside adam_tx and Optax, with those inside them.
    """

    path: str
    allow: tuple[str, ...]

    def __getitem__(self, key: object) -> ConfigPath:
        return ConfigPath(f"{self.path}[{key!r}]", self.allow)

    def __str__(self) -> str:
        return self.path

    def import_name(self, name: str) -> Callable[..., object] | None:
        """The function of a name such as `adam`, `optax.sgd` or `module:name`; None if nothing has that name.

        Raises:
          ValueError: a module that is not allowed, of which nothing was imported, or what is no part of an optimizer.
        """
        module, qualname = address_of(name)
        allow = (*self.allow, module) if name in _DATA else self.allow
        if not _within(module, (*_OWN, *allow)):
            raise ValueError(
                f"{self}: {name!r} is not made, because what is made is run, and only adam_tx and optax are trusted by "
                f"themselves. If you trust where this config is from, name it: from_config(..., allow=[{module!r}])."
            )
        private = any(part.startswith("_") for part in f"{module}.{qualname}".split("."))
        if private and not _within(module, allow):
            raise self._no_part(name)
        try:
            found = importlib.import_module(module)
        except (ImportError, ValueError):
            return None
        for part in qualname.split("."):
            if not _leads_on(found, allow):
                raise self._no_part(name)
            if (found := getattr(found, part, None)) is None:
                return None
        made = found.func if isinstance(found, functools.partial) else found
        if not callable(found) or not _within(getattr(made, "__module__", None), (*_PARTS, *allow)):
            raise self._no_part(name)
        return found

    def import_maker(self, name: object) -> Callable[..., object]:
        """The function of a name.

        Raises:
          ValueError: nothing has that name, or it is not allowed.
        """
        if isinstance(name, str) and (found := self.import_name(name)) is not None:
            return found
        if isinstance(name, str) and ":" in name:
            module = name.partition(":")[0]
            raise ValueError(f"{self}: {name!r} cannot be imported here; make the module {module!r} importable.")
        known = [*dir(sys.modules["adam_tx"]), *(f"optax.{public}" for public in dir(optax))]
        near = did_you_mean(str(name), known)
        raise ValueError(f"{self}: {name!r} is neither a name of adam_tx nor one of Optax's{near}.")

    def _no_part(self, name: str) -> ValueError:
        return ValueError(
            f"{self}: {name!r} is no part of an optimizer, so a config may not name it; put the object itself there "
            "before from_config, if it is needed."
        )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The question whether the known name nearest to this one was meant, if one is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def address_of(name: str) -> tuple[str, str]:
    """The module of a name, and the name in that module."""
    module, colon, qualname = name.partition(":")
    if colon:
        return module, qualname
    root, _, inside = name.partition(".")
    return ("optax", inside) if root == "optax" else ("adam_tx", name)


def _within(module: object, packages: Sequence[str]) -> bool:
    """Whether this is one of these modules, or inside of one."""
    return isinstance(module, str) and any(f"{module}.".startswith(f"{package}.") for package in packages)


def _leads_on(thing: object, allow: Sequence[str]) -> bool:
    """Whether a name may look inside of this: an allowed module, or a class of one."""
    if isinstance(thing, ModuleType):
        return _within(thing.__name__, (*_OWN, *allow))
    return inspect.isclass(thing) and _within(thing.__module__, (*_PARTS, *allow))
