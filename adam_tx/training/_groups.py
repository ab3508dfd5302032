"""`groups`: other settings, or another optimizer, for some of the parameters, chosen by their paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import optax

from adam_tx._core import hyperparams
from adam_tx._core.boxes import leaves_with_paths
from adam_tx._core.call import Call, Reconstructible
from adam_tx._core.leaves import is_absent
from adam_tx._core.paths import PathPattern, Pattern, shape_of, slashed
from adam_tx._link import Link, link_of
from adam_tx.training._grouped import Groups
from adam_tx.training._settings import Optimizer, Setting

PatternT = TypeVar("PatternT", bound=PathPattern)  # the keys of a dict are of one type: all str, all functions, or both


@hyperparams.readable
def groups(
    patterns: Mapping[PatternT, Setting] | Sequence[tuple[PathPattern, Setting]],
    default: Setting | None = None,
    *,
    optimizer: Callable[..., optax.GradientTransformation] | None = None,
    overlap: str = "error",
    **settings: object,
) -> Link:
    """Treat parameters by their paths: with other settings, another optimizer, or not at all.

    A path is its parts joined by slashes, `encoder/layer_0/kernel`. In a pattern `*` stands
    for any text, also with slashes in it; `|` separates alternatives; `*/` at the beginning
    may stand for nothing; what an alternative after `!` matches is taken away again. A
    function `(path, shape) -> bool` is a pattern too.

    Every leaf must be claimed by one pattern, those that none claims are for `default`.
    What is reduced over the tree inside a group, such as a norm, is reduced over the group.

    Args:
      patterns: a pattern and a setting for each group: a dict of other arguments for
        `optimizer`, a transformation, a pair `(name, transformation)`, or "freeze" for
        parameters that get an update of zero and have no state.
      default: the setting of what no pattern claims, `{}` for `optimizer` as it is; None
        if there must be nothing such.
      optimizer: what makes the optimizer of groups that are a dict, such as `adam_tx.adamw`.
      overlap: what becomes of a leaf that several patterns claim. "error" refuses it. "first"
        takes the setting of the pattern that comes first. "merge" freezes it if one of them
        does, else it takes the arguments of all: of one that is there twice the last, and
        that times all its multipliers. An optimizer of its own cannot be merged.
      **settings: its arguments. In a group, `adam_tx.times(x)` multiplies the one that all share, or its
        default.

    Returns:
      A `Link` whose state is a dict: the count, and under the name of an optimizer what it
      keeps, with an array for every leaf of every group that it serves. So a leaf can
      move from one group to another without a change of the state, as long as both keep
      the same. Groups whose averages have other decays keep their own, under the name
      with a number, or that which a pair gives them.

    Raises:
      ValueError: an unknown setting; at `init` and `update`, a leaf that no pattern or two
        claim, and a pattern that claims none, or, under "first", of whose leaves others have all.
        An alternative in it that matches none is warned of.
      TypeError: a setting that is none of these; an argument that `optimizer` does not have,
        or multiplies without a value to multiply.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.groups(
    ...     {"*/bias": {"weight_decay": 0.0}, "embed/*": "freeze"},
    ...     default={},
    ...     optimizer=adam_tx.adamw,
    ...     learning_rate=0.5,
    ...     weight_decay=0.1,
    ... )
    >>> params = {"embed": {"table": jnp.ones(1)}, "dense": {"kernel": jnp.ones(1), "bias": jnp.ones(1)}}
    >>> zero = {"embed": {"table": jnp.zeros(1)}, "dense": {"kernel": jnp.zeros(1), "bias": jnp.zeros(1)}}
    >>> tx.update(zero, tx.init(params), params)[0]["dense"]
    {'bias': Array([-0.], dtype=float32), 'kernel': Array([-0.05], dtype=float32)}
    """
    pairs = _pairs(patterns)
    call = Call(groups, (pairs, default), {"optimizer": optimizer, "overlap": overlap, **settings})
    return link_of(Groups(pairs, default, Optimizer(optimizer, settings), overlap, call))


class matching(Reconstructible):  # noqa: N801
    """A mask of the leaves whose paths match a pattern, for `mask=` and `optax.masked`.

    Args:
      pattern: as in `groups`; "!*/bias|!*/scale" marks all but biases and scales.

    Returns:
      A function from params to a tree of booleans.

    Raises:
      TypeError: a pattern that is neither a str nor a function.
      ValueError: when it is called: a pattern that matches no leaf. An alternative in it that
        matches none is warned of.

    >>> import adam_tx
    >>> adam_tx.matching("!*/bias")({"dense": {"kernel": 1.0, "bias": 1.0}})
    {'dense': {'bias': False, 'kernel': True}}
    """

    def __init__(self, pattern: PathPattern) -> None:
        if not isinstance(pattern, str) and not callable(pattern):
            raise TypeError(f"matching: pattern must be a str or a function (path, shape) -> bool, got {pattern!r}.")
        self._pattern = Pattern(pattern)

    def __call__(self, params: optax.Params) -> optax.Params:
        """The mask for these parameters."""
        treedef = jax.tree.structure(params, is_leaf=is_absent)
        named = [(slashed(path), leaf) for path, leaf in leaves_with_paths(params, is_absent)]
        self._pattern.check("matching", named)
        return jax.tree.unflatten(treedef, [self._pattern.matches(path, shape_of(leaf)) for path, leaf in named])


def _pairs(patterns: Any) -> list[tuple[PathPattern, Setting]]:
    pairs = list(patterns.items()) if isinstance(patterns, Mapping) else list(patterns)
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not (isinstance(pair[0], str) or callable(pair[0])):
            raise TypeError(
                "groups: patterns must be a dict {pattern: setting} or a list of such pairs, each pattern a str or a "
                f"function (path, shape) -> bool, got {pair!r}."
            )
    return [tuple(pair) for pair in pairs]
