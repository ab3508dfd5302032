"""A change of basis around other links: they see the gradient in the eigenbasis of its own covariance."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from optax import ScalarOrSchedule

from adam_tx import _hyperparams, _numerics, _trees
from adam_tx._blocks import Shape
from adam_tx.chain import Link, make_link

AxesOf = Callable[[str, Shape], Sequence[int]]
Matrices = tuple[jax.Array | None, ...]  # one for each axis of a leaf, None for an axis that keeps its basis


class InEigenbasisState(NamedTuple):
    """State of `in_eigenbasis`.

    Attributes:
      count: the number of updates so far.
      covariance: for every leaf a tuple with a matrix for each axis, None where it
        keeps its basis: the running average of g gᴴ along that axis.
      basis: likewise, the matrix whose columns are the basis, identity at first.
      inner: the state of the links inside; its moments are in that basis.
    """

    count: jax.Array
    covariance: Any
    basis: Any
    inner: Any


def matrix_axes(path: str, shape: Shape, largest: int = 10_000) -> tuple[int, ...]:
    """All axes of at most ten thousand elements, of leaves that have more than one: SOAP's default.

    >>> matrix_axes("['kernel']", (50_000, 512)), matrix_axes("['bias']", (512,))
    ((1,), ())
    """
    del path
    return tuple(axis for axis, n in enumerate(shape) if n <= largest) if len(shape) > 1 else ()


def in_eigenbasis(inner: Link, decay: ScalarOrSchedule = 0.95, *, every: int = 10, axes: AxesOf = matrix_axes) -> Link:
    """Run links on the gradient in the eigenbasis of its covariance: SOAP around Adam's links.

    With g a leaf's gradient, C and Q one matrix for each of its axes, C from zero::

        g'  = g rotated by Qᴴ along every axis         u' likewise
        u  <- inner(u', grad=g') rotated back by Q
        C  <- C + (1 - decay) · (g gᴴ along the axis - C)

    The first update only finds Q, the eigenvectors of C in falling order; it emits
    zero and leaves `inner` as it is. Of the updates after it, every `every`-th ends
    with one step of orthogonal iteration: Q's columns are sorted by the size of
    diag(Qᴴ C Q), and Q becomes the Q of C Q = QR. What `inner` has accumulated follows
    the basis: moments of the gradient (`mu`, `mean`, `trace`) are rotated along,
    those of its square (`nu`, `nu_max`) are sorted along.

    Links inside get no parameters: what reads them, such as weight decay, stands
    outside. The derivative of an update takes the basis as given.

    Args:
      inner: a link, such as a chain, to run in the basis.
      decay: of C, in [0, 1): number, 0-d array or schedule.
      every: the number of updates between two changes of basis, at least 1.
      axes: `(path, shape) -> axes` whose basis changes, given a leaf's path, such as
        `['dense']['kernel']`, and its shape; by default `matrix_axes`.

    Returns:
      A `Link` with state `InEigenbasisState`, which reads the gradient. Not leafwise.
      A leaf of shape (m, n) has 2 m² + 2 n² numbers of state beside its moments.

    Raises:
      ValueError: a number out of range; at `init`, an axis that a leaf does not have.

    Reference: Vyas et al., SOAP, 2024 (https://arxiv.org/abs/2409.11321).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = in_eigenbasis(adam_tx.scale_by_rms(0.5, debias=True))
    >>> grad = jnp.array([[3.0, 0.0], [0.0, 1.0]])
    >>> first, state = tx.update(grad, tx.init(grad), grad=grad)
    >>> first, tx.update(grad, state, grad=grad)[0]
    (Array([[0., 0.],
           [0., 0.]], dtype=float32), Array([[1., 0.],
           [0., 1.]], dtype=float32))
    """
    decay_at = _hyperparams.decay("decay", decay)
    _hyperparams.whole("every", every)

    def init(params: Any) -> InEigenbasisState:
        def matrices(make: Callable[[int, Any], jax.Array]) -> Any:
            return jax.tree_util.tree_map_with_path(lambda path, leaf: _per_axis(make, axes, path, leaf), params)

        return InEigenbasisState(
            jnp.zeros((), jnp.int32),
            matrices(lambda n, dtype: jnp.zeros((n, n), dtype)),
            matrices(lambda n, dtype: jnp.eye(n, dtype=dtype)),
            inner.init(params),
        )

    def update(updates: Any, state: InEigenbasisState, grad: Any, **extra: Any) -> tuple[Any, InEigenbasisState]:
        extra.pop("params", None)  # they are in another basis
        first, weight = state.count == 0, decay_at(state.count).weight
        covariance = _map(lambda g, c: _covariance(g, c, weight), grad, state.covariance, absent=state.covariance)
        rotated_grad = _map(_into, grad, state.basis)
        rotated = rotated_grad if updates is grad else _map(_into, updates, state.basis)
        emitted, moved = inner.update(rotated, state.inner, grad=rotated_grad, **extra)
        emitted = _map(_out_of, emitted, state.basis)
        # the first update only looks: nothing of it may show
        emitted = jax.tree.map(lambda u: jnp.where(first, jnp.zeros_like(u), u), emitted)
        moved = jax.tree.map(lambda old, new: jnp.where(first, old, new), state.inner, moved)

        due = jnp.where(first, 1, jnp.where(state.count % every == 0, 2, 0))
        branches = (lambda b, s, _: (b, s), _eigenvectors, _iterate)
        basis, moved = lax.switch(due, branches, state.basis, moved, lax.stop_gradient(covariance))
        return emitted, InEigenbasisState(_trees.increment(state.count), covariance, basis, moved)

    return make_link(
        "in_eigenbasis",
        init,
        update,
        formula="Q inner(Qᴴ u), Q the eigenvectors of the running average of g gᴴ",
        hyperparams={"decay": decay, "every": every, "axes": axes},
        links={"inner": inner},
        reads_grad=True,
    )


def _per_axis(make: Callable[[int, Any], jax.Array], axes: AxesOf, path: Any, leaf: Any) -> Matrices:
    _trees.check_inexact(path, leaf, "params")
    shape, where = jnp.shape(leaf), _trees.path_str(path)
    chosen = tuple(axes(where, shape))
    if not set(chosen) <= set(range(len(shape))):
        raise ValueError(
            f"params: leaf {where} of shape {shape} has no axes {chosen}; the function given as axes must return axes "
            "counted from 0."
        )
    dtype = _numerics.compute_dtype(leaf)
    return tuple(make(n, dtype) if axis in chosen else None for axis, n in enumerate(shape))


def _map(rule: Callable[[jax.Array, Matrices], Any], leaves: Any, matrices: Any, *, absent: Any = None) -> Any:
    """Apply a rule to every leaf and the matrices of its axes; for an absent leaf see `_trees.map_beside`."""

    def checked(path: Any, leaf: jax.Array, of_leaf: Any) -> Any:
        known = isinstance(of_leaf, tuple) and not _trees.is_absent(of_leaf) and len(of_leaf) == leaf.ndim
        if not known or any(m is not None and len(m) != n for n, m in zip(leaf.shape, of_leaf, strict=True)):
            raise ValueError(
                f"leaf {_trees.path_str(path)} has shape {leaf.shape}, but its basis is that of another. Give update "
                "the gradient of the params that init was given, or call init anew."
            )
        return rule(leaf, of_leaf)

    return _trees.map_beside(checked, leaves, matrices, "updates and basis", absent=absent)


def _covariance(g: jax.Array, covariance: Matrices, weight: Any) -> Matrices:
    def along(axis: int) -> jax.Array:
        others = [other for other in range(g.ndim) if other != axis]
        return jnp.tensordot(g, g.conj(), axes=(others, others), precision=lax.Precision.HIGHEST)

    return tuple(
        None if c is None else _numerics.ema(c, along(axis).astype(c.dtype), weight)
        for axis, c in enumerate(covariance)
    )


def _rotate(leaf: jax.Array, matrices: Matrices) -> jax.Array:
    """Multiply by a matrix along each axis: its rows are contracted with the leaf."""
    for axis, q in enumerate(matrices):
        if q is not None:
            turned = jnp.tensordot(leaf, q.astype(leaf.dtype), axes=(axis, 0), precision=lax.Precision.HIGHEST)
            leaf = jnp.moveaxis(turned, -1, axis)
    return leaf


def _into(leaf: jax.Array, basis: Matrices) -> jax.Array:
    return _rotate(leaf, tuple(None if q is None else q.conj() for q in basis))


def _out_of(leaf: jax.Array, basis: Matrices) -> jax.Array:
    return _rotate(leaf, tuple(None if q is None else q.T for q in basis))


def _eigenvectors(basis: Any, inner: Any, covariance: Any) -> tuple[Any, Any]:
    """The first basis: eigenvectors, the largest eigenvalue first. Nothing has accumulated yet that would follow."""
    del basis
    return jax.tree.map(lambda c: jnp.linalg.eigh(c)[1][:, ::-1], covariance), inner


def _iterate(basis: Any, inner: Any, covariance: Any) -> tuple[Any, Any]:
    """One step of orthogonal iteration, and the moments in the new basis."""
    order = jax.tree.map(lambda q, c: jnp.argsort(-jnp.sum(q.conj() * (c @ q), 0).real), basis, covariance)
    new = jax.tree.map(lambda q, c, o: jnp.linalg.qr(c @ q[:, o])[0], basis, covariance, order)
    turn = jax.tree.map(lambda q_new, q: q.conj().T @ q_new, new, basis)  # from the old basis to the new
    return new, _follow(inner, turn, order)


_ROTATED, _SORTED = ("mu", "mean", "trace"), ("nu", "nu_max")


def _follow(state: Any, turn: Any, order: Any) -> Any:
    """The state with its moments in the new basis."""
    if isinstance(state, dict):
        return {name: _follow(part, turn, order) for name, part in state.items()}
    if not hasattr(state, "_fields"):
        return state
    moved = {name: _follow(part, turn, order) for name, part in state._asdict().items()}
    for name in moved.keys() & set(_ROTATED):
        moved[name] = _map(_into_new, moved[name], turn)
    for name in moved.keys() & set(_SORTED):
        moved[name] = _map(_sort, moved[name], order)
    return type(state)(**moved)


def _into_new(moment: jax.Array, turn: Matrices) -> jax.Array:
    return _into(moment, turn).astype(moment.dtype)


def _sort(moment: jax.Array, order: Matrices) -> jax.Array:
    for axis, o in enumerate(order):
        if o is not None and moment.shape[axis] == len(o):  # a moment of blocks may have one for the whole axis
            moment = jnp.take(moment, o, axis=axis)
    return moment
