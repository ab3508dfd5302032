"""Schedules of decays and of learning rates that the family needs and Optax does not have.

Each is a function of the number of earlier updates, as all of Optax's are.
"""

from adam_tx._core.public import shows
from adam_tx.schedules import _declare
from adam_tx.schedules.decays import (
    decay_warmup,
    from_second_update,
    half_life_decay,
    nadam_decay,
    power_decay,
    power_warmup,
    warmup,
)
from adam_tx.schedules.learning_rates import cooldown, inverse_sqrt, relative_step, scaled, warmup_stable_decay

__all__ = [
    "cooldown",
    "decay_warmup",
    "from_second_update",
    "half_life_decay",
    "inverse_sqrt",
    "nadam_decay",
    "power_decay",
    "power_warmup",
    "relative_step",
    "scaled",
    "warmup",
    "warmup_stable_decay",
]
__dir__ = shows(__all__)

# which schedules call that earlier versions have pickled
_at = _declare.at
_update_number = _declare.update_number
