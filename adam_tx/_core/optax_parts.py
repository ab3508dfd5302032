"""What is known of Optax's transformations: which of them look at one element, or at one leaf, at a time."""

from __future__ import annotations

from typing import Literal

from adam_tx._core.call import is_optax, maker_name

_BY_ELEMENT = {
    *("add_decayed_weights", "add_noise", "apply_every", "clip", "ema", "identity", "keep_params_nonnegative"),
    *("scale", "scale_by_adam", "scale_by_adamax", "scale_by_adan", "scale_by_amsgrad", "scale_by_belief"),
    *("scale_by_lion", "scale_by_optimistic_gradient", "scale_by_radam", "scale_by_rms", "scale_by_rprop"),
    *("scale_by_rss", "scale_by_schedule", "scale_by_sign", "scale_by_stddev", "scale_by_yogi", "set_to_zero"),
    *("trace", "zero_nans"),
    *("clip_by_global_norm", "normalize_by_update_norm"),  # of the whole tree
}
_BY_LEAF = {
    *("adaptive_grad_clip", "centralize", "clip_by_block_rms"),
    *("scale_by_param_block_norm", "scale_by_param_block_rms", "scale_by_trust_ratio"),
}


def looks_at(transformation: object) -> Literal["element", "leaf", ""]:
    """What a transformation looks at at a time.

    "element", also if it measures the whole tree; "leaf", if it keeps nothing beside; empty where that is not known.
    """
    if not is_optax(transformation):
        return ""
    maker = maker_name(transformation)
    return "element" if maker in _BY_ELEMENT else "leaf" if maker in _BY_LEAF else ""
