"""Second moments smaller than the gradient: one number for a block of it, or for its rows and columns.

Each link here is one rule on the core in `_preconditioner.py`, as in
`second_moment.py`; what stands for what is `_blocks.py`.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from optax import ScalarOrSchedule

from adam_tx import _blocks, _numerics, _trees, schedules
from adam_tx._blocks import Shape
from adam_tx._preconditioner import Leaf, Now, Rule, preconditioner
from adam_tx.bias_correction import LogDecay
from adam_tx.chain import Link
from adam_tx.second_moment import ScaleByRmsState

BlockOf = Callable[[str, Shape], Sequence[int]]


def whole_tensor(path: str, shape: Shape) -> Shape:
    """One block: the tensor itself.

    >>> whole_tensor("['dense']['kernel']", (2, 3))
    (2, 3)
    """
    del path
    return shape


def output_unit(path: str, shape: Shape) -> Shape:
    """A block for each output of a kernel laid out as Flax does, outputs last; each element of a vector its own.

    >>> output_unit("['dense']['kernel']", (2, 3)), output_unit("['dense']['bias']", (3,))
    ((2, 1), (1,))
    """
    del path
    return (*shape[:-1], 1) if len(shape) > 1 else (1,) * len(shape)


def scale_by_block_rms(
    decay: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    eps_root: ScalarOrSchedule = 0.0,
    block: BlockOf = whole_tensor,
    total: bool = False,
    debias: bool = False,
    dtype: DTypeLike | None = None,
) -> Link:
    """Divide the updates by a root mean square that a block of the gradient shares.

    With g the gradient and nu, one number a block, from zero::

        nu <- nu + (1 - decay) · (mean |g|² - nu)      sum |g|² if total
        v   = nu / (1 - Π decay)                       if debias, else nu
        u  <- u / (sqrt(v + eps_root) + eps)

    Args:
      decay: in [0, 1): number, 0-d array or schedule of the number of earlier updates.
      eps: added outside the root, in units of the gradient; at least 0.
      eps_root: added inside the root, in units of the gradient squared; at least 0.
      block: `(path, shape) -> shape of a block`, given a leaf's path, such as
        `['dense']['kernel']`, and its shape, which the block's must divide along every
        axis: `whole_tensor`, `output_unit` or your own, for instance
        `(d_model, 1, head_dim)` for a kernel `(d_model, heads, head_dim)`.
      total: average the sum over the block, its norm squared, instead of the mean.
      debias: undo the start from zero before the root is taken.
      dtype: what nu is stored in; None for float32 or wider.

    Returns:
      A `Link` with state `ScaleByRmsState`, which reads the gradient. Not leafwise
      where a block is more than an element.

    Raises:
      ValueError: a number out of range; at `init`, a block that does not divide its leaf.

    Reference: Ginsburg et al., NovoGrad, 2019 (https://arxiv.org/abs/1905.11286);
    Zhang et al., Adam-mini, 2024 (https://arxiv.org/abs/2406.16793).

    >>> import jax.numpy as jnp
    >>> tx = scale_by_block_rms(0.0, total=True)
    >>> grad = jnp.array([3.0, -4.0])
    >>> tx.update(grad, tx.init(grad), grad=grad)[0]
    Array([ 0.6, -0.8], dtype=float32)
    """
    statistic = _blocks.total if total else _blocks.mean

    def rule_at(now: Now) -> Rule:
        def rule(u: Leaf, g: Leaf, nu: Leaf) -> tuple[Leaf, ...]:
            seen = _numerics.saturate(statistic(_numerics.square(g), nu.shape))
            nu = _numerics.ema(nu, seen, now.decay.weight)
            return now.divide(u, _blocks.expand(nu, u.shape)), nu

        return rule

    return preconditioner(
        "scale_by_block_rms",
        ScaleByRmsState,
        rule_at,
        formula=f"v += (1 - decay)({'sum' if total else 'mean'} of a block's |g|² - v); u / (sqrt(v̂ + eps_root) + eps)",
        hyperparams={
            "decay": decay,
            "eps": eps,
            "eps_root": eps_root,
            "block": block,
            "total": total,
            "debias": debias,
            "dtype": dtype,
        },
        shapes={"nu": _blocks_of(block)},
    )


class ScaleByFactoredRmsState(NamedTuple):
    """State of `scale_by_factored_rms`: `nu_row` and `nu_col`, or `nu` where a leaf has no two axes; the rest None."""

    count: jax.Array
    log_decay: LogDecay
    nu_row: Any
    nu_col: Any
    nu: Any


def last_axes(path: str, shape: Shape) -> tuple[int, int] | None:
    """The last two axes, as in PyTorch and Keras.

    >>> last_axes("['kernel']", (2, 3, 4)), last_axes("['bias']", (3,))
    ((1, 2), None)
    """
    del path
    return (len(shape) - 2, len(shape) - 1) if len(shape) > 1 else None


def largest_axes(path: str, shape: Shape, least: int = 128) -> tuple[int, int] | None:
    """The two largest axes, if both have at least 128 elements, as in Optax.

    >>> largest_axes("['kernel']", (256, 3, 512)), largest_axes("['kernel']", (64, 512))
    ((0, 2), None)
    """
    del path
    rows, cols = sorted(sorted(range(len(shape)), key=shape.__getitem__)[-2:]) if len(shape) > 1 else (0, 0)
    return (rows, cols) if rows != cols and min(shape[rows], shape[cols]) >= least else None


def scale_by_factored_rms(
    decay: ScalarOrSchedule | None = None,
    eps: ScalarOrSchedule | None = 0.0,
    *,
    eps_stored: ScalarOrSchedule = 1e-30,
    axes: Callable[[str, Shape], tuple[int, int] | None] = last_axes,
    dtype: DTypeLike | None = None,
) -> Link:
    """Divide the updates by a root mean square kept as its rows and columns: Adafactor's denominator.

    With g the gradient, nu_row its mean square over the columns, nu_col over the rows::

        nu_row <- nu_row + (1 - decay) · (mean over columns of (|g|² + eps_stored) - nu_row)
        nu_col <- nu_col + (1 - decay) · (mean over rows of (|g|² + eps_stored) - nu_col)
        v       = nu_row · nu_col / max(mean nu_row, eps)
        u      <- u / max(sqrt(v), eps)

    A leaf without two axes to factor keeps the whole v instead.

    Args:
      decay: in [0, 1): number, 0-d array or schedule of the number of earlier
        updates; None for Adafactor's `schedules.power_decay(0.8)`.
      eps: the least denominator, in units of the gradient; at least 0 (PyTorch); None
        for the machine epsilon of the precision that a leaf is worked in.
      eps_stored: added to |g|² and kept (the paper, Keras, Optax); at least 0.
      axes: `(path, shape) -> (rows, columns)`, the axes to factor or None: `last_axes`
        (PyTorch, Keras), `largest_axes` (Optax) or your own.
      dtype: what the moments are stored in; None for float32 or wider.

    Returns:
      A `Link` with state `ScaleByFactoredRmsState`, which reads the gradient. Not leafwise.

    Raises:
      ValueError: a number out of range; at `init`, axes that are not two of the leaf's.

    Reference: Shazeer & Stern, Adafactor, 2018 (https://arxiv.org/abs/1804.04235).

    >>> import jax.numpy as jnp
    >>> tx = scale_by_factored_rms()
    >>> grad = jnp.array([[3.0, -6.0], [1.0, 2.0]])  # its squares are a row times a column
    >>> jnp.round(tx.update(grad, tx.init(grad), grad=grad)[0], 5)
    Array([[ 1., -1.],
           [ 1.,  1.]], dtype=float32)
    """
    decay = schedules.power_decay() if decay is None else decay

    def divide(u: Leaf, v: Leaf, value: _numerics.Scalar, eps_root: _numerics.Scalar) -> Leaf:
        return _numerics.root_and_divide_clamped(u, v, _least(eps, value, v), eps_root)

    def rule_at(now: Now) -> Rule:
        def rule(u: Leaf, g: Leaf, nu_row: Any, nu_col: Any, nu: Leaf | None) -> tuple[Any, ...]:
            square = _numerics.square(g)
            square = square + _numerics.scalar(now.values["eps_stored"], square)

            def averaged(slot: Leaf) -> Leaf:
                seen = _numerics.saturate(_blocks.mean(square, slot.shape))
                return _numerics.ema(slot, seen, now.decay.weight)

            if nu is not None:
                nu = averaged(nu)
                return now.divide(u, nu), None, None, nu
            nu_row, nu_col = averaged(nu_row), averaged(nu_col)
            v = _outer(nu_row, nu_col, _least(eps, now.values["eps"], nu_row))
            return now.divide(u, v), nu_row, nu_col, None

        return rule

    return preconditioner(
        "scale_by_factored_rms",
        ScaleByFactoredRmsState,
        rule_at,
        formula="v = row · column / mean, running means of |g|² + eps_stored; u / max(sqrt(v), eps)",
        hyperparams={"decay": decay, "eps": eps, "eps_stored": eps_stored, "axes": axes, "dtype": dtype},
        combine=divide,
        shapes=_factors(axes),
        optional=["eps"],
    )


def _least(eps: Any, value: _numerics.Scalar, v: Leaf) -> _numerics.Scalar:
    return float(jnp.finfo(v.dtype).eps) if eps is None else value


def _outer(nu_row: Leaf, nu_col: Leaf, eps: _numerics.Scalar) -> Leaf:
    """`nu_row · nu_col / max(mean of nu_row, eps)`; the mean is over what `nu_col` has lost."""
    # along the axes that nu_col keeps and nu_row has lost, nu_row is one; along the others the two agree
    rows = tuple(k if k == n else 1 for k, n in zip(nu_row.shape, nu_col.shape, strict=True))
    mean = jnp.maximum(_blocks.mean(nu_row, rows), _numerics.scalar(eps, nu_row))
    return nu_row * _numerics.reciprocal(mean) * nu_col


def _blocks_of(block: BlockOf) -> _trees.ShapeOf:
    """The shape of an array with one element a block."""

    def shape_of(path: Any, shape: Shape) -> Shape:
        where = _trees.path_str(path)
        each = block(where, shape)
        whole = isinstance(each, Sequence) and len(each) == len(shape) and all(isinstance(b, int) for b in each)
        if not whole or any(b < 0 or (n and n % b if b else n) for n, b in zip(shape, each, strict=True)):
            raise ValueError(
                f"params: leaf {where} of shape {shape} cannot be cut into blocks of shape {each!r}; the function "
                "given as block must return a shape that divides the leaf's along every axis."
            )
        return tuple(n // max(b, 1) for n, b in zip(shape, each, strict=True))

    return shape_of


def _factors(axes: Callable[[str, Shape], tuple[int, int] | None]) -> dict[str, _trees.ShapeOf]:
    """The shapes of rows, columns and the whole; those that a leaf does not have are None."""

    def chosen(path: Any, shape: Shape) -> tuple[int, int] | None:
        where = _trees.path_str(path)
        pair = axes(where, shape)
        if pair is not None and pair not in itertools.permutations(range(len(shape)), 2):
            raise ValueError(
                f"params: leaf {where} of shape {shape} cannot be factored along {pair!r}; the function given as axes "
                "must return two different axes, counted from 0, or None."
            )
        return pair

    def without(position: int) -> _trees.ShapeOf:
        def shape_of(path: Any, shape: Shape) -> Shape | None:
            pair = chosen(path, shape)
            return None if pair is None else tuple(1 if axis == pair[position] else n for axis, n in enumerate(shape))

        return shape_of

    def whole(path: Any, shape: Shape) -> Shape | None:
        return shape if chosen(path, shape) is None else None

    return {"nu_row": without(1), "nu_col": without(0), "nu": whole}
