"""Optax's transformations as links: checked, described, and under one name whatever their arguments.

Optax calls a constant learning rate `scale` and a scheduled one
`scale_by_schedule`, and a masked decay `masked`. One name for each keeps the
keys of a chain's state the same when a recipe changes.
"""

from typing import Any

import optax
from optax import ScalarOrSchedule

from adam_tx import _hyperparams
from adam_tx.chain import Link, named


def scale_by_learning_rate(learning_rate: ScalarOrSchedule) -> Link:
    """Multiply by minus the learning rate, which must be at least 0."""
    _hyperparams.hyperparameter("learning_rate", learning_rate)
    return named(
        "scale_by_learning_rate",
        optax.scale_by_learning_rate(learning_rate),
        formula="-learning_rate · u",
        hyperparams={"learning_rate": learning_rate},
    )


def add_decayed_weights(weight_decay: ScalarOrSchedule, mask: Any = None) -> Link:
    """Add the parameters times the weight decay, which must be at least 0."""
    _hyperparams.hyperparameter("weight_decay", weight_decay)
    return named(
        "add_decayed_weights",
        optax.add_decayed_weights(weight_decay, mask),
        formula="u + weight_decay · params",
        hyperparams={"weight_decay": weight_decay, "mask": mask},
    )
