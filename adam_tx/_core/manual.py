"""Inside `jax.shard_map` and `jax.pmap`, where each device computes with its own part: what is one for all of them.

JAX knows of each array over which axes of the mesh it varies. With `check_vma=False`, and
in `pmap`, it does not; then every array may differ on every device, or be the same.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


def everywhere(ok: jax.Array) -> jax.Array:
    """Whether it is so on all devices."""
    axes = _axes(ok)
    return lax.pmin(ok.astype(jnp.int32), axes) > 0 if axes else ok


def total(numbers: jax.Array) -> jax.Array:
    """The sums over all devices that hold a part of their own; their mean where that is not known."""
    if axes := _axes(numbers):
        return lax.psum(numbers, axes) if _known() else lax.pmean(numbers, axes)
    return numbers


def mean(number: jax.Array) -> jax.Array:
    """The mean of what each device has for itself; a number that all have in common is that."""
    axes = _axes(number)
    return lax.pmean(number, axes) if axes else number


def largest(numbers: jax.Array) -> jax.Array:
    """The largest on any device."""
    axes = _axes(numbers)
    return lax.pmax(numbers, axes) if axes else numbers


def parts(x: jax.Array) -> int:
    """On how many devices parts of the array are; 1 where that is not known."""
    return functools.reduce(lambda n, axis: n * lax.axis_size(axis), _axes(x) if _known() else (), 1)


def gathered(row: jax.Array) -> jax.Array:
    """The rows of all devices, one after the other."""
    for axis in _axes(row):
        own = jnp.arange(lax.axis_size(axis))[:, None] == lax.axis_index(axis)
        row = lax.psum(jnp.where(own, row, jnp.zeros_like(row)), axis).ravel()
    return row


def like(number: jax.Array, leaf: jax.Array) -> jax.Array:
    """The number, varying as the leaf does, so that a scan may carry what becomes of it."""
    axes = tuple(sorted(varying(leaf) - varying(number)))
    return lax.pcast(number, axes, to="varying") if axes else number


def varying(x: jax.Array) -> frozenset[str]:
    """The axes of the mesh over which JAX knows that an array varies."""
    kind = jax.typeof(x)
    if hasattr(kind, "vma"):  # before jax 0.9
        return kind.vma
    return getattr(getattr(kind, "manual_axis_type", None), "varying", frozenset())


def _axes(x: jax.Array) -> tuple[str, ...]:
    """The axes over which an array varies, or may do so."""
    return tuple(sorted(varying(x))) if _known() else _manual()


def _manual() -> tuple[str, ...]:
    """The axes over which `shard_map` or `pmap` maps here; those of `vmap` are none."""
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)


def _known() -> bool:
    """Whether JAX knows what varies; there is nothing to know outside."""
    return all(varying(lax.axis_index(axis)) for axis in _manual())
