"""Arithmetic that rules are written with: the few formulas that are easy to get wrong.

Everything here is elementwise unless it says otherwise, works in the precision of
the leaves that it is given, and has finite derivatives where a gradient is zero.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

# what a rule may need; all else is for the package alone
__all__ = [
    "abs_sq",
    "divide",
    "ema",
    "power",
    "root",
    "root_and_divide",
    "root_and_divide_clamped",
    "saturate",
    "scalar",
    "square",
]

Scalar = float | jax.Array
"""A Python float, exact until it meets a leaf, or a 0-d array."""


def dtype_of(leaf: ArrayLike) -> jnp.dtype:
    """The dtype that JAX gives this leaf, a Python number or NumPy array included."""
    return leaf.dtype if isinstance(leaf, jax.Array) else jnp.dtype(jnp.result_type(leaf))


@functools.cache
def working(*dtypes: jnp.dtype) -> jnp.dtype:
    """The dtype to work in beside leaves of these dtypes: at least float32, wider or complex where a leaf is."""
    return promoted(jnp.dtype(jnp.float32), *(dtype for dtype in dtypes if jnp.finfo(dtype).bits >= 32))


@functools.cache
def promoted(*dtypes: jnp.dtype) -> jnp.dtype:
    """The dtype that standard promotion gives, whatever promotion mode is on."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.dtype(functools.reduce(jnp.promote_types, dtypes))


@functools.cache
def working_and_emitted(*, updates: jnp.dtype, **others: jnp.dtype) -> tuple[jnp.dtype, jnp.dtype]:
    """The dtype to work in, and that of the update that is emitted, for a leaf that came in these dtypes."""
    dtype = working(updates, *others.values())
    param = others.get("params", updates)
    if dtype.kind == "c" and param.kind != "c":
        # a complex gradient of a real parameter is projected: the only direction in which that can move
        dtype = real_dtype(dtype)
    return dtype, promoted(updates, param)


@functools.cache
def is_inexact(dtype: jnp.dtype) -> bool:
    """Whether it is floating-point or complex; float0, which stands for no derivative, is neither."""
    return bool(jnp.issubdtype(dtype, jnp.inexact))


def is_complex(leaf: ArrayLike) -> bool:
    """Whether the leaf has an imaginary part."""
    return dtype_of(leaf).kind == "c"


