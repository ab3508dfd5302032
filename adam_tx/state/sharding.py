"""`state_sharding`: where every array of a state lies on a mesh, from where the parameters lie."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from adam_tx._core import hyperparams, numerics
from adam_tx._core.blocks import Shape
from adam_tx._core.leaves import Leaves, Tree
from adam_tx.state.entries import LeafEntry, arrays_of
from adam_tx.state.memory import DEVICE, memory_kinds
from adam_tx.state.placement import Axes, MeshPlacement
from adam_tx.state.reader import entries_of
from adam_tx.state.roles import Role


def state_sharding(
    tx: optax.GradientTransformation,
    params: optax.Params,
    *,
    zero1: str | Sequence[str] | None = None,
    min_size: int = 2**14,
    specs: Tree = None,
    mesh: Mesh | AbstractMesh | None = None,
    memory_kind: str | Mapping[str, str] | None = None,
) -> Tree:
    """Where every array of a state lies, from where the parameters lie.

    Give it to `jax.jit` as `out_shardings` of `tx.init` and of the training step. Then no
    device ever holds more of the state than its share.

    What is kept of a parameter lies as the parameter does:

        moments, residuals, copies       its layout
        scales of blocks, nu_of_blocks   its layout, where that divides them; whole on the other axes
        nu_row, nu_col                   its layout on the axes that they keep
        counts, weights, guard.…         whole on every device
        bases and memories of `in_basis` whole on every device, which needs all of them at every step
        arrays of other shapes (Optax)   whole on every device

    ZeRO-1, `zero1="data"`, splits what is kept of a parameter over that axis of the mesh as
    well. It takes the first dimension that is whole so far and divides evenly, or else the
    first that can be divided once more (not on an explicit mesh, where JAX refuses to add
    such arrays). Blocks of `EightBit` stay whole. Afterwards every parameter with at least
    `min_size` elements is split so, or this raises. What lay split over the axis before, as
    in FSDP, stays as it is.

    With `memory_kind="pinned_host"` what is kept of parameters lies in the memory of the
    host, and numbers that all share on the devices. A step fetches it, and `out_shardings`
    bring it back; nothing is computed in host memory::

        places = state_sharding(tx, params, memory_kind="pinned_host")
        on_device = state_sharding(tx, params, memory_kind="device")
        ...
        grads, state = jax.lax.optimization_barrier((grads, state))
        updates, state = tx.update(grads, jax.device_put(state, on_device), params)

    Without the barrier XLA fetches the state before it needs it, and nothing is saved.

    Args:
      tx: the transformation whose state it is, of adam_tx, of Optax or of both.
      params: the parameters; or their shapes, as `jax.ShapeDtypeStruct(..., sharding=...)`.
      zero1: the axis of the mesh to split over, or several; None for none.
      min_size: the least elements of a parameter that `zero1` splits. Smaller ones, such as
        biases, would save little and have to be gathered one by one.
      specs: a tree of `PartitionSpec` like the params, or a prefix of one, for params that
        have no shardings of their own.
      mesh: the mesh; by default that of the params, else that of `jax.set_mesh`. If it is
        given, params without a sharding count as whole on every device.
      memory_kind: the memory in which what is kept of parameters lies: "pinned_host",
        "device", or another of `device.addressable_memories()`; or that by patterns of roles
        or whole keys, as for `migrate`: `{"mu|nu": "pinned_host"}`, `{"*/embed/*": …}`. All
        else is then said to lie on the device. None says nothing of memories.

    Returns:
      A tree like `tx.init(params)` with a `NamedSharding` in the place of every array.
      Nothing is allocated.

    Raises:
      ValueError: params of which it is not known where they lie; blocks that a parameter's
        layout cuts; a `zero1` that cannot split a parameter, or would split none; a memory
        that the devices do not have, a pattern that means nothing in the state.

    Reference: Rajbhandari et al., ZeRO, 2019 (https://arxiv.org/abs/1910.02054).

    >>> import adam_tx
    >>> import jax
    >>> mesh = jax.sharding.AbstractMesh((8,), ("data",))
    >>> kernel = jax.ShapeDtypeStruct((256, 256), "float32")
    >>> places = state_sharding(adam_tx.adam(1e-3), kernel, zero1="data", mesh=mesh)
    >>> places["scale_by_rms"].nu.shard_shape(kernel.shape), places["count"].is_fully_replicated
    ((32, 256), True)
    """
    leaves = Leaves.of_params(params)
    placement = MeshPlacement(leaves, specs, mesh)
    state = jax.eval_shape(tx.init, leaves.tree(leaves.each(_without_numbers, leaves.nodes)))
    arrays, treedef = jax.tree.flatten(state)
    entries = [entry for entry in entries_of(tx, state, params) if isinstance(entry, LeafEntry)]
    kept = [_SlotArrays.of(entry, arrays) for entry in entries if _follows(entry, arrays, placement)]
    axes = _uncut(placement, kept)
    if zero1 is not None:
        least = hyperparams.check_int("state_sharding: min_size", min_size, least=0)
        axes |= _split(placement, kept, _names(zero1, placement), least)
    found = [placement.sharding()] * len(arrays)
    for array in kept:
        place = placement.sharding(placement.fitting(axes[array.leaf], array.pieces), array.leaf)
        for number in array.numbers:
            found[number] = place
    if memory_kind is not None:
        kinds = memory_kinds(memory_kind, entries, placement)
        found = [place.with_memory_kind(kinds.get(number, DEVICE)) for number, place in enumerate(found)]
    return treedef.unflatten(found)


class _SlotArrays(NamedTuple):
    """What is kept of a parameter: one array, or codes and their scales.

    Attributes:
      role: what it is.
      leaf: the number of the parameter.
      numbers: those of the arrays among the leaves of the state.
      shape: that of the array.
      pieces: of each dimension, how many pieces there are that must not be cut.
    """

    role: Role
    leaf: int
    numbers: list[int]
    shape: Shape
    pieces: Shape

    @classmethod
    def of(cls, entry: LeafEntry, leaves: list[Any]) -> _SlotArrays:
        """What an entry has among these leaves of a state."""
        pieces = shape = leaves[entry.values].shape
        if entry.scales is not None and entry.link is not None:
            layers, storage = entry.layers, entry.link.storage[entry.slot]
            of_layer = storage.pieces(layers.shape(shape), layers.shape(leaves[entry.scales].shape))
            pieces = layers.whole(of_layer, layers.numbers(shape))
        return cls(entry.role, entry.leaf, arrays_of(entry), shape, pieces)


def _follows(entry: LeafEntry, leaves: list[Any], placement: MeshPlacement) -> bool:
    """Whether it lies as its parameter does; else it is whole on every device."""
    shape, leaf = leaves[entry.values].shape, placement.shapes[entry.leaf]
    if entry.link is not None:
        return len(shape) == len(leaf)
    # the matrices that `in_basis` keeps of a square parameter have its shape as well
    return shape == leaf and not entry.of_basis


def _without_numbers(param: jax.Array) -> Any:
    return jax.ShapeDtypeStruct(jnp.shape(param), numerics.dtype_of(param))


def _uncut(placement: MeshPlacement, kept: list[_SlotArrays]) -> dict[int, Axes]:
    """How the parameters are split; an error if that cuts blocks of what is kept of them."""
    for array in kept:
        i, axes = array.leaf, placement.axes[array.leaf]
        if array.shape == placement.shapes[i] and placement.fitting(axes, array.pieces) != axes:
            spec = placement.sharding(axes).spec
            raise ValueError(
                f"params: leaf {placement.leaves.path(i)} of shape {array.shape} lies as {spec} on {placement}, which "
                f"would cut the blocks of its {array.role}, of which there are {array.pieces}. Split another "
                "dimension, or use EightBit(block=...) with a divisor of what each device has of the last."
            )
    return dict(placement.axes)


def _names(zero1: str | Sequence[str], placement: MeshPlacement) -> list[str]:
    """The axes of the mesh to split over."""
    names = [zero1] if isinstance(zero1, str) else list(zero1)
    for name in names or [""]:
        if placement.mesh.shape.get(name, 1) == 1:
            raise ValueError(
                f"zero1: {name!r} has no devices to split over, the mesh has {placement}, so all of the state would "
                "stay as it is. Name an axis of more than one device, or leave zero1 out."
            )
    return names


def _split(placement: MeshPlacement, kept: list[_SlotArrays], names: list[str], min_size: int) -> dict[int, Axes]:
    """How the parameters that are large enough are split over more axes of the mesh."""
    of_leaf: dict[int, list[_SlotArrays]] = {}
    for array in kept:
        of_leaf.setdefault(array.leaf, []).append(array)
    sizes = {i: math.prod(placement.shapes[i]) for i in of_leaf}
    large = [i for i, size in sizes.items() if size >= min_size]
    if not large:
        found = f"largest has {max(sizes.values())}" if sizes else "tx keeps nothing in the shape of any"
        raise ValueError(
            f"zero1: nothing would be split over {names}: it takes parameters of min_size={min_size} elements, and the "
            f"{found}. Give a smaller min_size, or leave zero1 out."
        )
    pieces = {i: _pieces_of_all(placement.shapes[i], of_leaf[i]) for i in large}
    split = {i: placement.split(placement.axes[i], pieces[i], names) for i in large}
    if failed := [i for i, axes in split.items() if axes is None]:
        arrays = ", ".join(f"{placement.leaves.path(i)} of shape {placement.shapes[i]}" for i in failed)
        explicit = ", is explicit, so that none is split twice," if placement.is_explicit else ""
        raise ValueError(
            f"zero1: no dimension can be divided evenly over {names}, where the mesh has {placement}{explicit} and "
            f"blocks stay whole: leaf {arrays}. Pad a dimension, or leave them as they are with "
            f"min_size={1 + max(sizes[i] for i in failed)}."
        )
    return {i: axes for i, axes in split.items() if axes is not None}


def _pieces_of_all(shape: Shape, kept: list[_SlotArrays]) -> Shape:
    """The number of pieces into which each dimension of a parameter can be cut, with all that has its shape."""
    alike = [array.pieces for array in kept if array.shape == shape]
    return tuple(math.gcd(*each) for each in zip(shape, *alike, strict=True))
