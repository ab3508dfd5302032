"""Which leaf gets what: the table of `summary(tx, params, by="leaf")`."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from adam_tx._core.call import maker_name
from adam_tx._core.leaves import Leaves
from adam_tx.describe import visit
from adam_tx.describe.arrays import arrays_of
from adam_tx.describe.table import aligned, arrays_in, bytes_of, shapes, short

_HEADER = ("leaf", "shape", "group", "settings", "bytes")
_MOST_ROWS = 60


class Assigned(NamedTuple):
    """Leaves that a transformation treats alike, and otherwise than others.

    Attributes:
      label: what they are called.
      settings: what they get, by name.
      leaves: their numbers.
    """

    label: str
    settings: Mapping[str, object]
    leaves: frozenset[int]


@functools.singledispatch
def assigned(tx: Any, part: visit.Part) -> Iterator[Assigned]:
    """The groups of leaves that a transformation makes; none where all are alike. Register a function for a class."""
    del tx
    for member in part.apart.members if part.apart else ():
        if member.leaves is not None and part.link is None:
            yield Assigned(member.name or maker_name(member.tx), {}, member.leaves)


class _Row(NamedTuple):
    """A leaf, or several that are alike.

    Attributes:
      path: its path, with # for numbers in which several differ.
      shape: of each.
      group: the labels of all groups that it is in.
      settings: what it gets.
      bytes: of all that is kept of it.
    """

    path: str
    shape: str
    group: str
    settings: str
    bytes: int


def by_leaf(tx: Any, state: Any, params: Any) -> str:
    """The table, for abstract arrays of a state and of parameters."""
    leaves = _leaves(tx, state, params)
    elsewhere = bytes_of(state) - sum(leaf.bytes for leaf in leaves)
    numbers = sum(math.prod(leaf.shape) for leaf in arrays_in(params))
    body = [[*row[:-1], f"{row.bytes}"] for row in _folded(leaves)]
    footer = [
        ["of no leaf alone", "", "", "", f"{elsewhere}"],
        ["state", f"of {numbers} numbers", "", "", f"{bytes_of(state)}"],
    ]
    head, *lines = aligned([_HEADER, *body, *footer], texts=len(_HEADER) - 1)
    rule = "-" * max(map(len, lines))
    return "\n".join([head, rule, *lines[: len(body)], rule, *lines[len(body) :]])


def _leaves(tx: Any, state: Any, params: Any) -> list[_Row]:
    """A row for each leaf."""
    tree = Leaves.of_params(params)
    labels: dict[int, list[str]] = {i: [] for i in tree.present}
    settings: dict[int, dict[str, object]] = {i: {} for i in tree.present}

    def enter(part: visit.Part) -> None:
        for group in assigned(part.tx, part):
            for i in group.leaves & labels.keys() & (part.leaves or labels.keys()):
                labels[i].append(group.label)
                settings[i] |= group.settings

    visit.visit(tx, state, enter, tree=tree)
    kept = Counter[str | None]()
    for array in arrays_of(tx, state):
        kept[array.leaf] += bytes_of(array.stored)
    return [
        _Row(
            tree.paths[i],
            shapes(tree.nodes[i]),
            " / ".join(labels[i]),
            ", ".join(f"{name}={short(value)}" for name, value in settings[i].items()),
            kept[tree.paths[i]],
        )
        for i in tree.present
    ]


def _folded(leaves: Sequence[_Row]) -> list[_Row]:
    """Those that are alike but for numbers in their paths as one; if that are many, all of a group."""
    alike: dict[_Row, list[_Row]] = {}
    for leaf in leaves:
        alike.setdefault(leaf._replace(path=re.sub(r"\d+", "#", leaf.path)), []).append(leaf)
    rows = [_row(members, f"{len(members)}×{of_all.path}") for of_all, members in alike.items()]
    if len(rows) <= _MOST_ROWS:
        return rows
    of_group: dict[Hashable, list[_Row]] = {}
    for leaf in leaves:
        of_group.setdefault((leaf.group, leaf.settings), []).append(leaf)
    return [_row(members, f"{members[0].path} and {len(members) - 1} more") for members in of_group.values()]


def _row(leaves: Sequence[_Row], path: str) -> _Row:
    """The row of some leaves."""
    first = leaves[0]
    if len(leaves) == 1:
        return first
    shape = first.shape if all(leaf.shape == first.shape for leaf in leaves) else ""
    return first._replace(path=path, shape=shape, bytes=sum(leaf.bytes for leaf in leaves))
