"""`in_eigenbasis`: links that see the gradient in the eigenbasis of its own covariance, as in SOAP."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from adam_tx._core import hyperparams, numerics
from adam_tx._core.blocks import Shape
from adam_tx._core.hyperparams import Decay
from adam_tx._link import Link, optimizer
from adam_tx.links.basis import AxesOf, Basis, InBasis, Turn


def matrix_axes(path: str, shape: Shape, largest: int = 10_000) -> tuple[int, ...]:
    """All axes of at most ten thousand elements, of leaves that have more than one: SOAP's default.

    >>> import adam_tx
    >>> adam_tx.matrix_axes("['kernel']", (50_000, 512)), adam_tx.matrix_axes("['bias']", (512,))
    ((1,), ())
    """
    del path
    return tuple(axis for axis, n in enumerate(shape) if n <= largest) if len(shape) > 1 else ()


@optimizer
def in_eigenbasis(inner: Link, decay: Decay = 0.95, *, every: int = 10, axes: AxesOf = matrix_axes) -> InBasis:
    """Run links on the gradient in the eigenbasis of its covariance: SOAP around Adam's links.

    With g a leaf's gradient, C and Q one matrix for each of its axes, C from zero::

        g'  = g turned by Qᴴ along every axis          u' likewise
        u  <- inner(u', grad=g') turned back by Q
        C  <- C + (1 - decay) · (g gᴴ along the axis - C)

    The first update only looks: it emits zero and leaves `inner` as it is. Before the
    second, Q becomes the eigenvectors of C in falling order; from then on, every
    `every` updates, Q takes one step of orthogonal iteration: its columns are sorted by
    the size of diag(Qᴴ C Q), and Q becomes the Q of C Q = QR. What `inner` has
    accumulated follows the basis, as in `in_basis`. The derivative of an update takes
    the basis as given. In C, elements of g count as at most so large that C stays finite.

    Args:
      inner: a link, such as a chain, to run in the basis; it gets no parameters.
      decay: of C, in [0, 1).
      every: the number of updates between two changes of basis, at least 1.
      axes: `(path, shape) -> axes` whose basis changes, given a leaf's path, such as
        `['dense']['kernel']`, and its shape; by default `matrix_axes`.

    Returns:
      A `Link` with the state of `in_basis`, C its memory. A leaf of shape (m, n) has
      2 m² + 2 n² numbers of state beside its moments.

    Raises:
      ValueError: a number out of range; what `in_basis` refuses.

    Reference: Vyas et al., SOAP, 2024 (https://arxiv.org/abs/2409.11321).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.in_eigenbasis(adam_tx.scale_by_rms(0.5, debias=True))
    >>> grad = jnp.array([[3.0, 0.0], [0.0, 1.0]])
    >>> first, state = tx.update(grad, tx.init(grad), grad=grad)
    >>> first, jnp.round(tx.update(grad, state, grad=grad)[0], 5)
    (Array([[0., 0.],
           [0., 0.]], dtype=float32), Array([[1., 0.],
           [0., 1.]], dtype=float32))
    """
    formula = "Q inner(Qᴴ u), Q the eigenvectors of the running average of g gᴴ"
    return InBasis(inner, Eigenbasis(decay, every, axes), "in_eigenbasis", formula)


class Eigenbasis(Basis):
    """The eigenvectors of the running average of g gᴴ along each axis, followed by orthogonal iteration."""

    looks_first = True

    def __init__(self, decay: Decay = 0.95, every: int = 10, axes: AxesOf = matrix_axes) -> None:
        allowed = hyperparams.Range(0.0, 1.0)
        self._decay = hyperparams.reader("in_eigenbasis: decay", decay, allowed)
        self._axes = axes
        self.every = hyperparams.check_int("every", every)

    def axes(self, path: str, shape: Shape) -> Sequence[int]:
        """As it was given."""
        return self._axes(path, shape)

    def remember(self, n: int, dtype: jnp.dtype) -> jax.Array:
        """The covariance."""
        return jnp.zeros((n, n), dtype)

    def see(self, memory: jax.Array, grad: jax.Array, axis: int, count: jax.Array) -> jax.Array:
        """The running average of g gᴴ along the axis."""
        others = [other for other in range(grad.ndim) if other != axis]
        grad = _bounded(grad)
        seen = jnp.tensordot(grad, grad.conj(), axes=(others, others), precision=lax.Precision.HIGHEST)
        return numerics.ema(memory, seen.astype(memory.dtype), numerics.scalar(1.0 - self._decay(count), memory))

    def find(self, basis: jax.Array, memory: jax.Array, grad: jax.Array, axis: int, count: jax.Array) -> Turn:
        """The eigenvectors before the second update, one step of orthogonal iteration later."""
        del grad, axis
        return Turn(*lax.cond(count == 1, _eigenvectors, _iterate, basis, memory))


def _bounded(grad: jax.Array) -> jax.Array:
    """The gradient, no element so large that a product with C could overflow: C would be infinite for ever."""
    if numerics.is_complex(grad):
        return lax.complex(_bounded(grad.real), _bounded(grad.imag))
    most = (numerics.largest(grad.dtype) / max(4 * grad.size, 1)) ** 0.5
    return jnp.clip(grad, -most, most)


def _eigenvectors(basis: jax.Array, covariance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest eigenvalue first. Nothing has accumulated yet that would follow."""
    return jnp.linalg.eigh(covariance)[1][:, ::-1], jnp.arange(len(basis))


def _iterate(basis: jax.Array, covariance: jax.Array) -> tuple[jax.Array, jax.Array]:
    order = jnp.argsort(-jnp.sum(basis.conj() * (covariance @ basis), 0).real)
    return jnp.linalg.qr(covariance @ basis[:, order])[0], order
