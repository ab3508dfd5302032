"""Where parameters lie on a mesh: for each dimension the axes of the mesh that it is split over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from adam_tx._core.blocks import Shape
from adam_tx._core.leaves import Leaves, is_absent

Axes = tuple[tuple[str, ...], ...]
"""For each dimension of an array the axes of the mesh that it is split over."""


class MeshPlacement:
    """Where the parameters of a tree lie.

    Attributes:
      mesh: the devices.
      shapes: the shapes of the parameters, by number.
      axes: what their dimensions are split over, by number.
    """

    def __init__(self, leaves: Leaves, specs: Any, mesh: Mesh | AbstractMesh | None) -> None:
        given = _given(leaves) if specs is None else _of_specs(leaves, specs)
        self.shapes: dict[int, Shape] = {i: jnp.shape(leaves.params[i]) for i in leaves.present}
        self.mesh = mesh = _common_mesh(leaves, given, mesh)
        self._own = {i: _checked(leaves, i, placed, mesh) for i, placed in given.items()}
        self.axes = {i: _axes(sharding.spec, len(self.shapes[i])) for i, sharding in self._own.items()}

    def __str__(self) -> str:
        return ", ".join(f"{name}={size}" for name, size in self.mesh.shape.items())

    def sharding(self, axes: Axes = (), i: int | None = None) -> NamedSharding:
        """That of an array whose dimensions are split so; where it is that of a parameter, the very same."""
        if i is not None and axes == _axes(self._own[i].spec, len(axes)):
            return self._own[i]
        entries = [names[0] if len(names) == 1 else names or None for names in axes]
        while entries and entries[-1] is None:
            entries.pop()
        return NamedSharding(self.mesh, PartitionSpec(*entries))

    def fitting(self, axes: Axes, pieces: Shape) -> Axes:
        """Of each dimension's axes the first ones over which that many pieces can be split."""
        return tuple(
            next(names[:k] for k in range(len(names), -1, -1) if n % self.devices(names[:k]) == 0)
            for names, n in zip(axes, pieces, strict=True)
        )

    def split(self, axes: Axes, pieces: Shape, names: Sequence[str]) -> Axes | None:
        """Split over more axes of the mesh, each on the first dimension that is whole so far, or on the first at all.

        None where the pieces of no dimension can be divided once more. On an explicit mesh a dimension is not split
        twice: JAX would refuse to add what is split once and what is split twice.
        """
        for name in names:
            if any(name in of_dimension for of_dimension in axes):
                continue
            for d in sorted(range(len(axes)), key=lambda d: len(axes[d]) > 0):
                further = (*axes[d], name)
                if pieces[d] and pieces[d] % self.devices(further) == 0 and not (axes[d] and self.is_explicit):
                    axes = (*axes[:d], further, *axes[d + 1 :])
                    break
            else:
                return None
        return axes

    @property
    def is_explicit(self) -> bool:
        """Whether the mesh has explicit axes."""
        return AxisType.Explicit in self.mesh.axis_types

    def devices(self, names: Sequence[str]) -> int:
        """How many there are along these axes of the mesh."""
        return math.prod(self.mesh.shape[name] for name in names)


def _axes(spec: PartitionSpec, ndim: int) -> Axes:
    entries = [*spec, *[None] * (ndim - len(spec))]
    return tuple((e,) if isinstance(e, str) else e if isinstance(e, tuple) else () for e in entries)


def _given(leaves: Leaves) -> dict[int, Any]:
    """The NamedSharding of each parameter, None where it has none."""
    found: dict[int, Any] = {}
    for i in leaves.present:
        leaf = leaves.params[i]
        sharding = getattr(jax.typeof(leaf) if isinstance(leaf, Tracer) else leaf, "sharding", None)
        found[i] = sharding if isinstance(sharding, NamedSharding) and not sharding.mesh.empty else None
    return found


def _of_specs(leaves: Leaves, specs: Any) -> dict[int, Any]:
    """The spec of each parameter, from a tree of them or a prefix of it."""
    try:
        column = leaves.column(
            jax.tree.broadcast(specs, leaves.given("params"), is_leaf=is_absent), "specs", optional=True
        )
        found = {i: PartitionSpec() if is_absent(column[i]) else column[i] for i in leaves.present}
        if all(isinstance(spec, PartitionSpec | NamedSharding) for spec in found.values()):
            return found
    except ValueError:
        pass
    raise ValueError(f"specs: it must be a tree of PartitionSpec like params, or a prefix of one, got {specs}.")


def _common_mesh(leaves: Leaves, given: dict[int, Any], mesh: Any) -> Any:
    """The mesh on which all parameters lie; those that came without one are replicated if it is named."""
    placed = {i: sharding.mesh for i, sharding in given.items() if isinstance(sharding, NamedSharding)}
    if mesh is None and (lost := [i for i, spec in given.items() if spec is None]):
        raise ValueError(
            f"params: leaf {leaves.path(lost[0])} came without a NamedSharding. Place it with jax.device_put, give "
            "specs=, or give mesh= if it is whole on every device."
        )
    found = mesh or next(iter(placed.values()), None) or jax.sharding.get_mesh()
    if found.empty:
        raise ValueError("mesh: there is no mesh, only the axes that specs name. Give mesh=, or use jax.set_mesh.")
    for i, other in placed.items():
        if other.abstract_mesh != found.abstract_mesh:
            raise ValueError(
                f"params: leaf {leaves.path(i)} lies on {other}, but others on {found}. Give one mesh for all."
            )
    return found


def _checked(leaves: Leaves, i: int, placed: Any, mesh: Any) -> NamedSharding:
    """Where a parameter lies, once it is known that it can."""
    spec = placed.spec if isinstance(placed, NamedSharding) else placed or PartitionSpec()
    shape = jnp.shape(leaves.params[i])
    try:
        sharding = NamedSharding(mesh, spec)
        sharding.shard_shape(shape)
    except ValueError as error:
        raise ValueError(f"params: leaf {leaves.path(i)} of shape {shape} cannot lie as {spec}: {error}") from None
    return sharding
