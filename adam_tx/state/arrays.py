"""Arrays of a state on the host: fetched, compared, and decoded from how a link stores them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.typing import ArrayLike

from adam_tx._core import numerics
from adam_tx._core.blocks import Shape
from adam_tx._core.leaves import Leaves
from adam_tx._core.storage import Stored
from adam_tx.state.entries import LeafEntry

Array = npt.NDArray[np.number]
NARROW = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
"""The dtypes whose numbers are given as float32."""


def shapes_of(leaves: Leaves) -> dict[int, Shape]:
    """The shapes of parameters, by number."""
    nodes = leaves.nodes
    return {i: jnp.shape(nodes[i]) for i in leaves.present}


def to_host(array: ArrayLike) -> Array:
    """The array as NumPy's, all of it on every host."""
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.array(array)


def same(one: ArrayLike, other: ArrayLike) -> bool:
    """Whether two shared numbers are the same, be they NaN."""
    return np.array_equal(one, other, equal_nan=np.asarray(one).dtype.kind in "fc")


def decoded(entry: LeafEntry, values: Array, scales: Array | None) -> Array:
    """What is stored, in float32 or wider; whole numbers as they are."""
    if entry.link is None or (scales is None and values.dtype.kind in "iu"):
        return values.astype(np.float32) if values.dtype in NARROW else values
    return np.array(read(entry, values, scales))


def read(entry: LeafEntry, values: ArrayLike, scales: ArrayLike | None) -> jax.Array:
    """What is stored, in float32 or wider; it may be known only when it runs."""
    kept = jnp.asarray(values)
    dtype = jnp.dtype(jnp.float32) if scales is not None else numerics.working(kept.dtype)
    if entry.link is None:
        return kept.astype(dtype)
    stored = Stored(kept, None if scales is None else jnp.asarray(scales))
    return entry.layers.decode(entry.link.storage[entry.slot], stored, dtype)


def number(value: object) -> float | None:
    """A number, be it a concrete array, as a float; None for a schedule and for what is not known now."""
    if isinstance(value, float | int):
        return float(value)
    if isinstance(value, np.ndarray | np.generic | jax.Array) and not isinstance(value, Tracer) and not np.ndim(value):
        return float(np.asarray(value))
    return None
