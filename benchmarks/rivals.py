"""Formats of optimizer state that other packages ship, rebuilt from their formulas in NumPy; used by `formats.py`.

Each stores Adam's two moments, m of either sign and v of none, between two steps. All round to nearest. What
packages do with leaves of few elements, to keep them in float32, is left out, so that small arrays show the formats.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np

Array = np.ndarray


class Codes(NamedTuple):
    """What is stored of an array, and the shape that it had.

    Attributes:
      values: a code an element.
      scales: what multiplies the decoded values; every block has one, or every row and column.
      shape: of the array.
    """

    values: Array
    scales: tuple[Array, ...]
    shape: tuple[int, ...]


class Format:
    """A pair of codecs, for m and for v.

    Attributes:
      name: of the package and the format.
      skips: whether a step leaves out elements whose gradient is not finite, and sets their m and v to zero.
    """

    name: str
    skips: bool = False

    def encode_m(self, m: Array) -> Codes:
        """What is stored of m."""
        raise NotImplementedError

    def decode_m(self, codes: Codes) -> Array:
        """The m that was stored."""
        raise NotImplementedError

    def encode_v(self, v: Array) -> Codes:
        """What is stored of v."""
        raise NotImplementedError

    def decode_v(self, codes: Codes) -> Array:
        """The v that was stored."""
        raise NotImplementedError

    def bytes(self, shape: Sequence[int]) -> float:
        """Bytes that both moments take for each element of a leaf."""
        raise NotImplementedError


def split(x: Array, size: int) -> Array:
    """Blocks of consecutive elements, one a row; the last is filled up with zeros."""
    flat = x.reshape(-1)
    return np.pad(flat, (0, -flat.size % size)).reshape(-1, size)


def join(blocks: Array, shape: tuple[int, ...]) -> Array:
    """The array that was split."""
    return blocks.reshape(-1)[: math.prod(shape)].reshape(shape)


def blocks_of(size: int, block: int) -> int:
    """How many blocks an array of this size has."""
    return -(-size // block)


class Float32(Format):
    """Both moments as they are; in float64 if the gradients are."""

    name = "float32"

    def encode_m(self, m: Array) -> Codes:
        """The array."""
        return Codes(m, (), m.shape)

    def decode_m(self, codes: Codes) -> Array:
        """The array."""
        return codes.values

    def encode_v(self, v: Array) -> Codes:
        """As m."""
        return self.encode_m(v)

    def decode_v(self, codes: Codes) -> Array:
        """As m."""
        return self.decode_m(codes)

    def bytes(self, shape: Sequence[int]) -> float:
        """Four each."""
        del shape
        return 8.0


class BFloat16(Float32):
    """Both moments rounded to the nearest bfloat16, as where `nu_dtype` or the parameters' dtype is that."""

    name = "bfloat16, nearest"

    def encode_m(self, m: Array) -> Codes:
        """The upper half of the float32."""
        return Codes(m.astype(ml_dtypes.bfloat16), (), m.shape)

    def decode_m(self, codes: Codes) -> Array:
        """The float32."""
        return codes.values.astype(np.float32)

    def bytes(self, shape: Sequence[int]) -> float:
        """Two each."""
        del shape
        return 4.0


class FlashOptim(Format):
    """FlashOptim: m through a softsign in int8, the root of v in uint8, float16 scales of groups of 32.

    With s the largest of the group (at least 1e-12) and x = m / s, the code of m is round(127 * 2x / (1 + |x|)), and
    that of v is round(255 * sqrt(v) / s). Groups run over the flattened array.

    Source: databricks/flashoptim, flashoptim/optimizers.py; arXiv 2602.23349.
    """

    name = "FlashOptim"
    group = 32

    def encode_m(self, m: Array) -> Codes:
        """Signed codes and float16 scales."""
        x, scale = self._scaled(split(m, self.group))
        codes = np.floor(127 * 2 * x / (1 + np.abs(x)) + np.float32(0.5))
        return Codes(codes.astype(np.int8), (scale,), m.shape)

    def decode_m(self, codes: Codes) -> Array:
        """The softsign undone."""
        y = codes.values.astype(np.float32) / 127
        return join(y / (2 - np.abs(y)) * codes.scales[0].astype(np.float32), codes.shape)

    def encode_v(self, v: Array) -> Codes:
        """Codes of the root and float16 scales."""
        x, scale = self._scaled(np.sqrt(split(v, self.group)))
        return Codes(np.floor(255 * x + np.float32(0.5)).astype(np.uint8), (scale,), v.shape)

    def decode_v(self, codes: Codes) -> Array:
        """The root, squared."""
        root = codes.values.astype(np.float32) / 255 * codes.scales[0].astype(np.float32)
        return join(np.square(root), codes.shape)

    def _scaled(self, groups: Array) -> tuple[Array, Array]:
        scale = np.maximum(np.max(np.abs(groups), axis=1, keepdims=True), np.float32(1e-12))
        return groups / scale, scale.astype(np.float16)

    def bytes(self, shape: Sequence[int]) -> float:
        """A code each, and two bytes for each group."""
        size = math.prod(shape)
        return 2 * (1 + 2 * blocks_of(size, self.group) / size)


