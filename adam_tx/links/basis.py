"""`in_basis`: links that see the gradient in another basis, and what a basis is.

Rotating, projecting and transporting what the links have accumulated is here, once;
how a basis is found is a `Basis`, such as SOAP's in `eigenbasis.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adam_tx._core import hyperparams, manual, sharding, states
from adam_tx._core.abstract_link import AbstractLink
from adam_tx._core.blocks import Shape
from adam_tx._core.call import Call, Reconstructible
from adam_tx._core.leaves import Column, Leaves, State, increment
from adam_tx._link import Link, as_link, link_of

AxesOf = Callable[[str, Shape], Sequence[int]]
PerAxis = tuple[Any, ...]
"""One entry for each axis of a leaf, None for an axis that keeps its basis."""


class Turn(NamedTuple):
    """How one axis gets from an old basis to a new one.

    Attributes:
      basis: the new basis, its vectors in columns, of shape (n, k).
      order: the old vectors that the new ones come from, by number, of shape (k,). What
        has accumulated of squares is sorted by it.
    """

    basis: jax.Array
    order: jax.Array


class Basis(Reconstructible):
    """How the basis of an axis is found: subclass it, and give an instance to `in_basis`.

    Attributes:
      every: the number of updates between two changes of basis.
      looks_first: whether the first update only looks at the gradient: it emits zero
        and leaves the links inside as they are.
    """

    every: int = 1
    looks_first: bool = False

    def axes(self, path: str, shape: Shape) -> Sequence[int]:
        """The axes of a leaf whose basis changes, counted from 0."""
        raise NotImplementedError

    def size(self, n: int) -> int:
        """How many vectors the basis of an axis of n elements has; n unless it projects."""
        return n

    def remember(self, n: int, dtype: jnp.dtype) -> jax.Array | None:
        """What is remembered of an axis of n elements at first; None for nothing."""
        del n, dtype
        return None

    def see(self, memory: Any, grad: jax.Array, axis: int, count: jax.Array) -> Any:
        """What is remembered after this gradient."""
        del grad, axis, count
        return memory

    def find(self, basis: jax.Array, memory: Any, grad: jax.Array, axis: int, count: jax.Array) -> Turn:
        """The new basis of an axis, before this gradient is used; called every `every` updates."""
        raise NotImplementedError


@hyperparams.readable
def in_basis(inner: Link, basis: Basis) -> Link:
    """Run links on the gradient in another basis, and turn back what they emit.

    With g a leaf's gradient, Q the basis of each of its axes::

        Q  <- basis.find(…)                            every `basis.every` updates
        g'  = g turned by Qᴴ along every axis          u' likewise
        u  <- inner(u', grad=g') turned back by Q

    What the links inside have accumulated follows a change from Q to Q': slots like the
    gradient are turned by Q'ᴴ Q, those like its square are sorted by `Turn.order`. A Q
    with fewer columns than rows projects, and the slots inside are as small as that.

    Args:
      inner: a link, such as a chain, to run in the basis. It gets no parameters, which are
        in another basis: weight decay stands outside.
      basis: how the bases are found.

    Returns:
      A `Link` with state `(count, memory, basis, inner)`: memory and basis are tuples
      with a tree for each axis, whose entries are None for axes that keep their basis.
      It reads the gradient.

    Raises:
      ValueError: a link inside that reads parameters, or whose state is not known; at
        `init`, an axis that a leaf does not have, or blocks that cannot follow a basis.

    Reference: Vyas et al., SOAP, 2024 (https://arxiv.org/abs/2409.11321); Zhao et al.,
    GaLore, 2024 (https://arxiv.org/abs/2403.03507).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> class Swapped(adam_tx.Basis):
    ...     def axes(self, path, shape):
    ...         return range(len(shape))
    ...
    ...     def find(self, basis, memory, grad, axis, count):
    ...         return adam_tx.Turn(jnp.eye(len(basis))[::-1], jnp.arange(len(basis)))
    >>> tx = adam_tx.in_basis(adam_tx.scale_by_rms(0.0), Swapped())
    >>> grad = jnp.array([[3.0, 4.0]])
    >>> tx.update(grad, tx.init(grad), grad=grad)[0]
    Array([[1., 1.]], dtype=float32)
    """
    return link_of(InBasis(inner, basis, "in_basis", Call(in_basis, (inner, basis), {})))


class InBasis(AbstractLink):
    """A link whose members see another basis."""

    reads_grad, elementwise = True, False

    def __init__(self, inner: Link, basis: Basis, name: str, call: Call, formula: str | None = None) -> None:
        if not isinstance(basis, Basis):
            raise TypeError(f"{name}: basis must be an instance of a subclass of adam_tx.Basis, got {basis!r}.")
        hyperparams.check_int(f"{name}: every", basis.every)
        self.name, self.call, self.basis = name, call, basis
        self.formula = formula or "Q inner(Qᴴ u)"
        self.links = {"inner": as_link(inner)}
        self._inner = self.links["inner"].implementation
        self.averages = self._inner.averages
        self.hyperparams = {"basis": basis}
        self._type = states.wrapper_type(name, "memory", "basis", "inner")
        if reason := next(self._inner.basis_obstacles(), None):
            raise ValueError(f"{name}: {reason}")

    def init_leaves(self, leaves: Leaves) -> State:
        """The first bases, and the links' states for leaves in them."""
        chosen = [self._axes(leaves, i) for i in range(len(leaves))]
        memory = self._per_axis(leaves, chosen, lambda n, dtype: self.basis.remember(n, dtype))
        basis = self._per_axis(leaves, chosen, lambda n, dtype: jnp.eye(n, self.basis.size(n), dtype=dtype))
        arrays = list(leaves.params)
        for i in leaves.present:
            shape = jnp.shape(arrays[i])
            inside = tuple(self.basis.size(n) if k in chosen[i] else n for k, n in enumerate(shape))
            arrays[i] = arrays[i] if inside == shape else jnp.zeros(inside, leaves.dtypes[i])
        state = self._inner.init_leaves(leaves.with_params(arrays))
        inside = leaves.with_params(arrays)
        self._inner.map_slots(inside, state, lambda slot, _, tree: self._check(leaves, arrays, chosen, slot, tree))
        state = self._inner.with_count(state, jnp.zeros((), jnp.int32))
        return self._type(memory, basis, state)

    def _axes(self, leaves: Leaves, i: int) -> tuple[int, ...]:
        if i not in leaves.present or 0 in jnp.shape(leaves.params[i]):  # without elements there is nothing to turn
            return ()
        shape, where = jnp.shape(leaves.params[i]), leaves.path(i)
        chosen = tuple(self.basis.axes(where, shape))
        if not set(chosen) <= set(range(len(shape))):
            raise ValueError(
                f"params: leaf {where} of shape {shape} has no axes {chosen}; the function given as axes must return "
                "axes counted from 0."
            )
        for n in (shape[axis] for axis in chosen):
            if not 0 < self.basis.size(n) <= max(n, 1):
                raise ValueError(
                    f"params: leaf {where} of shape {shape}: a basis of {self.basis.size(n)} vectors is asked for, but "
                    f"size({n}) of {type(self.basis).__name__} must be from 1 to {n}."
                )
        return chosen

    def _per_axis(self, leaves: Leaves, chosen: Sequence[Sequence[int]], make: Callable[..., Any]) -> PerAxis:
        """A tree for each axis, with what is made for the leaves that have it."""
        shapes = [jnp.shape(leaf) if i in leaves.present else () for i, leaf in enumerate(leaves.params)]

        def tree(axis: int) -> Any:
            column = list(leaves.params)
            for i in leaves.present:
                made = make(shapes[i][axis], leaves.dtypes[i]) if axis in chosen[i] else None
                column[i] = None if made is None else manual.like(made, jnp.asarray(leaves.params[i]))
            return leaves.tree(column)

        return tuple(tree(axis) for axis in range(max(map(len, shapes), default=0)))

    def _check(self, leaves: Leaves, arrays: Column, chosen: Sequence[Sequence[int]], slot: str, tree: Any) -> Any:
        """Refuse slots that stand for blocks of an axis whose basis changes."""
        column = leaves.column(tree, slot, optional=True)
        for i in leaves.present:
            part, shape = column[i], jnp.shape(arrays[i])
            if part is not None and any(part.shape[axis] not in (1, shape[axis]) for axis in chosen[i]):
                raise ValueError(
                    f"{self.name}: the {slot} of leaf {leaves.path(i)} stands for blocks of an axis whose "
                    "basis changes, and cannot follow. Leave that axis out, or take blocks of whole axes or of one "
                    "element."
                )
        return tree

    def update_leaves(self, leaves: Leaves, updates: Column, state: State) -> tuple[Column, State]:
        """Change the basis where it is due, run the links in it, and look at the gradient."""
        count, basis = leaves.count, self.basis
        bases, memory = self._matrices(leaves, state.basis, "basis"), self._matrices(leaves, state.memory, "memory")
        memory, inner, first = lax.stop_gradient(memory), state.inner, count == 0
        turning = {i for i, of_leaf in bases.items() if any(q is not None for q in of_leaf)}
        grad = [sharding.gathered(g) if i in turning else g for i, g in enumerate(leaves.grad)]

        def turned() -> tuple[Any, Any]:
            turns = {
                i: tuple(
                    None if q is None else self._find(q, memory[i][axis], lax.stop_gradient(grad[i]), axis, count)
                    for axis, q in enumerate(of_leaf)
                )
                for i, of_leaf in bases.items()
            }
            found = {i: tuple(t and t.basis for t in of_leaf) for i, of_leaf in turns.items()}
            return found, self._inner.map_slots(
                leaves, inner, lambda _, kind, tree: self._transport(leaves, kind, tree, bases, turns)
            )

        due = (count - int(basis.looks_first)) % basis.every == 0
        if basis.looks_first:
            due = due & ~first
        bases, inner = lax.cond(due, turned, lambda: (bases, inner))
        bases = lax.stop_gradient(bases)

        def into(column: Column) -> Column:
            return [_into(sharding.gathered(x), x, bases[i]) if i in turning else x for i, x in enumerate(column)]

        rotated_grad = into(leaves.grad)
        rotated = rotated_grad if updates is leaves.grad else into(updates)
        inside = leaves.inside(rotated, rotated_grad, self._inner.count_of(inner))
        emitted, new = inside.run_member("inner", self._inner, rotated, inner)
        new = self._inner.with_count(new, increment(inside.count))
        emitted = [
            _out_of(sharding.gathered(x), updates[i], bases[i]) if i in turning else x for i, x in enumerate(emitted)
        ]
        if basis.looks_first:
            emitted = [jnp.where(first, jnp.zeros_like(x), x) if i in bases else x for i, x in enumerate(emitted)]
            new = jax.tree.map(lambda old, fresh: jnp.where(first, old, fresh), inner, new)
        seen = {
            i: tuple(None if m is None else basis.see(m, grad[i], axis, count) for axis, m in enumerate(memory[i]))
            for i in memory
        }
        return emitted, self._type(
            self._trees(leaves, state.memory, seen), self._trees(leaves, state.basis, bases), new
        )

    def _find(self, old: jax.Array, *args: Any) -> Turn:
        turn = self.basis.find(old, *args)
        if not isinstance(turn, Turn) or turn.basis.shape != old.shape or turn.order.shape != old.shape[1:]:
            raise TypeError(
                f"{self.name}: find of {type(self.basis).__name__} must return Turn(basis, order) with a basis of "
                f"shape {old.shape} and an order of shape {old.shape[1:]}, got {turn}."
            )
        return Turn(turn.basis.astype(old.dtype), turn.order)

    def _matrices(self, leaves: Leaves, per_axis: PerAxis, name: str) -> dict[int, PerAxis]:
        """For each leaf that is present what is kept for its axes."""
        columns, found = [leaves.column(tree, name, optional=True) for tree in per_axis], {}
        for i in leaves.present:
            shape = leaves.updates[i].shape
            of_leaf = tuple(column[i] for column in columns[: len(shape)])
            kept = [column[i] for column in columns]
            wrong = len(columns) < len(shape) or any(m is not None for m in kept[len(shape) :])
            if wrong or any(m is not None and len(m) != n for n, m in zip(shape, of_leaf, strict=True)):
                raise ValueError(
                    f"leaf {leaves.path(i)} has shape {shape}, but its basis is that of another. Give update the "
                    "gradient of the params that init was given, or call init anew."
                )
            found[i] = of_leaf
        return found

    def _trees(self, leaves: Leaves, before: PerAxis, after: Mapping[int, PerAxis]) -> PerAxis:
        """What is kept for the axes, as a tree for each."""
        columns = [list(leaves.column(tree, "basis", optional=True)) for tree in before]
        for i, of_leaf in after.items():
            for axis, matrix in enumerate(of_leaf):
                columns[axis][i] = matrix
        return tuple(map(leaves.tree, columns))

    def _transport(self, leaves: Leaves, kind: str, tree: Any, bases: Any, turns: Any) -> Any:
        """A slot in the new basis."""
        column = list(leaves.column(tree, kind, optional=True))
        for i, of_leaf in turns.items():
            slot = column[i]
            if slot is None:
                continue
            moved = sharding.gathered(slot)
            for axis, turn in enumerate(of_leaf):
                if turn is None or moved.shape[axis] == 1 != turn.basis.shape[1]:
                    continue  # a mean over the axis is the same in every basis
                if kind == "square":
                    moved = jnp.take(moved, turn.order, axis=axis)
                else:
                    moved = _along(moved, turn.basis.conj().T @ bases[i][axis], axis)
            column[i] = sharding.placed_like(moved.astype(slot.dtype), slot)
        return leaves.tree(column)

    def split_state(self, state: State) -> tuple[Mapping[str, Any], list[tuple[str, Any, Any]]]:
        """The bases are its own."""
        own = {name: part for name, part in state._asdict().items() if name != "inner"}
        return own, [("inner", self.links["inner"], state.inner)]

    def state_signature(self) -> Hashable:
        """Bases that change together, and what is in them."""
        return self._signature_of_members(), type(self.basis), self.basis.every, self.basis.looks_first

    def merge_states(self, leaves: Leaves, owners: Sequence[int], states: Sequence[State]) -> State:
        """The members', and each leaf's matrices."""
        most = max(len(state.basis) for state in states)

        def join(field: str) -> PerAxis:
            trees = [[*getattr(state, field), *[None] * most][:most] for state in states]
            return tuple(leaves.merged(owners, of_axis) for of_axis in zip(*trees, strict=True))

        return super().merge_states(leaves, owners, states)._replace(memory=join("memory"), basis=join("basis"))

    def basis_obstacles(self) -> Iterator[str]:
        """What it remembers would be in the wrong one."""
        yield f"{self.name} cannot stand inside another change of basis."


def _along(leaf: jax.Array, matrix: jax.Array, axis: int) -> jax.Array:
    """Multiply by a matrix along an axis: its columns are contracted with the leaf."""
    turned = jnp.tensordot(leaf, matrix.astype(leaf.dtype), axes=(axis, 1), precision=lax.Precision.HIGHEST)
    return jnp.moveaxis(turned, -1, axis)


def _into(leaf: jax.Array, place: Any, basis: PerAxis) -> jax.Array:
    for axis, q in enumerate(basis):
        if q is not None:
            leaf = _along(leaf, q.conj().T, axis)
    return sharding.placed_like(leaf, place)


def _out_of(leaf: jax.Array, place: Any, basis: PerAxis) -> jax.Array:
    for axis, q in enumerate(basis):
        if q is not None:
            leaf = _along(leaf, q, axis)
    return sharding.placed_like(leaf, place)
