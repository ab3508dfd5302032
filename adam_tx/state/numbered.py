"""`NumberedState`: a state with numbers in the place of its arrays, beside the parameters that it is of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adam_tx._core.leaves import Leaves, Tree, is_absent
from adam_tx.describe import visit
from adam_tx.state.arrays import number, shapes_of
from adam_tx.state.entries import LeafEntry, SharedEntry, StateEntry
from adam_tx.state.roles import Role


class Numbered(jax.ShapeDtypeStruct):
    """In place of an array of a state: its shape, and its number among the leaves."""

    def __init__(self, like: Any, number: int) -> None:
        super().__init__(jnp.shape(like), like.dtype if hasattr(like, "dtype") else jnp.result_type(like))
        self.number = number
        self.concrete = like


class NumberedState:
    """What is known of a numbered state, whoever made it.

    Attributes:
      leaves: the parameters.
      arrays: the arrays of the state.
      shapes: the shapes of the parameters, by number.
      nothing: the numbers of arrays that only stand where there is nothing to keep.
      varying: the identities of arrays whose values of now say nothing of those before.
    """

    def __init__(self, leaves: Leaves, arrays: Sequence[Any]) -> None:
        self.leaves = leaves
        self.arrays = arrays
        self.nothing: set[int] = set()
        self.varying: set[int] = set()
        self.shapes = shapes_of(leaves)
        self._top = _top(leaves.given("params"))

    def leaves_of(self, part: visit.Part) -> frozenset[int]:
        """The numbers of the parameters that a part of the transformation has."""
        present = frozenset(self.leaves.present)
        return present if part.leaves is None else part.leaves & present

    def decay(self, value: object) -> float | None:
        """A decay, if it is known and does not vary; zero where a schedule begins so, after which weights are one."""
        if callable(value) and not isinstance(value, jax.Array):
            return 0.0 if number(value(jnp.zeros((), jnp.int32))) == 0.0 else None
        return None if id(value) in self.varying else number(value)

    def column(self, tree: Tree, name: str) -> list[Any]:
        """What stands in a tree for each parameter; an error if it is of others."""
        try:
            return self.leaves.column(tree, name, optional=True)
        except ValueError as error:
            problem = str(error).partition(". Give")[0]
            raise ValueError(
                f"opt_state: what {name} keeps is not of these params: {problem}. Give the params that it was made "
                "for; old_params, if they are others now."
            ) from None

    def unknown(self, role: Role, tree: Tree, leaves: frozenset[int]) -> Iterator[StateEntry]:
        """The arrays in a tree of which no more is known: by parameter where it is like the params, else by name."""
        if isinstance(tree, Numbered) and not self._is_the_parameter(tree):
            yield SharedEntry(role, leaves, tree.number)
        elif (column := self._like_params(tree)) is not None:
            yield from (LeafEntry(role, i, node.number) for i, node in enumerate(column) if not is_absent(node))
        else:

            def is_below(node: object) -> bool:
                return node is not tree

            for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_below):
                yield from self.unknown(role.part(jax.tree_util.keystr(path, simple=True)), node, leaves)

    def _like_params(self, tree: Tree) -> list[Any] | None:
        if is_absent(tree) or _top(tree) != self._top:  # asked at once: some states have a small tree a parameter
            return None
        found = jax.tree.leaves(tree, is_leaf=is_absent)
        if len(found) != len(self.leaves) and not any(map(is_absent, found)):
            return None
        try:
            column = self.leaves.column(tree, "", optional=True)
        except ValueError:
            return None
        nodes = [node for node in column if not is_absent(node)]
        return column if nodes and all(isinstance(node, Numbered) for node in nodes) else None

    def _is_the_parameter(self, array: Numbered) -> bool:
        """Whether one array, which is no number, is like the one parameter that is the whole tree."""
        return array.ndim > 0 and self._like_params(array) is not None and array.shape == self.shapes[0]


def _top(tree: Tree) -> Any:
    """The container that a tree is, without what is in it."""
    return jax.tree.structure(tree, is_leaf=lambda node: node is not tree)