def dynamic_map(signed: bool, bits: int) -> Array:
    """The dynamic map of Dettmers (arXiv 1511.04561): seven decades at 8 bits, the lower the fewer numbers in them.

    Decade i of n, from 10^(i - n) to 10^(i - n + 1), holds the middles of 2^i equal parts, or of 2^(i + 1) if
    the map has no sign. 0 and 1 are added.
    """
    decades = bits - 1
    numbers = [0.0, 1.0]
    for i in range(decades):
        bounds = np.linspace(0.1, 1, 2 ** (i if signed else i + 1) + 1)
        middles = (bounds[:-1] + bounds[1:]) / 2 * 10.0 ** (i - decades + 1)
        numbers += [*middles, *-middles] if signed else [*middles]
    return np.sort(np.array(numbers, np.float32))


def nearest(x: Array, numbers: Array) -> Array:
    """The index of the nearest of sorted numbers; 0 for NaN."""
    codes = np.searchsorted((numbers[:-1] + numbers[1:]) / 2, x).astype(np.uint8)
    return np.where(np.isnan(x), np.uint8(0), codes)


class Mapped(Format):
    """Blocks of the flattened array divided by their largest, then the nearest number of a map."""

    block: int
    map_m: Array
    map_v: Array
    floor: float = 0.0

    def encode_m(self, m: Array) -> Codes:
        """Indices into the map of m, and float32 scales."""
        return self._encode(m, self.map_m)

    def decode_m(self, codes: Codes) -> Array:
        """The map's numbers, scaled."""
        return join(self.map_m[codes.values] * codes.scales[0], codes.shape)

    def encode_v(self, v: Array) -> Codes:
        """Indices into the map of v, and float32 scales."""
        return self._encode(v, self.map_v)

    def decode_v(self, codes: Codes) -> Array:
        """The map's numbers, scaled."""
        return join(self.map_v[codes.values] * codes.scales[0], codes.shape)

    def _encode(self, x: Array, numbers: Array) -> Codes:
        blocks = split(x, self.block)
        scale = np.maximum(np.max(np.abs(blocks), axis=1, keepdims=True), np.float32(self.floor))
        return Codes(nearest(blocks / scale, numbers), (scale,), x.shape)

    def bytes(self, shape: Sequence[int]) -> float:
        """A code each, and four bytes for each block."""
        size = math.prod(shape)
        return 2 * (1 + 4 * blocks_of(size, self.block) / size)


class BitsAndBytes(Mapped):
    """bitsandbytes: the dynamic maps of 256 numbers, blocks of 256 with a float32 scale, v itself and not its root.

    A negative m that would become 0 becomes the negative number next to it. An element whose gradient is not
    finite is left out of the step, and its m and v are set to zero.

    Source: bitsandbytes, `create_dynamic_map` and the kernel `kOptimizerStatic8bit2StateBlockwise`; arXiv 2110.02861.
    """

    name = "bitsandbytes"
    block = 256
    map_m, map_v = dynamic_map(signed=True, bits=8), dynamic_map(signed=False, bits=8)
    skips = True

    def encode_m(self, m: Array) -> Codes:
        """Indices into the map, of which none turns a sign from minus to plus."""
        codes = super().encode_m(m)
        lost = np.signbit(split(m, self.block)) & ~np.signbit(self.map_m[codes.values])
        return codes._replace(values=codes.values - lost.astype(np.uint8))


class WholeBlocks(Format):
    """torchao's rule for both its formats: a leaf that is no whole number of blocks stays in float32."""

    block: int = 256

    def _whole(self, shape: Sequence[int]) -> bool:
        return math.prod(shape) % self.block == 0

    def bytes(self, shape: Sequence[int]) -> float:
        """A code each and four bytes for each block, or float32."""
        return 2 * (1 + 4 / self.block) if self._whole(shape) else 8.0


class TorchAO8Bit(WholeBlocks, Mapped):
    """torchao's 8-bit state: the maps and the blocks of bitsandbytes, scales of at least 1e-12.

    Source: pytorch/ao, torchao/optim/subclass_8bit.py and quant_utils.py.
    """

    name = "torchao 8-bit"
    floor = 1e-12
    map_m, map_v = BitsAndBytes.map_m, BitsAndBytes.map_v

    def _encode(self, x: Array, numbers: Array) -> Codes:
        return super()._encode(x, numbers) if self._whole(x.shape) else Codes(x, (), x.shape)

    def decode_m(self, codes: Codes) -> Array:
        """The map's numbers, scaled, or the float32."""
        return super().decode_m(codes) if codes.scales else codes.values

    def decode_v(self, codes: Codes) -> Array:
        """The map's numbers, scaled, or the float32."""
        return super().decode_v(codes) if codes.scales else codes.values


