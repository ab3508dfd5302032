"""Where parameters lie on a mesh: for each dimension the axes of the mesh that it is split over."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from adam_tx._core.blocks import Shape
from adam_tx._core.leaves import Leaves, Tree, is_absent
from adam_tx.state.arrays import shapes_of

Axes = tuple[tuple[str, ...], ...]
"""For each dimension of an array the axes of the mesh that it is split over."""
Spec = NamedSharding | PartitionSpec | None
"""What is said of where a parameter lies; None for nothing."""


class MeshPlacement:
    """Where the parameters of a tree lie.

    Attributes:
      leaves: these parameters.
      mesh: the devices.
      shapes: the shapes of the parameters, by number.
      axes: what their dimensions are split over, by number.
    """

    def __init__(self, leaves: Leaves, specs: Tree, mesh: Mesh | AbstractMesh | None) -> None:
        self.leaves = leaves
        nodes = leaves.nodes
        given = {i: _own(nodes[i]) for i in leaves.present} if specs is None else _of_specs(leaves, specs)
        self.shapes = shapes_of(leaves)
        self.mesh = _common_mesh(leaves, given, mesh)
        self._own = {i: _checked(leaves.path(i), self.shapes[i], spec, self.mesh) for i, spec in given.items()}
        self.axes = {i: _axes(sharding.spec, len(self.shapes[i])) for i, sharding in self._own.items()}

    def __str__(self) -> str:
        return ", ".join(f"{name}={size}" for name, size in self.mesh.shape.items())

    def sharding(self, axes: Axes = (), i: int | None = None) -> NamedSharding:
        """The sharding of an array whose dimensions are split so; that of its parameter where they are the same."""
        if i is not None and axes == _axes(self._own[i].spec, len(axes)):
            return self._own[i]
        entries = [names[0] if len(names) == 1 else names or None for names in axes]
        while entries and entries[-1] is None:
            entries.pop()
        return NamedSharding(self.mesh, PartitionSpec(*entries))

    def fitting(self, axes: Axes, pieces: Shape) -> Axes:
        """For each dimension as many of its axes as that many pieces can be split over."""
        return tuple(
            next(names[:k] for k in range(len(names), -1, -1) if n % self.devices(names[:k]) == 0)
            for names, n in zip(axes, pieces, strict=True)
        )

    def split(self, axes: Axes, pieces: Shape, names: Sequence[str]) -> Axes | None:
        """The axes, split over more axes of the mesh: each on the first dimension that is whole, or else on the first.

        None if no dimension can be divided once more. On an explicit mesh no dimension is split twice, because JAX
        would refuse to add an array that is split once and one that is split twice.
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


def _own(param: Any) -> NamedSharding | None:
    """The NamedSharding of a parameter, None where it has none."""
    found = getattr(jax.typeof(param) if isinstance(param, Tracer) else param, "sharding", None)
    return found if isinstance(found, NamedSharding) and not found.mesh.empty else None


def _of_specs(leaves: Leaves, specs: Tree) -> dict[int, Spec]:
    """The spec of each parameter, from a tree of them or a prefix of it."""
    try:
        spread = jax.tree.broadcast(specs, leaves.given("params"), is_leaf=is_absent)
        column: list[Any] = leaves.column(spread, "specs", optional=True)
        found = {i: PartitionSpec() if is_absent(column[i]) else column[i] for i in leaves.present}
        if all(isinstance(spec, PartitionSpec | NamedSharding) for spec in found.values()):
            return found
    except ValueError:
        pass
    raise ValueError(f"specs: it must be a tree of PartitionSpec like params, or a prefix of one, got {specs}.")


def _common_mesh(leaves: Leaves, given: Mapping[int, Spec], mesh: Mesh | AbstractMesh | None) -> Mesh | AbstractMesh:
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


def _checked(path: str, shape: Shape, given: Spec, mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Where a parameter lies, once it is known that it can."""
    spec = given.spec if isinstance(given, NamedSharding) else given or PartitionSpec()
    try:
        sharding = NamedSharding(mesh, spec)
        sharding.shard_shape(shape)
    except ValueError as error:
        raise ValueError(f"params: leaf {path} of shape {shape} cannot lie as {spec}: {error}") from None
    return sharding
