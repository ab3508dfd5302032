"""`scale_by_orthogonalization`: bring the singular values of a matrix of updates near one, which is Muon's step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from adam_tx._core import hyperparams, sharding
from adam_tx._core.matrices import MatrixAxes, matrix_of, transposed
from adam_tx._core.numerics import is_complex, reciprocal, root, scalar, square
from adam_tx.links._declare import NonNegative, Now, Rule, link

Triple = tuple[float, float, float]
Coefficients = str | Triple | Sequence[Triple]

_FOR_EXACT_ARITHMETIC = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
]

COEFFICIENTS: dict[str, tuple[Triple, ...]] = {
    # Jordan et al.; Keras, PyTorch, Optax
    "standard": ((3.4445, -4.7750, 2.0315),),
    # a triple for each of five steps; Optax and Dion, elsewhere called quintic
    "dion": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    # Amsel et al., with the margin of a hundredth that their code has for rounding
    "polar_express": (
        *((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in _FOR_EXACT_ARITHMETIC),
        (1.875, -1.25, 0.375),
    ),
}
"""Published coefficients by name: a triple for each step; the last serves all that follow."""


@link
def scale_by_orthogonalization(
    steps: int = 5,
    eps: NonNegative = 1e-7,
    *,
    min_norm: NonNegative = 0.0,
    coefficients: Coefficients = "standard",
    preconditioning: str = "frobenius",
    adaptive: bool = False,
    axes: MatrixAxes = None,
    dtype: DTypeLike | None = None,
) -> Rule:
    """Bring the singular values of a matrix of updates near one, by an iteration after Newton and Schulz.

    With X the matrix u, or its transpose if that has fewer rows, and (a, b, c) the
    coefficients of each step::

        X <- X / max(||X|| + eps, min_norm)
        X <- a X + b (X Xᴴ) X + c (X Xᴴ)² X            `steps` times
        u <- X                                         X · sum(uᴴ X) if adaptive

    Were it exact, u = U S Vᴴ would become U Vᴴ. With the standard coefficients singular
    values come out between 0.7 and 1.2, which trains as well. All products are made in
    float32 or wider, as exactly as the device can; `dtype=jnp.bfloat16` makes them as
    PyTorch does, several times faster on a GPU or TPU.

    Args:
      steps: at least 1.
      eps: added to the norm, in units of the updates; at least 0.
      min_norm: the least norm to divide by, in units of the updates; PyTorch has 1e-7, and no eps.
      coefficients: "standard", "dion", "polar_express", a triple, or one for each step,
        the last of which serves all that follow. Give "dion" five steps.
      preconditioning: the norm that X is divided by: "frobenius", "spectral", which is
        exact and slow, "schatten" (of order 4), or "aol", which scales each row. The last
        two are at least the root of eps, to which nothing is added.
      adaptive: multiply by the dual norm of the updates.
      axes: which axes are the matrix's, `(rows, columns)`, each an axis or several: rows
        are inputs, as in Flax. All other axes count matrices: `((0, 1, 2), 3)` for a
        convolution, `(0, 2)` for each head of a kernel `(model, heads, head)`. A function
        `(path, shape) -> (rows, columns)` chooses by leaf. None for leaves of two axes.
      dtype: that of the products, for real leaves; None for float32 or wider.

    Returns:
      A `Link` that keeps nothing. Not leafwise: leaves of fewer axes need another
      optimizer, which `adam_tx.muon` and `adam_tx.groups` give them.

    Raises:
      ValueError: a number out of range, an unknown name; at `update`, a leaf that is no matrix.

    Reference: Jordan et al., Muon, 2024 (https://kellerjordan.github.io/posts/muon);
    Amsel et al., The Polar Express, 2025 (https://arxiv.org/abs/2505.16932).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.scale_by_orthogonalization(8, coefficients="polar_express")
    >>> u = jnp.array([[0.0, -3.0], [0.5, 0.0]])
    >>> jnp.round(tx.update(u, tx.init(u))[0], 3)
    Array([[ 0., -1.],
           [ 1.,  0.]], dtype=float32)
    """
    hyperparams.check_int("steps", steps)
    triples = list(itertools.islice(_each_step(coefficients), steps))
    scale = _chosen("preconditioning", preconditioning, _NORMS)
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"scale_by_orthogonalization: dtype must be None or a floating-point dtype, got {dtype!r}.")

    def rule(now: Now, updates: Array, path: Callable[[], str]) -> Array:
        matrix = matrix_of("scale_by_orthogonalization", axes, path(), updates.shape)
        given = matrix.taken_out(sharding.gathered(updates))
        is_tall = matrix.fan_in > matrix.fan_out
        x = transposed(given) if is_tall else given
        norm = jnp.maximum(scale(x, scalar(now.eps, x.real)), scalar(now.min_norm, x.real))
        x = x * scalar(reciprocal(norm), x)
        x = _iterated(x, triples, None if is_complex(x) else dtype)
        emitted = transposed(x) if is_tall else x
        if adaptive:
            emitted = emitted * jnp.sum(given.conj() * emitted, (-2, -1), keepdims=True)
        return sharding.placed_like(matrix.put_back(emitted), updates)

    return Rule(rule, formula="U Vᴴ of u = U S Vᴴ, nearly", elementwise=False)


def _each_step(coefficients: Coefficients) -> Iterator[Triple]:
    """The coefficients of each step, without end."""
    given: Any = coefficients
    if isinstance(given, str):
        given = _chosen("coefficients", given, COEFFICIENTS)
    triples = [given] if len(given) == 3 and not isinstance(given[0], Sequence) else list(given)
    if not triples or any(len(triple) != 3 for triple in triples):
        raise ValueError(
            "scale_by_orthogonalization: coefficients must be a name, three numbers, or a sequence of such triples, "
            f"got {coefficients!r}."
        )
    return itertools.chain(triples, itertools.repeat(triples[-1]))


def _chosen(what: str, name: str, among: dict[str, Any]) -> Any:
    if name not in among:
        raise ValueError(f"scale_by_orthogonalization: {what} must be one of {list(among)}, got {name!r}.")
    return among[name]


def _iterated(x: Array, triples: Sequence[Triple], dtype: DTypeLike | None) -> Array:
    """The polynomials of the coefficients, one after the other, of the singular values."""
    working = x.dtype
    precision = lax.Precision.HIGHEST if dtype is None else None
    x = x if dtype is None else x.astype(dtype)
    for a, b, c in triples:
        gram = jnp.matmul(x, transposed(x), precision=precision)
        inner = b * gram + c * jnp.matmul(gram, gram, precision=precision)
        x = a * x + jnp.matmul(inner, x, precision=precision)
    return x.astype(working)


def _squares(x: Array) -> Array:
    return jnp.sum(square(x), (-2, -1), keepdims=True)


def _gram(x: Array) -> Array:
    return jnp.matmul(x, transposed(x), precision=lax.Precision.HIGHEST)


def _frobenius(x: Array, eps: Any) -> Array:
    return root(_squares(x)) + eps


def _spectral(x: Array, eps: Any) -> Array:
    """The largest singular value; derivatives take it as given, where several are as large."""
    return lax.stop_gradient(jnp.linalg.norm(x, 2, (-2, -1), keepdims=True)) + eps


def _schatten(x: Array, eps: Any) -> Array:
    return root(jnp.maximum(root(_squares(_gram(x))), eps))


def _aol(x: Array, eps: Any) -> Array:
    return root(jnp.maximum(jnp.sum(root(square(_gram(x))), -1, keepdims=True), eps))


_NORMS = {"frobenius": _frobenius, "spectral": _spectral, "aol": _aol, "schatten": _schatten}
