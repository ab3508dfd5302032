"""What a slot is between two updates: `Storage`, and that of plain dtypes.

Rules compute in float32 or wider. What they are given of a slot is decoded first, and
what they return is encoded before it enters the state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from optax import ScalarOrSchedule

from adam_tx._core import blocks, numerics
from adam_tx._core.call import Reconstructible

Noise = Callable[[jax.Array], jax.Array]
"""From an array to 32 random bits for each of its elements: see `rounding.bits`."""


class Stored(NamedTuple):
    """What is kept of one leaf of a slot.

    Attributes:
      values: an array of the leaf's shape.
      scales: an array with one number a block of it, where the storage has any.
    """

    values: jax.Array
    scales: jax.Array | None = None


class Storage(Reconstructible):
    """How a slot is kept between updates: subclass it, and give an instance where a link takes a `dtype`.

    Attributes:
      scaled: whether it keeps scales beside the values.
      block: how many elements along the last axis share a scale, so that a part of a leaf can be stepped alone; None
        where there are no scales, or where they are of something else.
      optional: whether it may keep nothing of a leaf.
      as_is: whether a number of the dtype that a leaf is worked with in is kept as it is.
      at_random: whether it rounds at random, or may do so.
      is_narrow: whether it has less than 32 bits, and rounds to nearest.
      looks_ahead: whether something of all numbers, or of a block, has to be known before one is encoded.
    """

    scaled: bool = False
    block: int | None = None
    optional: bool = False
    as_is: bool = False
    at_random: bool = True
    is_narrow: bool = False
    looks_ahead: bool = False

    def scales_of(self, slot: str) -> str:
        """The name of a slot's scales in the state; it says what they cannot be read without."""
        return slot

    def check(self, slot: str, kind: str, decay: ScalarOrSchedule | None) -> None:
        """Refuse a slot that this cannot keep.

        Args:
          slot: its name.
          kind: its kind.
          decay: the decay of which it is an average, as it was given; None if it is none.
        """

    def check_leaf(self, where: Callable[[], str], param: jnp.dtype | None, stored: Stored | None) -> None:
        """Refuse an update of a leaf of which this was kept.

        Args:
          where: gives the leaf's path, for errors.
          param: the dtype in which the parameter came; None if it did not.
          stored: what was kept; None for nothing.
        """

    def dtype(self, working: jnp.dtype) -> jnp.dtype:
        """The dtype in which the first value is made, for a leaf that is worked with in this one."""
        return working

    def begin(self, where: str, first: jax.Array, param: jax.Array, kind: str, noise: Noise) -> Stored | None:
        """What is kept at first of the leaf at this path; None for nothing.

        Args:
          where: the leaf's path, for errors.
          first: its first value.
          param: the parameter.
          kind: the slot's kind.
          noise: random bits, for the storages that round at random.
        """
        raise NotImplementedError

    def check_share(self, where: str, shape: blocks.Shape, share: blocks.Shape | None) -> None:
        """Refuse a parameter of which each device has a part that cuts what has scales.

        Args:
          where: the leaf's path, for errors.
          shape: the leaf's.
          share: the shape of what each device has of it; None where that is not known.
        """

    def encode(self, x: jax.Array, like: Stored, noise: Noise) -> Stored:
        """What is kept of a new value, of the dtypes and shapes of what was kept before."""
        raise NotImplementedError

    def ahead(self, x: jax.Array, like: Stored) -> jax.Array | None:
        """What of a new value has to be known before it is encoded, for a storage that `looks_ahead`."""
        raise NotImplementedError

    def encode_knowing(self, x: jax.Array, like: Stored, noise: Noise, known: jax.Array | None) -> Stored:
        """The same as `encode`, with what `ahead` has found."""
        raise NotImplementedError

    def outline(self, x: jax.Array, like: Stored) -> Stored:
        """What stands for a value that is not encoded yet: nothing but `finite` is asked of it."""
        raise NotImplementedError

    def decode(self, stored: Stored, dtype: jnp.dtype) -> jax.Array:
        """The value in this dtype."""
        raise NotImplementedError

    def finite(self, stored: Stored) -> jax.Array | None:
        """Whether each number that is kept is finite; None where no other could be kept."""
        return jnp.isfinite(stored.values) if numerics.is_inexact(numerics.dtype_of(stored.values)) else None

    def pieces(self, shape: blocks.Shape, scales: blocks.Shape) -> blocks.Shape:
        """In how many pieces each dimension of what is kept may be cut, where there are scales of this shape."""
        return scales if blocks.divides(scales, shape) else (1,) * len(shape)

    def full_precision(self, param: jax.Array, residual: Stored) -> jax.Array:
        """A parameter joined with what is kept of it beyond its dtype, for a slot of the kind "residual"."""
        raise NotImplementedError


