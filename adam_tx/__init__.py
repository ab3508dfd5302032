"""Adam taken apart into Optax transformations, which put together again are exactly Adam."""

import importlib.metadata

from adam_tx import interop, numerics, optimizers, schedules, storage
from adam_tx._chain import chain
from adam_tx._core import former
from adam_tx._core.facts import Facts
from adam_tx._core.hyperparams import Decay, Finite, NonNegative, Positive
from adam_tx._core.leaves import Leaves
from adam_tx._core.public import shows
from adam_tx._core.rule import Reduction, Rule, Slot, mean, total
from adam_tx._link import Link, as_link, link, optimizer
from adam_tx._parallel import parallel
from adam_tx._with_gradient import with_gradient
from adam_tx._wrapper import Wrapper
from adam_tx.describe.config import from_config, get_config
from adam_tx.describe.summary import summary
from adam_tx.executors._step import step
from adam_tx.links.atan2 import scale_by_atan2
from adam_tx.links.basis import Basis, Turn, in_basis
from adam_tx.links.belief_rms import scale_by_belief_rms
from adam_tx.links.bias_correction import bias_correction
from adam_tx.links.block_rms import output_unit, scale_by_block_rms, whole_tensor
from adam_tx.links.caution import scale_by_caution
from adam_tx.links.centered_rms import scale_by_centered_rms
from adam_tx.links.clip import clip_by_norm, clip_by_rms
from adam_tx.links.decay_to_start import add_decay_to_start, decay_to_start
from adam_tx.links.delayed_rms import fourth_root, scale_by_delayed_rms
from adam_tx.links.eigenbasis import Eigenbasis, in_eigenbasis, matrix_axes
from adam_tx.links.gradient_difference import add_gradient_change, gradient_difference
from adam_tx.links.gradient_norm import scale_by_gradient_norm
from adam_tx.links.heavy_ball import scale_by_heavy_ball
from adam_tx.links.hyperball import step_on_hyperball
from adam_tx.links.learning_rate import scale_by_learning_rate
from adam_tx.links.lion_momentum import scale_by_lion_momentum
from adam_tx.links.master_weights import (
    float32_weights,
    master_weights,
    split_float32_weights,
    stochastic_round,
)
from adam_tx.links.max_norm import scale_by_max_norm
from adam_tx.links.max_rms import scale_by_max_rms
from adam_tx.links.momentum import scale_by_momentum
from adam_tx.links.orthogonalization import scale_by_orthogonalization
from adam_tx.links.rectified_rms import scale_by_rectified_rms
from adam_tx.links.rms import scale_by_rms
from adam_tx.links.row_column_rms import largest_axes, last_axes, scale_by_row_column_rms
from adam_tx.links.schedule_free import schedule_free_weights, step_schedule_free
from adam_tx.links.shape import scale_by_shape
from adam_tx.links.summed_rms import scale_by_summed_rms
from adam_tx.links.surprise import scale_by_surprise
from adam_tx.links.trust_ratio import scale_by_trust_ratio
from adam_tx.links.weight_decay import (
    add_cautiously_decayed_weights,
    add_decayed_weights,
    decay_stepped_weights,
    decay_weights,
    on_decayed_weights,
)
from adam_tx.links.yogi_rms import scale_by_yogi_rms
from adam_tx.optimizers import *  # noqa: F403 - they are named there, once
from adam_tx.probes._audit import audit
from adam_tx.state import export_state, import_state, migrate, second_moment, state_sharding
from adam_tx.training import (
    Explanation,
    LossScale,
    Window,
    average_weights,
    averaged_weights,
    explain,
    groups,
    guard,
    layer_decay,
    matching,
    metrics,
    monitor,
    plot_metrics,
    stacked,
    times,
    with_averaged_weights,
)

__version__ = importlib.metadata.version("adam_tx")

__all__ = [
    "Basis",
    "Decay",
    "Eigenbasis",
    "Explanation",
    "Facts",
    "Finite",
    "Leaves",
    "Link",
    "LossScale",
    "NonNegative",
    "Positive",
    "Reduction",
    "Rule",
    "Slot",
    "Turn",
    "Window",
    "Wrapper",
    "add_cautiously_decayed_weights",
    "add_decay_to_start",
    "add_decayed_weights",
    "add_gradient_change",
    "as_link",
    "audit",
    "average_weights",
    "averaged_weights",
    "bias_correction",
    "chain",
    "clip_by_norm",
    "clip_by_rms",
    "decay_stepped_weights",
    "decay_to_start",
    "decay_weights",
    "explain",
    "export_state",
    "float32_weights",
    "fourth_root",
    "from_config",
    "get_config",
    "gradient_difference",
    "groups",
    "guard",
    "import_state",
    "in_basis",
    "in_eigenbasis",
    "interop",
    "largest_axes",
    "last_axes",
    "layer_decay",
    "link",
    "master_weights",
    "matching",
    "matrix_axes",
    "mean",
    "metrics",
    "migrate",
    "monitor",
    "numerics",
    "on_decayed_weights",
    "optimizer",
    "output_unit",
    "parallel",
    "plot_metrics",
    "scale_by_atan2",
    "scale_by_belief_rms",
    "scale_by_block_rms",
    "scale_by_caution",
    "scale_by_centered_rms",
    "scale_by_delayed_rms",
    "scale_by_gradient_norm",
    "scale_by_heavy_ball",
    "scale_by_learning_rate",
    "scale_by_lion_momentum",
    "scale_by_max_norm",
    "scale_by_max_rms",
    "scale_by_momentum",
    "scale_by_orthogonalization",
    "scale_by_rectified_rms",
    "scale_by_rms",
    "scale_by_row_column_rms",
    "scale_by_shape",
    "scale_by_summed_rms",
    "scale_by_surprise",
    "scale_by_trust_ratio",
    "scale_by_yogi_rms",
    "schedule_free_weights",
    "schedules",
    "second_moment",
    "split_float32_weights",
    "stacked",
    "state_sharding",
    "step",
    "step_on_hyperball",
    "step_schedule_free",
    "stochastic_round",
    "storage",
    "summary",
    "times",
    "total",
    "whole_tensor",
    "with_averaged_weights",
    "with_gradient",
]
__all__ += optimizers.__all__
__dir__ = shows([*__all__, "__version__", "__path__"])

former.register(
    {
        "adam_tx._core.declaration": "adam_tx._core.former adam_tx._core.call",
        "adam_tx.chain": "adam_tx._chain adam_tx._parallel adam_tx._with_gradient",
        "adam_tx.config": "adam_tx.describe.config",
        "adam_tx.link": "adam_tx._link",
        "adam_tx.summary": "adam_tx.describe.summary",
        **{
            f"adam_tx.{part}.{name}": f"adam_tx.{part}._{name}"
            for part, names in {
                "optimizers": optimizers.__all__,
                "state": ["migrate"],
                "training": ["explain", "groups", "guard", "metrics", "monitor"],
            }.items()
            for name in names
        },
    }
)
