"""`in_basis`: links that see the gradient in another basis, and what a basis is.

Rotating, projecting and transporting what the links have accumulated is here, once;
how a basis is found is a `Basis`, such as SOAP's in `eigenbasis.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adam_tx._core import hyperparams, manual, sharding, states
from adam_tx._core.abstract_link import AbstractLink
from adam_tx._core.blocks import Shape
from adam_tx._core.call import Reconstructible
from adam_tx._core.layers import Layers
from adam_tx._core.leaves import Column, Leaves, Tree
from adam_tx._core.provenance import Provenance, Run
from adam_tx._core.states import State
from adam_tx._link import Link, optimizer
from adam_tx._wrapper import Wrapper

AxesOf = Callable[[str, Shape], Sequence[int]]
PerAxis = tuple[Any, ...]
"""One entry for each axis of a leaf, None for an axis that keeps its basis."""
Matrices = dict[int, PerAxis]
"""What is kept for the axes of each leaf, by its number."""
_Made = Callable[[int, jnp.dtype], jax.Array | None]
"""From the elements of an axis and the dtype of its leaf to what is kept for it at first."""


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

    def see(self, memory: jax.Array, grad: jax.Array, axis: int, count: jax.Array) -> jax.Array:
        """What is remembered after this gradient."""
        del grad, axis, count
        return memory

    def find(self, basis: jax.Array, memory: jax.Array, grad: jax.Array, axis: int, count: jax.Array) -> Turn:
        """The new basis of an axis, before this gradient is used; called every `every` updates."""
        raise NotImplementedError


@optimizer
def in_basis(inner: Link, basis: Basis) -> InBasis:
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
    return InBasis(inner, basis, "in_basis")


class InBasis(Wrapper):
    """A link whose members see another basis."""

    counts_inner = True
    keeps_basis = True

    def __init__(self, inner: Link, basis: Basis, name: str, formula: str = "Q inner(Qᴴ u)") -> None:
        if not isinstance(basis, Basis):
            raise TypeError(f"{name}: basis must be an instance of a subclass of adam_tx.Basis, got {basis!r}.")
        hyperparams.check_int(f"{name}: every", basis.every)
        super().__init__(inner, name=name, keeps=("memory", "basis"), reads_grad=True, elementwise=False)
        self.basis = basis
        self.formula = formula
        self.hyperparams = {"basis": basis}
        if reason := next(self.inner.basis_obstacles(), None):
            raise ValueError(f"{name}: {reason}")

    def init_leaves(self, leaves: Leaves) -> State:
        """The first bases, and the links' states for leaves in them."""
        chosen = [self._axes(leaves, i) for i in range(len(leaves))]
        memory = self._per_axis(leaves, chosen, self.basis.remember)
        basis = self._per_axis(leaves, chosen, lambda n, dtype: jnp.eye(n, self.basis.size(n), dtype=dtype))
        arrays = list(leaves.initial)
        for i in leaves.present:
            layers, whole = leaves.layers_of(i), jnp.shape(arrays[i])
            shape = layers.shape(whole)
            turned = tuple(self.basis.size(n) if k in chosen[i] else n for k, n in enumerate(shape))
            if turned != shape:
                arrays[i] = jnp.zeros(layers.whole(turned, layers.numbers(whole)), leaves.dtypes[i])
        inside = leaves.within(self.member).replace(params=arrays)
        state = self.inner.init_leaves(inside)
        self.inner.map_slots(inside, state, lambda slot, _, tree: self._check(leaves, arrays, chosen, slot, tree))
        return self.state(self.inner.with_count(state, jnp.zeros((), jnp.int32)), memory=memory, basis=basis)

    def _axes(self, leaves: Leaves, i: int) -> tuple[int, ...]:
        if i not in leaves.present or 0 in jnp.shape(leaves.initial[i]):  # without elements there is nothing to turn
            return ()
        shape = leaves.layers_of(i).shape(jnp.shape(leaves.initial[i]))
        where = leaves.path(i)
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

    def _per_axis(self, leaves: Leaves, chosen: Sequence[Sequence[int]], make: _Made) -> PerAxis:
        """A tree for each axis, with what is made for the leaves that have it."""
        whole = [jnp.shape(leaf) if i in leaves.present else () for i, leaf in enumerate(leaves.initial)]
        shapes = [leaves.layers_of(i).shape(shape) for i, shape in enumerate(whole)]

        def of_leaf(i: int, axis: int) -> jax.Array | None:
            if axis not in chosen[i] or (made := make(shapes[i][axis], leaves.dtypes[i])) is None:
                return None
            of_layers = jnp.broadcast_to(made, (*leaves.layers_of(i).numbers(whole[i]), *made.shape))
            return manual.like(of_layers, jnp.asarray(leaves.initial[i]))

        def tree(axis: int) -> Any:
            column = list[Any](leaves.initial)
            for i in leaves.present:
                column[i] = of_leaf(i, axis)
            return leaves.tree(column)

        return tuple(tree(axis) for axis in range(max(map(len, shapes), default=0)))

    def _check(self, leaves: Leaves, arrays: Column, chosen: Sequence[Sequence[int]], slot: str, tree: Any) -> Any:
        """Refuse slots that stand for blocks of an axis whose basis changes."""
        column: list[Any] = leaves.column(tree, slot, optional=True)
        for i in leaves.present:
            part, layers = column[i], leaves.layers_of(i)
            shape = layers.shape(jnp.shape(arrays[i]))
            kept = () if part is None else layers.shape(part.shape)
            if part is not None and any(kept[axis] not in (1, shape[axis]) for axis in chosen[i]):
                raise ValueError(
                    f"{self.name}: the {slot} of leaf {leaves.path(i)} stands for blocks of an axis whose "
                    "basis changes, and cannot follow. Leave that axis out, or take blocks of whole axes or of one "
                    "element."
                )
        return tree

    def update_leaves(self, leaves: Leaves, updates: Column, state: State) -> tuple[Column, State]:
        """Change the basis where it is due, run the links in it, and look at the gradient."""
        fields = self.fields(state)
        memory = lax.stop_gradient(self._matrices(leaves, fields.memory, "memory"))
        bases = self._matrices(leaves, fields.basis, "basis")
        first = leaves.count == 0
        turning = {i for i, of_leaf in bases.items() if any(q is not None for q in of_leaf)}
        grad = [sharding.gathered(g) if i in turning else g for i, g in enumerate(leaves.grad or ())]
        bases, inner = self._changed(leaves, grad, bases, memory, fields.inner)

        def into(column: Column) -> Column:
            return [_turned(x, x, bases[i], leaves.layers_of(i)) if i in turning else x for i, x in enumerate(column)]

        rotated_grad = into(leaves.grad or [])
        rotated = rotated_grad if updates is leaves.grad else into(updates)
        inside = leaves.replace(updates=rotated, grad=rotated_grad, params=None)
        emitted, new = self.run_inner(inside, rotated, inner)
        for i in turning:
            emitted[i] = _turned(emitted[i], updates[i], bases[i], leaves.layers_of(i), back=True)
        if self.basis.looks_first:
            emitted = [jnp.where(first, jnp.zeros_like(x), x) if i in bases else x for i, x in enumerate(emitted)]
            new = jax.tree.map(functools.partial(jnp.where, first), inner, new)

        def see(i: int, axis: int, before: jax.Array) -> jax.Array:
            def of_layer(g: jax.Array, m: jax.Array) -> jax.Array:
                return self.basis.see(m, g, axis, leaves.count)

            return leaves.layers_of(i).each(of_layer)(grad[i], before)

        seen = _of_axes(memory, see)
        return emitted, self.state(
            new, memory=self._trees(leaves, fields.memory, seen), basis=self._trees(leaves, fields.basis, bases)
        )

    def _changed(
        self, leaves: Leaves, grad: Column, bases: Matrices, memory: Matrices, inner: State
    ) -> tuple[Matrices, State]:
        """The bases of this update, and what the links inside have accumulated, in them."""
        count = leaves.count
        still = lax.stop_gradient

        def changed() -> tuple[Matrices, State]:
            def find(i: int, axis: int, q: jax.Array) -> Turn:
                def of_layer(g: jax.Array, known: Sequence[Any]) -> Turn:
                    return self._find(*known, g, axis, count)

                return leaves.layers_of(i).each(of_layer)(still(grad[i]), (q, memory[i][axis]))

            turns = _of_axes(bases, find)

            def transport(_: str, kind: str, tree: Tree) -> Tree:
                return self._transport(leaves, kind, tree, bases, turns)

            found = _of_axes(turns, lambda _, __, turn: turn.basis)
            return found, self.inner.map_slots(leaves.within(self.member), inner, transport)

        due = (count - int(self.basis.looks_first)) % self.basis.every == 0
        if self.basis.looks_first:
            due = due & (count != 0)
        found, inner = lax.cond(due, changed, lambda: (bases, inner))
        return still(found), inner

    def _find(self, old: jax.Array, *args: Any) -> Turn:
        turn = self.basis.find(old, *args)
        if not isinstance(turn, Turn) or turn.basis.shape != old.shape or turn.order.shape != old.shape[1:]:
            raise TypeError(
                f"{self.name}: find of {type(self.basis).__name__} must return Turn(basis, order) with a basis of "
                f"shape {old.shape} and an order of shape {old.shape[1:]}, got {turn}."
            )
        return Turn(turn.basis.astype(old.dtype), turn.order)

    def _matrices(self, leaves: Leaves, per_axis: PerAxis, name: str) -> Matrices:
        """For each leaf that is present what is kept for its axes."""
        columns: list[list[Any]] = [leaves.column(tree, name, optional=True) for tree in per_axis]
        found: Matrices = {}
        for i in leaves.present:
            layers, whole = leaves.layers_of(i), leaves.updates[i].shape
            shape, numbers = layers.shape(whole), layers.numbers(whole)
            of_leaf = tuple(column[i] for column in columns[: len(shape)])
            kept = [column[i] for column in columns]
            wrong = len(columns) < len(shape) or any(m is not None for m in kept[len(shape) :])
            expected = [(*numbers, n) for n in shape]
            if wrong or any(m is not None and m.shape[: len(e)] != e for e, m in zip(expected, of_leaf, strict=True)):
                raise ValueError(
                    f"leaf {leaves.path(i)} has shape {whole}, but its basis is that of another. Give update the "
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
            layers = leaves.layers_of(i)
            moved = layers.each(functools.partial(_moved, kind))(sharding.gathered(slot), (bases[i], of_leaf))
            column[i] = sharding.placed_like(layers.placed(moved).astype(slot.dtype), slot)
        return leaves.tree(column)

    def state_signature(self) -> Hashable:
        """Bases that change together, and what is in them."""
        return AbstractLink.state_signature(self), type(self.basis), self.basis.every, self.basis.looks_first

    def merge_states(self, leaves: Leaves, owners: Sequence[int], states: Sequence[State]) -> State:
        """The members', and each leaf's matrices."""
        given = [self.fields(state) for state in states]
        most = max(len(state.basis) for state in given)

        def join(field: str) -> PerAxis:
            trees = [[*getattr(state, field), *[None] * most][:most] for state in given]
            return tuple(leaves.merged(owners, of_axis) for of_axis in zip(*trees, strict=True))

        merged: Any = super().merge_states(leaves, owners, states)
        return merged._replace(memory=join("memory"), basis=join("basis"))

    def role_of(self, field: str) -> str:
        """The memory is of the kind of basis."""
        return field if field == "basis" else f"{type(self.basis).__name__}.{field}"

    def trace(self, run: Run, updates: Provenance, grad: Provenance) -> Provenance:
        """The member's, to which all is in another basis."""
        return run(self.member, updates.marked("basis"), grad.marked("basis"))

    def basis_obstacles(self) -> Iterator[str]:
        """What it remembers would be in the wrong one."""
        yield f"{self.name} cannot stand inside another change of basis."


def _of_axes(kept: Matrices, function: Callable[[int, int, Any], Any]) -> Matrices:
    """What a function of leaf, axis and what is kept for them makes of all that is kept."""
    return {
        i: tuple(None if one is None else function(i, axis, one) for axis, one in enumerate(of_leaf))
        for i, of_leaf in kept.items()
    }


def _moved(kind: str, slot: jax.Array, known: tuple[PerAxis, PerAxis]) -> jax.Array:
    """A slot of one layer, from the bases that were to those that the turns lead to."""
    for axis, (before, turn) in enumerate(zip(*known, strict=True)):
        if turn is None or slot.shape[axis] == 1 != turn.basis.shape[1]:
            continue  # a mean over the axis is the same in every basis
        if kind == "square":
            slot = jnp.take(slot, turn.order, axis=axis)
        else:
            slot = _along(slot, turn.basis.conj().T @ before, axis)
    return slot


def _along(leaf: jax.Array, matrix: jax.Array, axis: int) -> jax.Array:
    """Multiply by a matrix along an axis: its columns are contracted with the leaf."""
    turned = jnp.tensordot(leaf, matrix.astype(leaf.dtype), axes=(axis, 1), precision=lax.Precision.HIGHEST)
    return jnp.moveaxis(turned, -1, axis)


def _turned(leaf: jax.Array, place: jax.Array, basis: PerAxis, layers: Layers, *, back: bool = False) -> jax.Array:
    """The leaf in the basis, or back out of it, placed like another."""

    def turned(layer: jax.Array, basis: PerAxis) -> jax.Array:
        for axis, q in enumerate(basis):
            if q is not None:
                layer = _along(layer, q if back else q.conj().T, axis)
        return layer

    return sharding.placed_like(layers.placed(layers.each(turned)(sharding.gathered(leaf), basis)), place)


for _name in ("in_basis", "in_eigenbasis"):
    states.wrapper_type(_name, "memory", "basis", "inner")  # so that exported programs find it
