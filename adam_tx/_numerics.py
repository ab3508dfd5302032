"""Arithmetic that every link shares: which dtype to work in, and the few formulas that are easy to get wrong.

The precision contract lives here. A leaf is *lifted* to its working dtype on
the way in, every formula runs there, and the emitted update is *lowered* to the
dtype Optax would have emitted on the way out.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

Scalar = float | jax.Array
"""A Python float, exact until it meets a leaf, or a 0-d array."""


def dtype_of(leaf: ArrayLike) -> jnp.dtype:
    """The dtype that JAX gives this leaf, a Python number or NumPy array included."""
    return leaf.dtype if isinstance(leaf, jax.Array) else jnp.dtype(jnp.result_type(leaf))


def result_dtype(*leaves: ArrayLike) -> jnp.dtype:
    """The dtype that standard promotion gives these leaves, whatever promotion mode is on."""
    return _promote(*map(dtype_of, leaves))


def compute_dtype(*leaves: ArrayLike) -> jnp.dtype:
    """The dtype to work in: at least float32, wider or complex where a leaf is."""
    dtypes = map(dtype_of, leaves)
    return _promote(jnp.dtype(jnp.float32), *(dtype for dtype in dtypes if jnp.finfo(dtype).bits >= 32))


@functools.cache
def _promote(*dtypes: jnp.dtype) -> jnp.dtype:
    with jax.numpy_dtype_promotion("standard"):
        return jnp.dtype(functools.reduce(jnp.promote_types, dtypes))


def is_complex(leaf: ArrayLike) -> bool:
    """Whether the leaf has an imaginary part."""
    return dtype_of(leaf).kind == "c"


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


def scalar(value: Scalar, like: jax.Array) -> Any:
    """The value, ready to be multiplied with a leaf without promoting it."""
    return value.astype(like.dtype) if isinstance(value, jax.Array) else value


def ema(average: jax.Array, value: jax.Array, weight: Scalar) -> jax.Array:
    """One step of an exponential moving average, `average + weight * (value - average)`.

    Unlike `decay * average + (1 - decay) * value`, whose two rounded constants
    do not sum to one, this form settles on the value itself. From a weight of one
    half on the step is taken back from the value instead; a far larger average
    would otherwise leave its rounding behind when it is forgotten at once.
    """
    forward = scalar(weight, average)
    backward = scalar(1.0 - weight, average)
    step = value - average
    if isinstance(weight, float):
        return average + forward * step if weight < 0.5 else value - backward * step
    return jnp.where(forward < 0.5, average + forward * step, value - backward * step)


def one_minus_exp(x: jax.Array, excess: jax.Array) -> jax.Array:
    """1 - exp(x - excess) for x <= 0 and an excess below its last place, within 2 ulp in float32.

    XLA's own float32 expm1 is off by up to 5.6 ulp between -0.5 and 0 (and its
    accuracy differs between backends), hence the series there.
    """
    if x.dtype != jnp.float32:
        return -jnp.expm1(x - excess)
    small = jnp.maximum(x, -0.5)
    series = jnp.ones_like(x)
    for k in range(10, 2, -1):
        series = 1.0 + series * (small / k)
    return jnp.where(x > -0.5, -small - (small * small * (0.5 * series) - excess), 1.0 - jnp.exp(x))


def root_mean_square(x: jax.Array, *, mean: bool = True) -> jax.Array:
    """The root mean square of all elements, or their norm; zero, with finite derivatives, where all are zero."""
    total = jnp.sum(square(x)) / (max(x.size, 1) if mean else 1)
    return jnp.where(total == 0, 0.0, jnp.sqrt(jnp.where(total == 0, 1.0, total)))


def abs_sq(x: jax.Array) -> jax.Array:
    """|x|², at most the largest number."""
    return saturate(square(x))


def square(x: jax.Array) -> jax.Array:
    """|x|², real, and differentiable at zero for complex x too."""
    return x.real * x.real + x.imag * x.imag if is_complex(x) else x * x


def saturate(x: jax.Array) -> jax.Array:
    """At most the largest number: infinity would stay in an average for ever."""
    return jnp.minimum(x, float(jnp.finfo(x.dtype).max))


def _nonzero(eps: Scalar, dtype: jnp.dtype) -> Any:
    """Epsilon, or one where it is zero in this dtype."""
    if isinstance(eps, float):
        return eps if np.asarray(eps, dtype) else 1.0
    return jnp.where(eps == 0, 1.0, eps)


def _plus(v: jax.Array, eps_root: Scalar) -> jax.Array:
    return v if isinstance(eps_root, float) and eps_root == 0.0 else v + scalar(eps_root, v)


def root_and_divide(u: jax.Array, v: jax.Array, eps: Scalar, eps_root: Scalar) -> jax.Array:
    """`u / (sqrt(v + eps_root) + eps)`, with finite derivatives where nothing has accumulated.

    The root has no derivative at zero, and with `eps = 0` there is nothing to
    divide by. There the denominator is the constant `eps` (or one), so a zero
    gradient moves nothing; everywhere else the values are bit for bit those of
    the plain formula. NaN stays NaN.
    """
    return divide(u, _plus(v, eps_root), eps, root=jnp.sqrt)


def root_and_divide_clamped(u: jax.Array, v: jax.Array, eps: Scalar, eps_root: Scalar) -> jax.Array:
    """`u / max(sqrt(v + eps_root), eps)`, with the floor under v, where its derivative is finite."""
    floor = jnp.square(jnp.asarray(eps, v.dtype))
    return root_and_divide(u, steady(jnp.maximum(_plus(v, eps_root), floor)), 0.0, 0.0)


def steady(v: jax.Array) -> jax.Array:
    """The value itself, but a constant to derivatives where those of its inverse root would overflow."""
    return jnp.where(v < float(jnp.finfo(v.dtype).tiny) ** (2 / 3), lax.stop_gradient(v), v)


def reciprocal(x: jax.Array) -> jax.Array:
    """1 / x for x >= 0, one at zero, and a constant to derivatives where those would overflow."""
    small = x < float(jnp.finfo(x.dtype).tiny) ** (1 / 3)
    constant = lax.stop_gradient(1.0 / jnp.where(x == 0, 1.0, x))
    return jnp.where(small, constant, 1.0 / jnp.where(small, 1.0, x))


def divide(
    u: jax.Array, size: jax.Array, eps: Scalar, *, root: Callable[[jax.Array], jax.Array] = lambda size: size
) -> jax.Array:
    """`u / (root(size) + eps)`; where size is zero, u over `eps` or, if that is zero, over one."""
    eps = scalar(eps, size)
    untouched = size == 0
    denominator = root(jnp.where(untouched, 1.0, size)) + eps
    denominator = jnp.where(untouched, _nonzero(eps, size.dtype), denominator)
    if is_complex(u):
        return lax.complex(u.real / denominator, u.imag / denominator)
    return u / denominator
