"""Placing arrays under an explicit mesh, where JAX refuses to guess how the results of products are sharded."""

from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def gathered(x: jax.Array) -> jax.Array:
    """The array with all of its elements on every device of an explicit mesh; as it is without one."""
    mesh = _explicit_mesh(x)
    return x if mesh is None else jax.reshard(x, NamedSharding(mesh, PartitionSpec()))


def placed_like(x: jax.Array, leaf: Any) -> jax.Array:
    """The array sharded as a leaf of its shape is under an explicit mesh; as it is without one, or of another shape."""
    if x.shape != leaf.shape or _explicit_mesh(leaf) is None:
        return x
    return jax.reshard(x, jax.typeof(leaf).sharding)


def _explicit_mesh(x: jax.Array) -> Any:
    mesh = getattr(getattr(jax.typeof(x), "sharding", None), "mesh", None)
    return mesh if mesh is not None and AxisType.Explicit in getattr(mesh, "axis_types", ()) else None


def share(x: Any) -> tuple[int, ...] | None:
    """The shape of what each device has of an array; None where that is not known."""
    placed = getattr(x, "sharding", None)
    if isinstance(x, Tracer):
        placed = getattr(jax.typeof(x), "sharding", None) if _explicit_mesh(x) is not None else None
    return None if placed is None else placed.shard_shape(x.shape)
