"""`scale_by_block_rms`: divide by a root mean square that a block of the gradient shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jax import Array

from adam_tx._core import blocks
from adam_tx._core.blocks import Shape, ShapeOf
from adam_tx._core.numerics import ema, root_and_divide, saturate, square
from adam_tx.links._declare import Decay, NonNegative, Now, Rule, Slot, StorageLike, link, mean, total

BlockOf = Callable[[str, Shape], Sequence[int]]


def whole_tensor(path: str, shape: Shape) -> Shape:
    """One block: the tensor itself.

    >>> import adam_tx
    >>> adam_tx.whole_tensor("['dense']['kernel']", (2, 3))
    (2, 3)
    """
    del path
    return shape


def output_unit(path: str, shape: Shape) -> Shape:
    """A block for each output of a kernel laid out as Flax does, outputs last; each element of a vector its own.

    >>> import adam_tx
    >>> adam_tx.output_unit("['dense']['kernel']", (2, 3)), adam_tx.output_unit("['dense']['bias']", (3,))
    ((2, 1), (1,))
    """
    del path
    return (*shape[:-1], 1) if len(shape) > 1 else (1,) * len(shape)


@link(slots={"nu": Slot("square", decay="decay", eps="eps", eps_root="eps_root")}, debiases=("decay",))
def scale_by_block_rms(
    decay: Decay = 0.999,
    eps: NonNegative = 1e-8,
    *,
    eps_root: NonNegative = 0.0,
    block: BlockOf = whole_tensor,
    sum_squares: bool = False,
    debias: bool = False,
    dtype: StorageLike | None = None,
) -> Rule:
    """Divide the updates by a root mean square that a block of the gradient shares.

    With g the gradient and nu, one number a block, from zero::

        nu <- nu + (1 - decay) · (mean |g|² - nu)      sum |g|² if sum_squares
        v   = nu / (1 - Π decay)                       if debias, else nu
        u  <- u / (sqrt(v + eps_root) + eps)

    Args:
      decay: in [0, 1).
      eps: added outside the root, in units of the gradient; at least 0.
      eps_root: added inside the root, in units of the gradient squared; at least 0.
      block: `(path, shape) -> shape of a block`, given a leaf's path, such as
        `['dense']['kernel']`, and its shape, which the block's must divide along every
        axis: `whole_tensor`, `output_unit` or your own, for instance
        `(d_model, 1, head_dim)` for a kernel `(d_model, heads, head_dim)`.
      sum_squares: average the sum over the block, its norm squared, instead of the mean.
      debias: undo the start from zero before the root is taken.
      dtype: what nu is stored in; None for float32 or wider.

    Returns:
      A `Link` with state `(count, weight, nu)`, which reads the gradient. Not leafwise
      where a block is more than an element.

    Raises:
      ValueError: a number out of range; at `init`, a block that does not divide its leaf.

    Reference: Ginsburg et al., NovoGrad, 2019 (https://arxiv.org/abs/1905.11286);
    Zhang et al., Adam-mini, 2024 (https://arxiv.org/abs/2406.16793).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.scale_by_block_rms(0.0, sum_squares=True)
    >>> grad = jnp.array([3.0, -4.0])
    >>> tx.update(grad, tx.init(grad), grad=grad)[0]
    Array([ 0.6, -0.8], dtype=float32)
    """
    over_block = (total if sum_squares else mean)(square_of_gradient, over="nu")

    def rule(now: Now, updates: Array, size: Array, nu: Array) -> tuple[Array, Array]:
        nu = ema(nu, saturate(size), now.decay.step)
        v = nu * now.decay.unbias if debias else nu
        return root_and_divide(updates, blocks.expand(v, updates.shape), now.eps, now.eps_root), nu

    v = "v / (1 - Π decay)" if debias else "v"
    seen = "sum" if sum_squares else "mean"
    return Rule(
        rule,
        formula=f"v += (1 - decay)({seen} of a block's |g|² - v); u / (sqrt({v} + eps_root) + eps)",
        debias=["decay"] if debias else [],
        dtype=dtype,
        correctable=True,
        roles={"nu": "nu_of_block_sums"} if sum_squares else {},
        shape={"nu": _blocks_of(block)},
        statistics={"size": over_block},
    )


def square_of_gradient(grad: Array) -> Array:
    """|g|², summed up over a block before it is saturated."""
    return square(grad)


def _blocks_of(block: BlockOf) -> ShapeOf:
    """The shape of an array with one element a block."""

    def shape_of(where: str, shape: Shape) -> Shape:
        each = block(where, shape)
        whole = isinstance(each, Sequence) and len(each) == len(shape) and all(isinstance(b, int) for b in each)
        if not whole or any(b < 0 or (n and n % b if b else n) for n, b in zip(shape, each, strict=True)):
            raise ValueError(
                f"params: leaf {where} of shape {shape} cannot be cut into blocks of shape {each!r}; the function "
                "given as block must return a shape that divides the leaf's along every axis."
            )
        return tuple(n // max(b, 1) for n, b in zip(shape, each, strict=True))

    return shape_of
