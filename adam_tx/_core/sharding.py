"""Placing arrays under an explicit mesh, where JAX refuses to guess how the results of products are sharded."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def gathered(x: jax.Array) -> jax.Array:
    """The array with all of its elements on every device of an explicit mesh; as it is without one."""
    mesh = _explicit_mesh(x)
    return x if mesh is None else jax.reshard(x, NamedSharding(mesh, PartitionSpec()))


def placed_like(x: jax.Array, leaf: jax.Array) -> jax.Array:
    """The array sharded as a leaf of its shape is under an explicit mesh; as it is without one, or of another shape."""
    if x.shape != leaf.shape or _explicit_mesh(leaf) is None:
        return x
    return jax.reshard(x, jax.typeof(leaf).sharding)


def together(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is read of one leaf, every array split as finely as any of them; as it is without an explicit mesh.

    Under ZeRO-1 a moment is split over more axes of the mesh than its gradient, and JAX
    refuses to choose between them where a dimension is split in both.
    """
    placed = {name: x for name, x in row.items() if isinstance(x, jax.Array) and _explicit_mesh(x) is not None}
    specs = {name: tuple(jax.typeof(x).sharding.spec) for name, x in placed.items()}
    if len(set(specs.values())) < 2:
        return dict(row)
    shape = max((x.shape for x in placed.values()), key=math.prod)
    alike = {name: x for name, x in placed.items() if x.ndim == len(shape)}
    finest = [
        max((specs[name][d] for name, x in alike.items() if x.shape[d] == n), key=lambda entry: len(_axes(entry)))
        for d, n in enumerate(shape)
    ]
    moved, used = dict(row), [axis for entry in finest for axis in _axes(entry)]
    if len(used) > len(set(used)):  # there is no such layout
        return moved
    for name, x in alike.items():
        entries = [finest[d] if x.shape[d] == n else specs[name][d] for d, n in enumerate(shape)]
        moved[name] = jax.reshard(x, NamedSharding(_explicit_mesh(x), PartitionSpec(*entries)))
    return moved


def _axes(entry: Any) -> tuple[str, ...]:
    """The axes of the mesh that a dimension is split over."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _explicit_mesh(x: jax.Array) -> Any:
    mesh = getattr(getattr(jax.typeof(x), "sharding", None), "mesh", None)
    return mesh if mesh is not None and AxisType.Explicit in getattr(mesh, "axis_types", ()) else None


def is_explicit(*arrays: jax.Array) -> bool:
    """Whether any of the arrays lies on an explicit mesh."""
    return any(_explicit_mesh(x) is not None for x in arrays)


def share(x: Any) -> tuple[int, ...] | None:
    """The shape of what each device has of an array; None where that is not known."""
    if isinstance(x, Tracer):  # it has no sharding, and to say so JAX looks through all equations so far
        x = jax.typeof(x) if _explicit_mesh(x) is not None else None
    placed = getattr(x, "sharding", None)
    return None if placed is None else placed.shard_shape(x.shape)
