"""Flax's boxes: NNX's variables and Linen's partitioned parameters, each of which holds an array under `value`.

They are nodes of a tree, so what only maps over leaves need not know them. But `nnx.Optimizer` puts a state into boxes
of other classes than the parameters', which are different trees then, and a path ends with `value` for every box.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax

_CLASSES = {"flax.nnx": "Variable", "flax.core.meta": "AxisMetadata"}


def _kinds() -> tuple[type, ...]:
    """The classes of boxes, as far as the program has imported them."""
    flax = [(sys.modules.get(module), name) for module, name in _CLASSES.items()]
    return tuple(getattr(module, name) for module, name in flax if hasattr(module, name))


def unboxed(tree: Any) -> Any:
    """The tree with what boxes hold in their places."""
    if not (kinds := _kinds()):
        return tree

    def opened(node: Any) -> Any:
        return unboxed(_held(node)) if isinstance(node, kinds) else node

    return jax.tree.map(opened, tree, is_leaf=lambda node: isinstance(node, kinds))


def boxed_like(tree: Any, like: Any) -> Any:
    """The leaves of a tree in the boxes of another one, from which these were taken."""
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(tree))


def leaves_with_paths(tree: Any, is_leaf: Callable[[Any], bool]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The leaves, each with its path, in which boxes do not show."""
    kinds = _kinds()

    def ends(node: object) -> bool:
        return is_leaf(node) or isinstance(node, kinds)

    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=ends):
        if isinstance(node, kinds):
            yield from (((*path, *rest), leaf) for rest, leaf in leaves_with_paths(_held(node), is_leaf))
        else:
            yield path, node


def _held(box: Any) -> Any:
    (value,), _ = jax.tree_util.default_registry.flatten_one_level(box)  # pyright: ignore[reportGeneralTypeIssues]
    return value
