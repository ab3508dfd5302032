"""`Given`: the trees that an update came with, and what stands in them for a parameter that is not there."""

import functools
from typing import Any

import optax

from adam_tx._core import boxes, paths


def is_absent(node: object) -> bool:
    """Whether the node stands for a parameter that is not there."""
    return node is None or isinstance(node, optax.MaskedNode)


class Given:
    """The trees that came. All `Leaves` that are made of one share it, so that paths are found once."""

    def __init__(self, trees: dict[str, object]) -> None:
        self.trees, self.params = trees, trees.get("params")

    @property
    def first(self) -> object:
        """The one whose leaves these are."""
        return next(iter(self.trees.values()))

    @functools.cached_property
    def keys(self) -> list[Any]:
        """The path of every leaf, as JAX's keys."""
        return [path for path, _ in boxes.leaves_with_paths(self.first, is_absent)]

    @functools.cached_property
    def paths(self) -> list[str]:
        """The same as text."""
        return [paths.slashed(path) for path in self.keys]
