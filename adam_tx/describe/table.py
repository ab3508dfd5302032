"""What tables are made of: columns that are aligned, and values, shapes and paths in few letters."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import jax
import numpy as np
from jax.core import Tracer

from adam_tx._core.hyperparams import is_schedule
from adam_tx._core.storage import Storage
from adam_tx.describe import closures, source

_WIDEST = 28  # of a hyperparameter that is written out


def aligned(rows: Sequence[Sequence[str]], texts: int) -> list[str]:
    """The lines of a table: so many columns of texts, which begin below each other, then numbers, which end so."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust] * texts + [str.rjust] * (len(widths) - texts)
    lines = ([pad(text, width) for pad, text, width in zip(sides, row, widths, strict=True)] for row in rows)
    return ["  ".join(line).rstrip() for line in lines]


def alike(paths: Sequence[str]) -> Iterator[str]:
    """Paths, those that differ by numbers alone as one."""
    for path, count in Counter(re.sub(r"\d+", "#", path) for path in paths).items():
        yield f"{count}×{path}" if count > 1 else next(p for p in paths if re.sub(r"\d+", "#", p) == path)


def short(value: object) -> str:
    """A hyperparameter in few letters: a function by its name, a schedule by its maker's."""
    if isinstance(value, Tracer):
        return f"<{value.dtype}>"
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return f"{value}" if np.ndim(value) == 0 else f"{value.dtype}{list(value.shape)}"
    if type(value) is float:
        return f"{value:.7g}"
    if type(value) is tuple:
        return f"({', '.join(map(short, cast(tuple[object, ...], value)))})"
    if (dtype := source.scalar_type_name(value)) is not None:
        return dtype
    if isinstance(value, Storage):
        return source.render_call(value.call).split(".")[-1]
    if callable(value):
        call = closures.call_of(value)
        named = closures.address(value if call is None else call.maker)
        name = named[1] if named else source.placeholder(value)
        inside = [] if call is None else [*call.args, *call.kwargs.values()]
        around = any(map(is_schedule, inside))
        return f"{name}({', '.join(map(short, inside))})" if around else name
    text = source.render(value)
    if len(text) <= _WIDEST:
        return text
    if isinstance(value, Mapping):  # such as another framework's description, whose numbers stand in the rows below
        return f"{{{len(cast(Mapping[object, object], value))} keys}}"
    return f"{text[: _WIDEST - 1]}…"


def shapes(tree: object, most: int = 3) -> str:
    """The leaves of a tree by dtype and shape, `float32[10,2] 3×float32[2]`."""
    counts = Counter(f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for leaf in arrays_in(tree))
    shapes = [f"{n}×{shape}" if n > 1 else shape for shape, n in counts.items()]
    more = [f"(+{len(shapes) - most} more)"] if len(shapes) > most else []
    return " ".join(shapes[:most] + more)


def bytes_of(tree: object) -> int:
    """Those of all arrays of a tree."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in arrays_in(tree))


def arrays_in(tree: object) -> list[jax.ShapeDtypeStruct]:
    """The arrays of a tree, or what stands for them."""
    return jax.tree.leaves(tree)
