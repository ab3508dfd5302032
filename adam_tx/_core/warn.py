"""Warnings that point at the line outside of the package that led to them."""

import inspect
import warnings


def warn(message: str) -> None:
    """Warn where the code stands that called adam_tx, be it by way of JAX or Optax."""
    frame, level = inspect.currentframe(), 0
    while frame and frame.f_globals.get("__name__", "").split(".")[0] in ("adam_tx", "jax", "optax"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level + 1)