class DtypeStorage(Storage):
    """An array of one dtype, rounded to nearest: the storage that `dtype=` stands for.

    Attributes:
      given: the dtype; None for that which the leaf is worked with in.
    """

    as_is = True
    at_random = False

    def __init__(self, given: jax.typing.DTypeLike | None = None) -> None:
        self.given = None if given is None else jnp.dtype(given)
        self._fewest_bytes = 4 if self.given is None else min(self.given.itemsize, 4)
        self.is_narrow = self._fewest_bytes < 4

    def check(self, slot: str, kind: str, decay: ScalarOrSchedule | None) -> None:
        """Refuse a dtype in which a moving average would stand still.

        Rounding to nearest, bfloat16 drops a change of less than 1/512 to 1/256 of
        the value. An average with decay 0.999 changes by 1/1000 a step, so it can
        grow but never decays. Whether an array or schedule stays clear of that cannot
        be known; a second moment, where it does harm, is then refused too.
        """
        if self.given is None:
            return
        if not numerics.is_inexact(self.given):
            raise TypeError(
                f"the dtype of {slot} must be a floating-point or complex dtype or None, got {self.given}. For "
                "eight bits give adam_tx.storage.EightBit()."
            )
        if not self.is_narrow:
            return
        info = jnp.finfo(self.given)
        if info.bits < 16:
            raise ValueError(
                f"{slot} cannot be stored as {self.given}: rounded to so few bits it would stand still. "
                "Use adam_tx.storage.EightBit()."
            )
        if kind == "square" and info.minexp > -100:
            raise ValueError(
                f"{slot} cannot be stored as {self.given}: the squares of small gradients are zero in it. Use "
                "float32, or bfloat16 with a decay (b2) of at most 0.99."
            )
        known = isinstance(decay, float | int)
        if decay is not None and (decay > 0.99 if known else kind == "square"):
            raise ValueError(
                f"{slot} stored as {self.given} needs a decay that is a number of at most 0.99, got {decay}. A step "
                f"changes the average by 1 - decay of its value; below half a unit in the last place of {self.given}, "
                "rounding to nearest undoes that and the moment never decays. Use "
                "adam_tx.storage.StochasticBFloat16(), float32 or a smaller decay; under optax.inject_hyperparams name "
                "the decay in static_args, so that it stays a number."
            )

    def check_leaf(self, where: Callable[[], str], param: jnp.dtype | None, stored: Stored | None) -> None:
        """Refuse fewer bits than were asked for, such as those of another storage: they would be rounded to nearest."""
        del param
        if stored is not None and stored.values.dtype.itemsize < self._fewest_bytes:
            raise TypeError(
                f"state: leaf {where()} came as {stored.values.dtype}, but the link stores "
                f"{self.given or 'float32'}. Give update the state that init returned, or give the link the dtype that "
                "made this one."
            )

    def dtype(self, working: jnp.dtype) -> jnp.dtype:
        """The one that was given."""
        return working if self.given is None else self.given

    def begin(self, where: str, first: jax.Array, param: jax.Array, kind: str, noise: Noise) -> Stored:
        """The value as it is."""
        del where, param, kind, noise
        return Stored(first)

    def encode(self, x: jax.Array, like: Stored, noise: Noise) -> Stored:
        """The value in the dtype of the state."""
        del noise
        return Stored(numerics.cast(x, like.values.dtype))

    def decode(self, stored: Stored, dtype: jnp.dtype) -> jax.Array:
        """The value in working precision."""
        return numerics.cast(stored.values, dtype)


StorageLike = jax.typing.DTypeLike | Storage
"""What a slot is stored as: a dtype, or an instance of a `Storage`."""


def of_slots(link: str, given: Any, slots: Mapping[str, Any]) -> dict[str, Storage]:
    """The storage of each slot: one for all, or a mapping by name."""
    each = given if isinstance(given, Mapping) else dict.fromkeys(slots, given)
    if unknown := [name for name in each if name not in slots]:
        raise ValueError(f"{link}: Rule(dtype=...) names {unknown}, but there are {sorted(slots)}.")
    return {name: as_storage(name, each.get(name)) for name in slots}


def as_storage(slot: str, given: Any) -> Storage:
    """The storage that was given for a slot."""
    if isinstance(given, Storage):
        return given
    if isinstance(given, type) and issubclass(given, Storage):
        raise TypeError(f"the dtype of {slot} must be an instance of {given.__name__}: write {given.__name__}().")
    try:
        return DtypeStorage(given)
    except TypeError:
        raise TypeError(
            f"the dtype of {slot} must be a dtype, a storage such as adam_tx.storage.EightBit() or None, got {given!r}."
        ) from None
