"""Optimizers built from the descriptions that other frameworks give of theirs; none of them is imported."""

from adam_tx.interop import keras as keras
from adam_tx.interop import torch as torch