@functools.cache
def real_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The dtype of the real part: float32 for complex64, the dtype itself when it is real."""
    return jnp.dtype(jnp.finfo(dtype).dtype)


def cast(leaf: ArrayLike, dtype: DTypeLike) -> jax.Array:
    """Convert a leaf; a complex one bound for a real dtype is projected onto the real axis."""
    if isinstance(leaf, jax.Array) and leaf.dtype == dtype:
        return leaf
    leaf = jnp.asarray(leaf)
    if is_complex(leaf) and jnp.dtype(dtype).kind != "c":
        leaf = leaf.real
    return leaf.astype(dtype)


def scalar(value: Scalar, like: jax.Array) -> Scalar:
    """The value, ready to be multiplied with a leaf without promoting it."""
    return value.astype(like.dtype) if isinstance(value, jax.Array) and value.dtype != like.dtype else value


def times(x: jax.Array, factor: Scalar) -> jax.Array:
    """The product; x itself where the factor is the number one."""
    return x if isinstance(factor, float) and factor == 1.0 else x * scalar(factor, x)


def ema(average: jax.Array, value: jax.Array, step: Scalar) -> jax.Array:
    """One step of an exponential moving average, `average + step · (value - average)`.

    Unlike `decay · average + (1 - decay) · value`, whose two rounded constants
    do not sum to one, this form settles on the value itself. From a step of one
    half on it is taken back from the value instead; a far larger average would
    otherwise leave its rounding behind when it is forgotten at once.

    Args:
      average: the average so far, an array.
      value: the new value, of its shape and dtype.
      step: one less the decay, in [0, 1]: what `now.decay.step` is in a rule.

    >>> ema(jnp.array([2.0]), jnp.array([4.0]), 0.25)
    Array([2.5], dtype=float32)
    """
    difference = value - average
    if isinstance(step, float):
        return average + step * difference if step < 0.5 else value - (1.0 - step) * difference
    forward, backward = scalar(step, average), scalar(1.0 - step, average)
    return jnp.where(step < 0.5, average + forward * difference, value - backward * difference)


def square(x: jax.Array) -> jax.Array:
    """|x|², real, and differentiable at zero for complex x too."""
    return x.real * x.real + x.imag * x.imag if x.dtype.kind == "c" else x * x


def abs_sq(x: jax.Array) -> jax.Array:
    """|x|², at most the largest number.

    >>> abs_sq(jnp.array([3.0, 1e30]))
    Array([9.0000000e+00, 3.4028235e+38], dtype=float32)
    """
    return jnp.minimum(square(x), largest(x.dtype))


def saturate(x: jax.Array) -> jax.Array:
    """At most the largest number: infinity would stay in an average for ever."""
    return jnp.minimum(x, largest(x.dtype))


def power(x: jax.Array, exponent: Scalar) -> jax.Array:
    """X to a power above zero, for x >= 0; at zero it is a constant to derivatives, which are infinite for many.

    >>> power(jnp.array([4.0, 0.0]), 1.5)
    Array([8., 0.], dtype=float32)
    """
    zero = x == 0
    return jnp.where(zero, 0.0, jnp.where(zero, 1.0, x) ** scalar(exponent, x))


def root(x: jax.Array) -> jax.Array:
    """The square root of x >= 0; at zero it is a constant to derivatives, which would be infinite there."""
    zero = x == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, x)))


def root_and_divide(u: jax.Array, v: jax.Array, eps: Scalar, eps_root: Scalar = 0.0) -> jax.Array:
    """`u / (sqrt(v + eps_root) + eps)` for v >= 0, with finite derivatives where nothing has accumulated.

    The root has no derivative at zero, and with `eps = 0` there is nothing to
    divide by. So v counts as the smallest normal number where it is less, which is
    where the gradient's square underflows. NaN stays NaN.

    >>> root_and_divide(jnp.array([3.0, 0.0]), jnp.array([4.0, 0.0]), 1.0)
    Array([1., 0.], dtype=float32)
    """
    root_of_v = jnp.sqrt(jnp.maximum(_plus(v, eps_root), _smallest(v.dtype)))
    return _quotient(u, _plus(root_of_v, eps), eps)


def root_and_divide_clamped(u: jax.Array, v: jax.Array, eps: Scalar, eps_root: Scalar = 0.0) -> jax.Array:
    """`u / max(sqrt(v + eps_root), eps)`, with the floor under v, where its derivative is finite."""
    floor = jnp.square(jnp.asarray(eps, v.dtype))
    return root_and_divide(u, steady(jnp.maximum(_plus(v, eps_root), floor)), 0.0)


def steady(v: jax.Array) -> jax.Array:
    """The value itself, but a constant to derivatives where those of its inverse root would overflow."""
    return jnp.where(v < _smallest(v.dtype) ** (2 / 3), lax.stop_gradient(v), v)


def reciprocal(x: jax.Array) -> jax.Array:
    """1 / x for x >= 0, one at zero, and a constant to derivatives where those would overflow."""
    small = x < _smallest(x.dtype) ** (1 / 3)
    constant = lax.stop_gradient(1.0 / jnp.where(x == 0, 1.0, x))
    return jnp.where(small, constant, 1.0 / jnp.where(small, 1.0, x))


def divide(
    u: jax.Array, size: jax.Array, eps: Scalar, *, root: Callable[[jax.Array], jax.Array] = lambda size: size
) -> jax.Array:
    """`u / (root(size) + eps)` for size >= 0, with finite derivatives where size is zero.

    Args:
      u: what is divided.
      size: what has accumulated of the gradient's size, in any unit.
      eps: added outside the root. Where both are zero the denominator is 1e-19, as in `root_and_divide`.
      root: takes the size back to the gradient's unit, such as `lambda v: v ** (1 / p)`.

    >>> divide(jnp.array([6.0, 0.0]), jnp.array([8.0, 0.0]), 1.0, root=lambda v: v ** (1 / 3))
    Array([2., 0.], dtype=float32)
    """
    untouched = size == 0
    in_its_unit = jnp.where(untouched, 0.0, root(jnp.where(untouched, 1.0, size)))
    return _quotient(u, jnp.maximum(_plus(in_its_unit, eps), _smallest(size.dtype) ** 0.5), eps)


def _plus(x: jax.Array, eps: Scalar) -> jax.Array:
    return x if isinstance(eps, float) and eps == 0.0 else x + scalar(eps, x)


def _quotient(u: jax.Array, denominator: jax.Array, least: Scalar) -> jax.Array:
    """The quotient; a denominator so small that derivatives of its inverse overflow is a constant to them."""
    steep = _smallest(denominator.dtype) ** (1 / 3)
    if isinstance(least, float) and least >= steep:
        return _over(u, denominator)
    # two quotients, because a derivative that overflowed before it was masked would be infinity times zero
    small = denominator < steep
    held = _over(u, lax.stop_gradient(denominator))
    return jnp.where(small, held, _over(u, jnp.where(small, 1.0, denominator)))


def _over(u: jax.Array, denominator: jax.Array) -> jax.Array:
    return lax.complex(u.real / denominator, u.imag / denominator) if u.dtype.kind == "c" else u / denominator


@functools.cache
def largest(dtype: jnp.dtype) -> float:
    return float(jnp.finfo(dtype).max)


@functools.cache
def _smallest(dtype: jnp.dtype) -> float:
    return float(jnp.finfo(dtype).tiny)


def sorted_apart(numbers: Sequence[jax.Array]) -> jax.Array:
    """Some numbers of one dtype in order, in an array of their own.

    XLA fuses nothing into a sort. It would otherwise fuse the sums that the numbers come
    from into everything that reads them, and compile for minutes where leaves are many.
    """
    return lax.sort(jnp.stack(numbers))
