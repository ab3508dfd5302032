"""`EightBit`: one byte a number and two a block, rounded at random.

Both formats are a float32 without most of its mantissa, and with an exponent that is
counted from one of the block's. So encoding and decoding are a few integer
operations, and between two numbers that are stored the bits grow as the number does:
to round bits at random is to round the number without bias.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from optax import ScalarOrSchedule

from adam_tx._core import blocks, hyperparams, numerics, rounding, sharding
from adam_tx._core.storage import Noise, Storage, Stored

_DROPPED = 19  # of the 23 bits of a float32's mantissa; four are kept, 16 numbers from each power of two to the next
_EDGE = 94  # the code from which on sizes are stored with four bits of mantissa, and below with three
_INFINITY = 0x7F800000  # as bits, from which on a float32 is not finite
_NAN_SIZE, _NAN_SIGNED = 255, -128  # the codes of NaN
_SUBLANES, _LANES = 8, 128  # of a tile of a TPU
_LEAST_ROW = 64  # a shorter last axis has more scales than it is worth


@dataclasses.dataclass(frozen=True)
class EightBit(Storage):
    """One byte a number, and two bytes for each block along the last axis; rounded at random.

    Sizes that are never negative, such as Adam's nu, are stored as floats, with four bits
    of mantissa down to 2^-10 of the largest of their block, and with three down to 2^-21.
    They are rounded up or down at random, without bias. Only zero is stored as zero: what
    is smaller than the range becomes the smallest number of it, so a step divided by its
    root is rather too small than far too large.

    Signed numbers, such as Adam's mu, have steps of max / 4000 near zero and max / 30
    near the largest of their block, and are rounded without bias everywhere.

    NaN stays NaN in its place, and infinity becomes NaN; neither disturbs the rest of
    the block. A state does not depend on how many devices hold it. There are no
    derivatives with respect to what is stored. Under `jax.vmap` all members draw the same.
    A gradient 10^5 times as large as usual holds its block's neighbours back for thousands
    of steps; clip, or `guard` the run.

    Leaves that gain little keep float32: those with less than `min_size` elements, those
    whose last axis is shorter than 64, and complex ones. `adam_tx.summary` shows which.

    Attributes:
      block: elements of a block. Where the last axis is spread over devices it must divide
        each one's share.
      min_size: the least elements of a leaf that is stored so.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.adam(1e-3, mu_dtype=EightBit(), nu_dtype=EightBit())
    >>> state = tx.init(jnp.ones((64, 256)))["scale_by_rms"]
    >>> state.nu.dtype, state.scales["nu_by_128"].shape
    (dtype('uint8'), (64, 2))
    """

    block: int = 128  # pyright: ignore[reportIncompatibleVariableOverride]
    min_size: int = 4096
    scaled = True
    looks_ahead = True

    def __post_init__(self) -> None:
        """Check the numbers."""
        hyperparams.check_int("EightBit: block", self.block, least=2)
        hyperparams.check_int("EightBit: min_size", self.min_size, least=0)

    def scales_of(self, slot: str) -> str:
        """Blocks of another size cannot read them."""
        return f"{slot}_by_{self.block}"

    def check(self, slot: str, kind: str, decay: ScalarOrSchedule | None) -> None:
        """Refuse slow averages of signed numbers, of which rounding would leave nothing but noise."""
        if isinstance(decay, jax.Array | np.ndarray | np.generic) and not isinstance(decay, Tracer):
            decay = float(decay)
        slow = decay is not None and not (isinstance(decay, float | int) and decay <= 0.99)
        if kind == "gradient" and slow:
            raise ValueError(
                f"{slot} cannot be stored as {self!r} unless its decay is a number of at most 0.99, got {decay}: a "
                "slow average of gradients that change their sign is far smaller than they are, and rounding it at "
                "every step adds more noise than is left of it. Use float32 or StochasticBFloat16(); under "
                "optax.inject_hyperparams name the decay in static_args, so that it stays a number."
            )

    def begin(self, where: str, first: jax.Array, param: jax.Array, kind: str, noise: Noise) -> Stored:
        """The value, in float32 if it is small."""
        del where, param
        shape = first.shape
        few = first.size < max(self.min_size, 1)
        if few or not shape or shape[-1] < min(_LEAST_ROW, self.block) or numerics.is_complex(first):
            return Stored(first)
        kept = jnp.uint8 if kind == "square" else jnp.int8
        # times a one behind a barrier it is no constant, which XLA would reduce while it compiles, for half a minute
        first = first.astype(jnp.float32) * lax.optimization_barrier(jnp.ones((), jnp.float32))
        return self._encode(first, kept, noise(first), self._largest(first))

    def check_share(self, where: str, shape: blocks.Shape, share: blocks.Shape | None) -> None:
        """Refuse to cut a block."""
        if share is not None and share[-1] < shape[-1] and share[-1] % self.block:
            raise ValueError(
                f"params: leaf {where} of shape {shape} has {share[-1]} elements of its last axis on each device, "
                f"which blocks of {self.block} would cross. Use EightBit(block=...) with a divisor of {share[-1]}."
            )

    def encode(self, x: jax.Array, like: Stored, noise: Noise) -> Stored:
        """Codes and scales, or the number itself where it is kept so."""
        return self.encode_knowing(x, like, noise, self.ahead(x, like))

    def encode_knowing(self, x: jax.Array, like: Stored, noise: Noise, known: jax.Array | None) -> Stored:
        """The same, with the largest size of each block."""
        if known is None:
            return Stored(numerics.cast(x, like.values.dtype))
        return self._encode(x.astype(jnp.float32), like.values.dtype, noise(x), known)

    def ahead(self, x: jax.Array, like: Stored) -> jax.Array | None:
        """The largest size of each block; None where the number itself is kept."""
        return None if like.scales is None else self._largest(x)

    def outline(self, x: jax.Array, like: Stored) -> Stored:
        """Codes that are right where they are NaN."""
        if like.scales is None:
            return Stored(numerics.cast(x, like.values.dtype))
        nan = _nan_of(like.values.dtype)
        return Stored(jnp.where(jnp.isfinite(x), 0, nan).astype(like.values.dtype), jnp.zeros_like(like.scales))

    def _largest(self, x: jax.Array) -> jax.Array:
        return _largest(lax.stop_gradient(x.astype(jnp.float32)), self.block)

    def _encode(self, x: jax.Array, dtype: Any, noise: jax.Array, largest: jax.Array) -> Stored:
        encode = _encode_sizes if dtype == jnp.uint8 else _encode_signed
        codes, scales = encode(lax.stop_gradient(x), noise, self.block, largest)
        return Stored(codes.astype(dtype), scales.astype(jnp.int16))

    def decode(self, stored: Stored, dtype: jnp.dtype) -> jax.Array:
        """The numbers that the codes stand for."""
        codes, scales = stored
        if scales is None:
            if jnp.issubdtype(codes.dtype, jnp.integer):
                raise ValueError(
                    f"{self!r}: codes of dtype {codes.dtype} came without the scales that they are counted in. They "
                    "stand beside them in the state, under the name that scales_of(slot) gives."
                )
            return numerics.cast(codes, dtype)
        if scales.shape != (*codes.shape[:-1], -(-codes.shape[-1] // self.block)):
            raise ValueError(
                f"{self!r}: codes of shape {codes.shape} came with scales of shape {scales.shape}; they were stored "
                "with another block. Use the storage that made the state, or call init anew."
            )
        decode = _decode_sizes if codes.dtype == jnp.uint8 else _decode_signed
        return numerics.cast(decode(codes, scales, self.block), dtype)

    def pieces(self, shape: blocks.Shape, scales: blocks.Shape) -> blocks.Shape:
        """Blocks stay whole; where the last is shorter than the others, the last dimension does."""
        return (*shape[:-1], 1) if shape[-1] % self.block else super().pieces(shape, scales)

    def finite(self, stored: Stored) -> jax.Array | None:
        """All but the codes of NaN."""
        if stored.scales is None:
            return super().finite(stored)
        return stored.values != _nan_of(stored.values.dtype)


def _nan_of(dtype: jnp.dtype) -> int:
    return _NAN_SIZE if dtype == jnp.uint8 else _NAN_SIGNED


# jitted: traced once a shape, and one dispatch where nothing is compiled
_each = functools.partial(jax.jit, static_argnames="block")


# Sizes: codes from _EDGE on stand for floats with four bits of mantissa, 160 up to the block's largest; those below for
# floats with three, which reach twice as far. The scale is the number of the first of them in steps of the finer kind,
# even, so that the coarser ones meet it. The numbers themselves are the same in every block: what does not change is
# not rounded again when the block's largest does. Code 0 is zero.


@_each
def _encode_sizes(x: jax.Array, noise: jax.Array, block: int, largest: jax.Array) -> tuple[jax.Array, jax.Array]:
    bits = _bits(x)
    finite = bits < _INFINITY
    top = _ceiling(largest)
    edge = top + (top & 1) - (254 - _EDGE)
    start = _expand(edge, x, block)
    # what is below the smallest normal number may be flushed to zero, so it is raised to that
    fine = jnp.maximum(_rounded(bits, _DROPPED, noise), 16) - start
    coarse = jnp.maximum(_rounded(bits, _DROPPED + 1, noise), 8) - (start >> 1)
    is_coarse = _signed(bits >> _DROPPED) < start
    codes = jnp.clip(_EDGE + jnp.where(is_coarse, coarse, fine), 1, 254)
    return jnp.where(bits == 0, 0, jnp.where(finite, codes, _NAN_SIZE)), edge


def _rounded(bits: jax.Array, dropped: int, noise: jax.Array) -> jax.Array:
    """The bits without the lowest, at most those of the largest finite number."""
    return jnp.minimum(_signed(rounding.drop_bits(bits, dropped, noise)), (_INFINITY >> dropped) - 1)


@_each
def _decode_sizes(codes: jax.Array, scales: jax.Array, block: int) -> jax.Array:
    codes, edge = codes.astype(jnp.int32), _expand(scales.astype(jnp.int32), codes, block)
    beyond = codes - _EDGE
    fine, coarse = edge + beyond, (edge >> 1) + beyond
    size = jnp.where(beyond < 0, jnp.maximum(coarse, 0) << (_DROPPED + 1), jnp.maximum(fine, 0) << _DROPPED)
    return jnp.where(codes == 0, 0.0, jnp.where(codes == _NAN_SIZE, jnp.nan, _float(size)))


# Signed: of a size x the bits of x + C are counted from those of C, about max / 224. Below C the numbers that are
# stored are evenly spaced, above it their spacing doubles with them.


@_each
def _encode_signed(x: jax.Array, noise: jax.Array, block: int, largest: jax.Array) -> tuple[jax.Array, jax.Array]:
    finite = jnp.isfinite(x)
    size = jnp.where(finite, jnp.abs(x), 0.0)
    # at least 80, so that the spacing, 2^-126 then, is a normal number
    offset = jnp.maximum(_ceiling(largest * (1 / 224)), 80)
    start = _expand(offset, x, block) << _DROPPED
    shifted = jnp.minimum(size + _float(start), numerics.largest(jnp.dtype(jnp.float32)))
    beyond = _bits(shifted) - start.astype(jnp.uint32)
    codes = jnp.minimum(_signed(rounding.drop_bits(beyond, _DROPPED, noise)), 127)
    return jnp.where(finite, jnp.where(x < 0, -codes, codes), _NAN_SIGNED), offset


@_each
def _decode_signed(codes: jax.Array, scales: jax.Array, block: int) -> jax.Array:
    codes, start = codes.astype(jnp.int32), _expand(scales.astype(jnp.int32), codes, block) << _DROPPED
    size = _float((jnp.abs(codes) << _DROPPED) + start) - _float(start)
    return jnp.where(codes == _NAN_SIGNED, jnp.nan, jnp.where(codes < 0, -size, size))


def _ceiling(x: jax.Array) -> jax.Array:
    """The bits of a number of at least zero, shifted and rounded up."""
    return _signed((_bits(x) + ((1 << _DROPPED) - 1)) >> _DROPPED)


_bits = functools.partial(lax.bitcast_convert_type, new_dtype=jnp.uint32)
_signed = functools.partial(lax.bitcast_convert_type, new_dtype=jnp.int32)
_float = functools.partial(lax.bitcast_convert_type, new_dtype=jnp.float32)


# Blocks are the last dimension of a view of the array. A TPU keeps an array as tiles of eight rows and 128 columns, of
# which that view is a copy; there the same blocks are seen tile by tile, which is none.


def _largest(x: jax.Array, block: int) -> jax.Array:
    """The largest finite size in each block along the last axis; the last block may be shorter."""
    x = jnp.where(jnp.isfinite(x), jnp.abs(x), 0.0)
    rows = functools.partial(_largest_of_rows, block=block)
    if not _has_tiles(x, block):
        return rows(x)
    return lax.platform_dependent(x, tpu=functools.partial(_largest_of_tiles, block=block), default=rows)


def _largest_of_rows(x: jax.Array, block: int) -> jax.Array:
    n = x.shape[-1]
    if rest := -n % block:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, rest)])
    return jnp.max(x.reshape(*x.shape[:-1], (n + rest) // block, block), axis=-1)


def _largest_of_tiles(x: jax.Array, block: int) -> jax.Array:
    *lead, rows, columns = x.shape
    tiles = x.reshape(*lead, rows // _SUBLANES, _SUBLANES, columns // block, block).swapaxes(-3, -2)
    return jnp.max(tiles, axis=-1).swapaxes(-2, -1).reshape(*lead, rows, columns // block)


def _expand(scales: jax.Array, like: jax.Array, block: int) -> jax.Array:
    """Every element's scale."""
    rows = functools.partial(_expand_rows, columns=like.shape[-1], block=block)
    if not _has_tiles(like, block):
        return rows(scales)
    return lax.platform_dependent(scales, tpu=functools.partial(_expand_tiles, block=block), default=rows)


def _expand_rows(scales: jax.Array, columns: int, block: int) -> jax.Array:
    each = jnp.broadcast_to(scales[..., None], (*scales.shape, block))
    return each.reshape(*scales.shape[:-1], scales.shape[-1] * block)[..., :columns]


def _expand_tiles(scales: jax.Array, block: int) -> jax.Array:
    *lead, rows, blocks = scales.shape
    tiles = scales.reshape(*lead, rows // _SUBLANES, _SUBLANES, blocks).swapaxes(-2, -1)
    each = jnp.broadcast_to(tiles[..., None], (*tiles.shape, block)).swapaxes(-3, -2)
    return each.reshape(*lead, rows, blocks * block)


def _has_tiles(x: jax.Array, block: int) -> bool:
    """Whether blocks are whole tiles of a TPU; with an explicit mesh rows may not be regrouped."""
    whole = x.ndim >= 2 and x.shape[-2] % _SUBLANES == 0 and x.shape[-1] % block == 0 and block % _LANES == 0
    return whole and not sharding.is_explicit(x)