class TorchAOFloat8(WholeBlocks):
    """torchao's fp8 state: float8 e4m3 for both moments, blocks of 256 scaled so that their largest is 448.

    Source: pytorch/ao, torchao/optim/subclass_fp8.py.
    """

    name = "torchao fp8"

    def encode_m(self, m: Array) -> Codes:
        """Nearest float8 numbers and float32 scales."""
        if not self._whole(m.shape):
            return Codes(m, (), m.shape)
        blocks = split(m, self.block)
        scale = np.maximum(np.max(np.abs(blocks), axis=1, keepdims=True), np.float32(1e-12)) / np.float32(448)
        return Codes((blocks / scale).astype(ml_dtypes.float8_e4m3fn), (scale,), m.shape)

    def decode_m(self, codes: Codes) -> Array:
        """The float8 numbers, scaled."""
        if not codes.scales:
            return codes.values
        return join(codes.values.astype(np.float32) * codes.scales[0], codes.shape)

    def encode_v(self, v: Array) -> Codes:
        """As m."""
        return self.encode_m(v)

    def decode_v(self, codes: Codes) -> Array:
        """As m."""
        return self.decode_m(codes)


class LowBit4(Mapped):
    """The 4-bit AdamW of lpmm: a dynamic map for m in blocks of 128; for v sixteenths of a scale a row and a column.

    The numbers of v are i / 16 for i from 1 to 16, so none is zero. In a matrix v_ij is divided by the smaller of
    its row's largest and its column's largest (rank-1 normalisation), otherwise by the largest of a block of 128.

    Source: thu-ml/low-bit-optimizers, lpmm/functional.py and configs/default.yml; arXiv 2309.01507.
    """

    name = "lpmm 4-bit"
    block = 128
    map_m, map_v = dynamic_map(signed=True, bits=4), np.linspace(0, 1, 17, dtype=np.float32)[1:]

    def encode_v(self, v: Array) -> Codes:
        """Indices into the map, and the largest of rows and columns."""
        if v.ndim != 2:
            return super().encode_v(v)
        rows, columns = np.max(v, axis=1, keepdims=True), np.max(v, axis=0, keepdims=True)
        return Codes(nearest(v / np.minimum(rows, columns), self.map_v), (rows, columns), v.shape)

    def decode_v(self, codes: Codes) -> Array:
        """The map's numbers, scaled."""
        if len(codes.scales) == 1:
            return super().decode_v(codes)
        return self.map_v[codes.values] * np.minimum(*codes.scales)

    def bytes(self, shape: Sequence[int]) -> float:
        """Half a byte each, four bytes for each block of m, and four for each row and column of v."""
        size = math.prod(shape)
        blocks = blocks_of(size, self.block)
        return 2 * 0.5 + 4 * (blocks + (sum(shape) if len(shape) == 2 else blocks)) / size


RIVALS: tuple[Format, ...] = (
    FlashOptim(),
    BitsAndBytes(),
    TorchAO8Bit(),
    TorchAOFloat8(),
    LowBit4(),
    BFloat16(),
    Float32(),
)


def adam(store: Format, grads: Array, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> tuple[Array, Array]:
    """Adam with its moments stored in a format: the update of each step over -lr, and the v stored last.

    A step reads what is stored, computes the update from the new moments and stores them then.

    Args:
      store: the format.
      grads: a gradient a step, of shape [steps, *shape]. Their dtype is that of the arithmetic.
      b1: the decay of m.
      b2: the decay of v.
      eps: added to the root of v, after both are debiased.
    """
    updates, dtype = np.empty_like(grads), grads.dtype.type
    m = v = np.zeros(grads.shape[1:], grads.dtype)
    with np.errstate(all="ignore"):
        for step, g in enumerate(grads, start=1):
            m, v = b1 * m + dtype(1 - b1) * g, b2 * v + dtype(1 - b2) * np.square(g)
            update = (m / dtype(1 - b1**step)) / (np.sqrt(v / dtype(1 - b2**step)) + dtype(eps))
            if store.skips:
                kept = np.isfinite(g)
                m, v, update = (np.where(kept, x, dtype(0)) for x in (m, v, update))
            updates[step - 1] = update
            m, v = store.decode_m(store.encode_m(m)), store.decode_v(store.encode_v(v))
    return updates, v
