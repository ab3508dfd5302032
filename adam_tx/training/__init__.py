"""What stands around an optimizer in a training run: a guard against steps that would spoil it."""

from adam_tx.training.guard import LossScale as LossScale
from adam_tx.training.guard import guard as guard
