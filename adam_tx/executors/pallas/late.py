"""JAX's Pallas, imported where a kernel is made: it takes a quarter of a second, and few have a use for it."""

from types import ModuleType


def pallas() -> ModuleType:
    """What kernels of all devices have."""
    import jax.experimental.pallas as pl

    return pl


def pallas_tpu() -> ModuleType:
    """What those of TPUs have."""
    import jax.experimental.pallas.tpu as pltpu

    return pltpu
