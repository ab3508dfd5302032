"""Optimizers: the recurrence in the docstring, then the chain that is it."""

from adam_tx.optimizers.adam import adam as adam
from adam_tx.optimizers.adam import adamw as adamw
from adam_tx.optimizers.adam import nadam as nadam
from adam_tx.optimizers.adam import nadamw as nadamw
from adam_tx.optimizers.denominators import adabelief as adabelief
from adam_tx.optimizers.denominators import adam_atan2 as adam_atan2
from adam_tx.optimizers.denominators import adamax as adamax
from adam_tx.optimizers.denominators import adamaxw as adamaxw
from adam_tx.optimizers.denominators import amsgrad as amsgrad
from adam_tx.optimizers.denominators import radam as radam
from adam_tx.optimizers.denominators import yogi as yogi
from adam_tx.optimizers.orders import adagrad as adagrad
from adam_tx.optimizers.orders import ademamix as ademamix
from adam_tx.optimizers.orders import adopt as adopt
from adam_tx.optimizers.orders import lamb as lamb
from adam_tx.optimizers.orders import laprop as laprop
from adam_tx.optimizers.orders import lion as lion
from adam_tx.optimizers.orders import rmsprop as rmsprop
from adam_tx.optimizers.orders import sgd as sgd
