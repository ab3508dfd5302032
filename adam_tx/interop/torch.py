"""PyTorch: an optimizer from an entry of `optimizer.state_dict()["param_groups"]`."""

from collections.abc import Mapping
from typing import Any

import optax

from adam_tx import _optax
from adam_tx.bias_correction import bias_correction
from adam_tx.chain import chain
from adam_tx.extremes import scale_by_max_rms
from adam_tx.first_moment import scale_by_momentum
from adam_tx.interop._config import check_keys, number, unsupported
from adam_tx.second_moment import scale_by_rms

_HONOURED = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize")
_IRRELEVANT = (
    *("foreach", "fused", "capturable", "differentiable"),  # how it is computed, not what
    *("params", "param_names", "initial_lr"),  # bookkeeping of the group and its scheduler
    "decoupled_weight_decay",
)


def from_param_group(group: Mapping[str, Any], optimizer: str = "Adam") -> optax.GradientTransformationExtraArgs:
    """Build PyTorch's `Adam` or `AdamW` from one of its parameter groups.

    With g the gradient, negated if `maximize`, and t the number of this update::

        Adam:   g <- g + weight_decay · params
        mu <- betas[0] · mu + (1 - betas[0]) · g
        nu <- betas[1] · nu + (1 - betas[1]) · g²          (amsgrad: its largest value so far)
        u  <- (mu / (1 - betas[0]^t)) / (sqrt(nu / (1 - betas[1]^t)) + eps)
        AdamW:  u <- u + weight_decay · params
        update = -lr · u

    Args:
      group: an entry of `state_dict()["param_groups"]`. `lr` and `betas` may be
        0-d tensors. Implementation flags (foreach, fused, capturable,
        differentiable) and bookkeeping (params, param_names, initial_lr) make no
        difference. For complex parameters PyTorch treats real and imaginary part as
        two numbers, adam_tx as one modulus.
      optimizer: "Adam" or "AdamW", the class the group comes from. PyTorch's own
        flag `decoupled_weight_decay`, where the group has it, must agree.

    Returns:
      A transformation for the parameters of that group; `update` needs `params`
      if there is weight decay.

    Raises:
      ValueError: another optimizer, a key that is missing, out of range or cannot be honoured.

    Reference: torch/optim/adam.py, adamw.py in PyTorch 2.13.

    >>> import jax.numpy as jnp
    >>> group = dict(lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, amsgrad=False, maximize=True)
    >>> tx = from_param_group(group)
    >>> grad = jnp.array([2.0, -1.0])
    >>> tx.update(grad, tx.init(grad), grad)[0]
    Array([ 0.1, -0.1], dtype=float32)
    """
    what = f"torch.optim.{optimizer}"
    if optimizer not in ("Adam", "AdamW"):
        raise ValueError(f"optimizer must be 'Adam' or 'AdamW', got {optimizer!r}.")
    check_keys(group, required=_HONOURED, ignored=_IRRELEVANT, what=what)
    decoupled = optimizer == "AdamW"
    if group.get("decoupled_weight_decay", decoupled) != decoupled:
        other = "Adam" if decoupled else "AdamW"
        raise unsupported(
            what,
            "decoupled_weight_decay",
            group["decoupled_weight_decay"],
            f"that is {other}; pass optimizer={other!r}.",
        )
    if not isinstance(group["betas"], tuple | list) or len(group["betas"]) != 2:
        raise unsupported(what, "betas", group["betas"], "it must be a pair.")
    b1, b2 = (number(what, "betas", beta, 0.0, 1.0) for beta in group["betas"])
    lr, eps, weight_decay = (number(what, key, group[key], 0.0) for key in ("lr", "eps", "weight_decay"))
    rms = scale_by_max_rms if group["amsgrad"] else scale_by_rms

    decay = _optax.add_decayed_weights(weight_decay)
    tx = chain(
        scale_by_momentum(b1),
        rms(b2, eps, debias=True),
        bias_correction(b1),
        *([decay] if weight_decay and decoupled else []),
        _optax.scale_by_learning_rate(lr),
    )
    front = {
        **({"maximize": optax.scale(-1.0)} if group["maximize"] else {}),
        **({"add_decayed_weights": decay} if weight_decay and not decoupled else {}),
    }
    return optax.named_chain(*front.items(), (optimizer.lower(), tx)) if front else tx
