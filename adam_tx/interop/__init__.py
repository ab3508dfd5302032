"""Optimizers built from the descriptions that other frameworks give of theirs; none of them is imported."""

from adam_tx._core.public import shows
from adam_tx.interop import keras as keras
from adam_tx.interop import torch as torch

__all__ = ["keras", "torch"]
__dir__ = shows(__all__)
