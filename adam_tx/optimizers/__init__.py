"""Optimizers, a file each: the recurrence in the docstring, then the chain that is it.

Every hyperparameter is a number, a 0-d array or a schedule of the number of earlier
updates, is checked under its own name, and may be injected. What has the same name
means the same everywhere:

Args:
  learning_rate: what the direction is multiplied by; at least 0.
  b1: decay of mu, the average of the gradient, in [0, 1).
  b2: decay of nu, the average of its square, in [0, 1).
  eps: added outside the root of nu, in units of the gradient; at least 0.
  eps_root: added inside the root, in units of the gradient squared; at least 0.
  weight_decay: at least 0; multiplied by the learning rate unless it is said otherwise.
    `update` then needs `params`.
  mask: a tree of booleans, or a function from params to one: the leaves that decay.
  mu_dtype, nu_dtype: what mu and nu are stored in: a dtype, a storage such as
    `adam_tx.storage.EightBit()`, or None for float32, or wider where the parameter is.
    Arithmetic is float32 or wider in any case.

Returns:
  A `Link`, an `optax.GradientTransformationExtraArgs`.

Raises:
  ValueError: a number out of range; a 16-bit moment whose decay is too close to one;
    `update` without params where they are needed.
"""

from adam_tx._core.public import shows
from adam_tx.optimizers._adabelief import adabelief as adabelief
from adam_tx.optimizers._adafactor import adafactor as adafactor
from adam_tx.optimizers._adagrad import adagrad as adagrad
from adam_tx.optimizers._adam import adam as adam
from adam_tx.optimizers._adam_atan2 import adam_atan2 as adam_atan2
from adam_tx.optimizers._adam_mini import adam_mini as adam_mini
from adam_tx.optimizers._adamax import adamax as adamax
from adam_tx.optimizers._adamaxw import adamaxw as adamaxw
from adam_tx.optimizers._adamc import adamc as adamc
from adam_tx.optimizers._adamh import adamh as adamh
from adam_tx.optimizers._adamw import adamw as adamw
from adam_tx.optimizers._ademamix import ademamix as ademamix
from adam_tx.optimizers._adopt import adopt as adopt
from adam_tx.optimizers._amsgrad import amsgrad as amsgrad
from adam_tx.optimizers._cautious import cautious as cautious
from adam_tx.optimizers._lamb import lamb as lamb
from adam_tx.optimizers._laprop import laprop as laprop
from adam_tx.optimizers._lion import lion as lion
from adam_tx.optimizers._mars_adamw import mars_adamw as mars_adamw
from adam_tx.optimizers._muon import muon as muon
from adam_tx.optimizers._muonh import muonh as muonh
from adam_tx.optimizers._nadam import nadam as nadam
from adam_tx.optimizers._nadamw import nadamw as nadamw
from adam_tx.optimizers._normuon import normuon as normuon
from adam_tx.optimizers._novograd import novograd as novograd
from adam_tx.optimizers._radam import radam as radam
from adam_tx.optimizers._rmsprop import rmsprop as rmsprop
from adam_tx.optimizers._schedule_free_adamw import schedule_free_adamw as schedule_free_adamw
from adam_tx.optimizers._schedule_free_sgd import schedule_free_sgd as schedule_free_sgd
from adam_tx.optimizers._sgd import sgd as sgd
from adam_tx.optimizers._soap import soap as soap
from adam_tx.optimizers._stable_adamw import stable_adamw as stable_adamw
from adam_tx.optimizers._yogi import yogi as yogi

__all__ = [
    "adabelief",
    "adafactor",
    "adagrad",
    "adam",
    "adam_atan2",
    "adam_mini",
    "adamax",
    "adamaxw",
    "adamc",
    "adamh",
    "adamw",
    "ademamix",
    "adopt",
    "amsgrad",
    "cautious",
    "lamb",
    "laprop",
    "lion",
    "mars_adamw",
    "muon",
    "muonh",
    "nadam",
    "nadamw",
    "normuon",
    "novograd",
    "radam",
    "rmsprop",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "sgd",
    "soap",
    "stable_adamw",
    "yogi",
]
__dir__ = shows(__all__)
