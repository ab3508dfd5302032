"""`StochasticBFloat16`: two bytes a number, rounded at random."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adam_tx._core import numerics, rounding
from adam_tx._core.storage import Noise, Storage, Stored


@dataclasses.dataclass(frozen=True)
class StochasticBFloat16(Storage):
    """Two bytes a number: the upper half of a float32, rounded up or down at random.

    A number x between the neighbours a < b of bfloat16 becomes b with probability
    (x - a) / (b - a), so on average it is itself. Rounded to nearest, an average with a
    decay of 0.999 would never fall; this one does at every decay.

    Zero, infinity and NaN are themselves. A number beyond the largest bfloat16 becomes
    that. Of a float64 leaf the float32 is stored, without derivatives of its own: to
    them, storing changes nothing.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.adam(1e-3, mu_dtype=StochasticBFloat16(), nu_dtype=StochasticBFloat16())
    >>> tx.init(jnp.ones(3))["scale_by_rms"].nu.dtype
    dtype(bfloat16)
    """

    def begin(self, where: str, first: jax.Array, param: jax.Array, kind: str, noise: Noise) -> Stored:
        """The value, rounded."""
        del param, kind
        if numerics.is_complex(first):
            raise TypeError(
                f"params: leaf {where} is complex, so its moments cannot be stored as StochasticBFloat16(); leave "
                "dtype=None or choose a complex dtype."
            )
        return Stored(stochastic_bfloat16(first, noise(first)))

    def check_leaf(self, where: Callable[[], str], param: jnp.dtype | None, stored: Stored | None) -> None:
        """Refuse another dtype, which would not stay."""
        del param
        if stored is not None and stored.values.dtype != jnp.bfloat16:
            raise TypeError(
                f"state: leaf {where()} came as {stored.values.dtype}, but StochasticBFloat16() stores bfloat16. "
                "Give update the state that init returned."
            )

    def encode(self, x: jax.Array, like: Stored, noise: Noise) -> Stored:
        """The value, rounded."""
        del like
        return Stored(stochastic_bfloat16(x, noise(x)))

    def decode(self, stored: Stored, dtype: jnp.dtype) -> jax.Array:
        """Exactly what is stored."""
        return numerics.cast(stored.values, dtype)


@jax.custom_jvp
@jax.jit  # traced once a shape
def stochastic_bfloat16(x: jax.Array, noise: jax.Array) -> jax.Array:
    """The number as bfloat16, rounded up or down by 16 of the random bits."""
    x = x.astype(jnp.float32)
    rounded = rounding.drop_bits(lax.bitcast_convert_type(x, jnp.uint32), 16, noise)
    sign, size = rounded & 0x8000, jnp.minimum(rounded & 0x7FFF, 0x7F7F)  # at most the largest before infinity
    stored = lax.bitcast_convert_type((sign | size).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), stored, x.astype(jnp.bfloat16))


@stochastic_bfloat16.defjvp
def _(primals: Any, tangents: Any) -> Any:
    """To derivatives, rounding is the identity."""
    return stochastic_bfloat16(*primals), tangents[0].astype(jnp.bfloat16)
