"""`Mask`: which parameters are meant."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import jax
import optax

if TYPE_CHECKING:
    Mask = optax.Params | Callable[[optax.Params], optax.Params] | None
    """Which parameters are meant: a tree of booleans, or a function from params to one; None for all."""
else:
    Mask = Any  # the annotations of links are read, and inside optax.Params is a name that only chex can resolve


def mask_of(mask: Mask, params: object) -> object:
    """The mask for these parameters: what a function makes of them, or the tree that it is.

    A tree may be callable too, as a module is whose leaves are booleans; only a function's leaves are callable.
    """
    return mask(cast(optax.Params, params)) if callable(mask) and all(map(callable, jax.tree.leaves(mask))) else mask


def marked(mark: object) -> bool:
    """What a leaf of a mask says."""
    if isinstance(mark, str):  # which would be True, whatever it says
        raise TypeError(mark)
    return bool(mark)
