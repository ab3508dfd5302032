"""`scale_by_shape`: multiply the updates of a matrix by a factor that follows from its shape."""

from __future__ import annotations

from collections.abc import Callable

from jax import Array

from adam_tx._core.matrices import MatrixAxes, matrix_of
from adam_tx._core.numerics import scalar
from adam_tx.links._declare import NonNegative, Now, Rule, link

FACTORS: dict[str, Callable[[int, int], float]] = {
    "width": lambda fan_in, fan_out: max(1.0, fan_out / fan_in) ** 0.5,
    "spectral": lambda fan_in, fan_out: (fan_out / fan_in) ** 0.5,
    "rms": lambda fan_in, fan_out: max(fan_in, fan_out) ** 0.5,
}
"""What a matrix is multiplied by, from the numbers of its inputs and outputs, by name."""


@link
def scale_by_shape(factor: str = "width", times: NonNegative = 1.0, *, axes: MatrixAxes = None) -> Rule:
    """Multiply the updates of a matrix by a factor that follows from its shape.

    It stands behind `scale_by_orthogonalization`, whose step is as large whatever the shape::

        u <- u · times · sqrt(max(1, fan_out / fan_in))         "width": Jordan's Muon
        u <- u · times · sqrt(fan_out / fan_in)                 "spectral": Dion
        u <- u · times · sqrt(max(fan_in, fan_out))             "rms": Moonlight

    With "rms" each element is about `times` large, and 0.2 is about what AdamW's are: the
    rate and the weight decay of an AdamW then serve both.

    Args:
      factor: "width", "spectral" or "rms".
      times: at least 0.
      axes: which axes are the matrix's, as in `scale_by_orthogonalization`.

    Returns:
      A `Link` that keeps nothing.

    Raises:
      ValueError: a number out of range, an unknown name; at `update`, a leaf that is no matrix.

    Reference: Jordan et al., Muon, 2024 (https://kellerjordan.github.io/posts/muon); Liu et
    al., Muon is Scalable for LLM Training, 2025 (https://arxiv.org/abs/2502.16982).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.scale_by_shape("rms", 0.2)
    >>> tx.update(jnp.ones((1, 4)), tx.init(jnp.ones((1, 4))))[0]
    Array([[0.4, 0.4, 0.4, 0.4]], dtype=float32)
    """
    if factor not in FACTORS:
        raise ValueError(f"scale_by_shape: factor must be one of {list(FACTORS)}, got {factor!r}.")

    def rule(now: Now, updates: Array, path: Callable[[], str]) -> Array:
        matrix = matrix_of("scale_by_shape", axes, path(), updates.shape)
        size = FACTORS[factor](max(matrix.fan_in, 1), max(matrix.fan_out, 1))
        return updates * scalar(now.times * size, updates)

    # a tile, or a stack of layers, has another shape than the matrix
    return Rule(rule, formula=f"u · times · {factor} of the shape", elementwise=False)
