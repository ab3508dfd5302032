"""`arrays_of`: every array by which a state goes on, with its path and with what knows its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adam_tx._core.boxes import leaves_with_paths
from adam_tx._core.leafwise import Leafwise
from adam_tx._core.leaves import Tree
from adam_tx._core.paths import slashed
from adam_tx._core.states import State
from adam_tx._core.storage import DtypeStorage, Storage, Stored
from adam_tx.describe import visit


class Kept(NamedTuple):
    """An array of a state.

    Attributes:
      path: where it stands in the state, such as `scale_by_rms/nu/dense/kernel`.
      stored: the array, and beside codes their scales.
      storage: what knows its numbers.
      starts_finite: whether it is known that all were so at first.
      leaf: the path of the leaf of which it is kept; None where it is of none.
    """

    path: str
    stored: Stored
    storage: Storage
    starts_finite: bool = False
    leaf: str | None = None

    @property
    def numbers(self) -> jax.Array:
        """The array, or the numbers that its codes stand for."""
        if self.stored.scales is None:
            return self.stored.values
        return self.storage.decode(self.stored, jnp.dtype(jnp.float32))


def arrays_of(tx: object, state: State) -> list[Kept]:
    """Every array by which a state goes on; what is for people to read is left out."""
    found: list[Kept] = []

    def enter(part: visit.Part) -> None:
        apart = part.apart
        own = {"": part.state} if apart is None else apart.own
        told: Sequence[str] = () if part.link is None else part.link.told
        if part.leafwise is not None:
            told = ("scales", *part.leafwise.declaration.slots)
            for name in part.leafwise.declaration.slots if part.state is not None else ():
                found.extend(_slot(part.leafwise, part.state, name, part.place))
        for name, tree in own.items():
            if name not in told:
                found.extend(Kept(path, Stored(x), _AS_IT_IS) for path, x in _arrays(tree, *part.place, name))

    visit.visit(tx, state, enter)
    return found


_AS_IT_IS = DtypeStorage()


def _slot(link: Leafwise, state: Any, name: str, place: Sequence[str]) -> Iterator[Kept]:
    """What is kept of a slot."""
    key = link.scaled.get(name)
    scales = {} if key is None else dict(_arrays(state.scales[key]))
    finite = link.rule.starts_finite(name)
    for leaf, x in _arrays(getattr(state, name)):
        path = "/".join(filter(None, (*place, name, leaf)))
        yield Kept(path, Stored(x, scales.get(leaf)), link.storage[name], finite, leaf)


def _arrays(tree: Tree, *place: str) -> Iterator[tuple[str, Any]]:
    """The arrays of a tree with their paths."""
    for path, leaf in leaves_with_paths(tree, lambda _: False):
        yield "/".join(filter(None, (*place, slashed(path)))), leaf
