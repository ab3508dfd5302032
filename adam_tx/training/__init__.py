"""What a training run needs around an optimizer: groups of parameters, a guard, metrics."""

from adam_tx.training.groups import groups as groups
from adam_tx.training.groups import matching as matching
from adam_tx.training.guard import LossScale as LossScale
from adam_tx.training.guard import guard as guard
