"""Every float32, and every bfloat16 with every residual: minutes, so only `pytest -m exhaustive` runs them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from test_storage import noise_of, stored

from adam_tx._core import rounding
from adam_tx.links.master_weights import _join, _split
from adam_tx.storage import EightBit
from adam_tx.storage.bfloat16 import stochastic_bfloat16

pytestmark = [pytest.mark.exhaustive, pytest.mark.usefixtures("usual_compiler")]
CHUNK = 2**22
LARGEST = 0x7F7F7FFF  # the largest float32 whose upper half, rounded, is a finite bfloat16


def chunk(k):
    """The bits of the k-th of 1024 parts of all float32."""
    return jnp.uint32(k * CHUNK) + jnp.arange(CHUNK, dtype=jnp.uint32)


def as_float(bits):
    return lax.bitcast_convert_type(bits, jnp.float32)


def as_bits(x):
    return lax.bitcast_convert_type(x, jnp.uint32)


def test_every_float32_is_split_into_its_nearest_bfloat16_and_a_residual_and_joined_to_the_last_bit():
    @jax.jit
    def wrong(bits):
        size = bits & 0x7FFFFFFF
        upper, rest = _split(as_float(bits), jnp.int16, None)
        joined = as_bits(_join(upper, rest))
        in_range = size <= LARGEST
        differs = in_range & (joined != bits)
        too_far = in_range & (
            jnp.abs(as_float(upper) - as_float(bits)) > jnp.abs(as_float(upper ^ 0x10000) - as_float(bits))
        )
        huge = ~in_range & (size < 0x7F800000) & ~jnp.isfinite(as_float(upper))
        lost = (size >= 0x7F800000) & ~jnp.isnan(as_float(upper))
        return jnp.sum(differs | too_far | huge | lost)

    for k in range(1024):
        assert int(wrong(chunk(k))) == 0, k


def test_every_bfloat16_with_every_residual_is_joined_and_split_into_the_same():
    """But for minus nothing: below a zero there are no bits, and a rest of it is none."""

    @jax.jit
    def wrong(upper, rest):
        upper, rest = upper << 16, rest.astype(jnp.int8)
        again, rest_again = _split(_join(upper, rest), jnp.int8, None)
        same = (again == upper) & (rest_again == rest)
        finite = (upper & 0x7FFFFFFF) < 0x7F800000
        nothing = (upper << 1 == 0) & (rest < 0)
        last = (upper & 0x7FFFFFFF == 0x7F7F0000) & (rest > 127)
        return jnp.sum(finite & ~same & ~nothing & ~last)

    uppers, rests = jnp.arange(2**16, dtype=jnp.uint32), jnp.arange(-128, 128, dtype=jnp.int32)
    assert int(wrong(uppers[:, None], rests[None])) == 0


def test_every_float32_is_rounded_at_random_to_one_of_its_two_bfloat16_neighbours():
    @jax.jit
    def wrong(bits):
        x = as_float(bits)
        size = bits & 0x7FFFFFFF
        got = as_bits(stochastic_bfloat16(x, rounding.bits(x, jnp.uint32(1))).astype(jnp.float32))
        below = bits & jnp.uint32(0xFFFF0000)
        neighbour = (got == below) | (got == below + 0x10000) & (bits != below)
        regular = size < 0x7F7F0000
        kept = (size >= 0x7F7F0000) & (size < 0x7F800000) & (got & 0x7FFFFFFF != 0x7F7F0000)
        infinite = (size == 0x7F800000) & (got != bits)
        nan = (size > 0x7F800000) & ~jnp.isnan(as_float(got))
        return jnp.sum((regular & ~neighbour) | kept | infinite | nan)

    for k in range(1024):
        assert int(wrong(chunk(k))) == 0, k


def test_every_size_keeps_its_order_and_is_within_a_sixteenth_in_eight_bits():
    """Every positive float32 in blocks of its neighbours: a code above zero, decoded to within one step of it."""
    storage = EightBit(block=256, min_size=1)

    @jax.jit
    def worst(bits):
        x = as_float(bits).reshape(-1, 256)
        read = storage.decode(stored(storage, x, "square", noise_of(2)), jnp.dtype(jnp.float32))
        normal = (x >= 2.0**-126) & jnp.isfinite(x)
        error = jnp.where(normal, jnp.abs(read / jnp.where(normal, x, 1.0) - 1.0), 0.0)
        return jnp.max(error), jnp.sum((x > 0) & (read == 0)), jnp.sum((x == 0) & (read != 0))

    for k in range(512):
        error, vanished, appeared = map(np.asarray, worst(chunk(k)))
        assert error <= 1 / 16, k
        assert vanished == 0, k
        assert appeared == 0, k
