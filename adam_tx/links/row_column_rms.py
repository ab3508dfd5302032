"""`scale_by_row_column_rms`: divide by a root mean square kept as its rows and columns, Adafactor's denominator."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from adam_tx import schedules
from adam_tx._core import blocks
from adam_tx._core.blocks import Shape, ShapeOf
from adam_tx._core.numerics import ema, root_and_divide_clamped, saturate, scalar, square
from adam_tx.links._declare import Decay, NonNegative, Now, Rule, Slot, StorageLike, link

AxesOf = Callable[[str, Shape], tuple[int, int] | None]


def last_axes(path: str, shape: Shape) -> tuple[int, int] | None:
    """The last two axes, as in PyTorch and Keras.

    >>> import adam_tx
    >>> adam_tx.last_axes("['kernel']", (2, 3, 4)), adam_tx.last_axes("['bias']", (3,))
    ((1, 2), None)
    """
    del path
    return (len(shape) - 2, len(shape) - 1) if len(shape) > 1 else None


def largest_axes(path: str, shape: Shape, least: int = 128) -> tuple[int, int] | None:
    """The two largest axes, if both have at least 128 elements, as in Optax.

    >>> import adam_tx
    >>> adam_tx.largest_axes("['kernel']", (256, 3, 512)), adam_tx.largest_axes("['kernel']", (64, 512))
    ((0, 2), None)
    """
    del path
    rows, cols = sorted(sorted(range(len(shape)), key=shape.__getitem__)[-2:]) if len(shape) > 1 else (0, 0)
    return (rows, cols) if rows != cols and min(shape[rows], shape[cols]) >= least else None


ADAFACTOR_DECAY = schedules.power_decay(0.8)


@link(slots={name: Slot("square", decay="decay", role=name, eps="eps") for name in ("nu_row", "nu_col", "nu")})
def scale_by_row_column_rms(
    decay: Decay = ADAFACTOR_DECAY,
    eps: NonNegative | None = 0.0,
    *,
    eps_stored: NonNegative = 1e-30,
    axes: AxesOf = last_axes,
    dtype: StorageLike | None = None,
) -> Rule:
    """Divide the updates by a root mean square kept as its rows and columns: Adafactor's denominator.

    With g the gradient, nu_row its mean square over the columns, nu_col over the rows::

        nu_row <- nu_row + (1 - decay) · (mean over columns of (|g|² + eps_stored) - nu_row)
        nu_col <- nu_col + (1 - decay) · (mean over rows of (|g|² + eps_stored) - nu_col)
        v       = nu_row · nu_col / max(mean nu_row, eps)
        u      <- u / max(sqrt(v), eps)

    A leaf without two axes to factor keeps the whole v instead.

    Args:
      decay: in [0, 1); Adafactor's is `schedules.power_decay(0.8)`.
      eps: the least denominator, in units of the gradient; at least 0 (PyTorch); None
        for the machine epsilon of the precision that a leaf is worked in.
      eps_stored: added to |g|² and kept (the paper, Keras, Optax); at least 0.
      axes: `(path, shape) -> (rows, columns)`, the axes to factor or None: `last_axes`
        (PyTorch, Keras), `largest_axes` (Optax) or your own.
      dtype: what the moments are stored in; None for float32 or wider.

    Returns:
      A `Link` with state `(count, nu_row, nu_col, nu)`, which reads the gradient. Not leafwise.

    Raises:
      ValueError: a number out of range; at `init`, axes that are not two of the leaf's.

    Reference: Shazeer & Stern, Adafactor, 2018 (https://arxiv.org/abs/1804.04235).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.scale_by_row_column_rms()
    >>> grad = jnp.array([[3.0, -6.0], [1.0, 2.0]])  # its squares are a row times a column
    >>> jnp.round(tx.update(grad, tx.init(grad), grad=grad)[0], 5)
    Array([[ 1., -1.],
           [ 1.,  1.]], dtype=float32)
    """

    def averages(now: Any, grad: Array, *slots: Any) -> list[Any]:
        """The slots that the leaf has, each averaging the mean of the square over what it stands for."""
        seen = square(grad)
        seen = seen + scalar(now.eps_stored, seen)
        return [s if s is None else ema(s, saturate(blocks.mean(seen, s.shape)), now.decay.step) for s in slots]

    def rule(
        now: Now, updates: Array, grad: Array, nu_row: Array, nu_col: Array, nu: Array | None
    ) -> tuple[Array, Array, Array, Array | None]:
        least = float(jnp.finfo(grad.real.dtype).eps) if now.eps is None else now.eps
        nu_row, nu_col, nu = averages(now, grad, nu_row, nu_col, nu)
        v = blocks.outer(nu_row, nu_col, least) if nu is None else nu
        return root_and_divide_clamped(updates, v, least), nu_row, nu_col, nu

    formula = "v = row · column / mean, running means of |g|² + eps_stored; u / max(sqrt(v), eps)"
    return Rule(rule, formula=formula, dtype=dtype, correctable=True, shape=_factors(axes), elementwise=False)


def _factors(axes: AxesOf) -> dict[str, ShapeOf]:
    """The shapes of rows, columns and the whole; those that a leaf does not have are None."""

    def shape_of(slot: str, where: str, shape: Shape) -> Shape | None:
        pair = axes(where, shape)
        if pair is not None and pair not in itertools.permutations(range(len(shape)), 2):
            raise ValueError(
                f"params: leaf {where} of shape {shape} cannot be factored along {pair!r}; the function given as axes "
                "must return two different axes, counted from 0, or None."
            )
        if pair is None or slot == "nu":
            return shape if pair is None and slot == "nu" else None
        lost = pair[1] if slot == "nu_row" else pair[0]
        return tuple(1 if axis == lost else n for axis, n in enumerate(shape))

    return {slot: functools.partial(shape_of, slot) for slot in ("nu_row", "nu_col", "nu")}
