"""Every optimizer with several settings, as factories; `test_conformance` holds all of them to the same contract."""

import jax.numpy as jnp
import optax

import adam_tx

KERAS_CONFIG = {
    "name": "adam",
    "learning_rate": 0.0010000000474974513,
    "weight_decay": None,
    "clipnorm": None,
    "global_clipnorm": None,
    "clipvalue": None,
    "use_ema": False,
    "ema_momentum": 0.99,
    "ema_overwrite_frequency": None,
    "loss_scale_factor": None,
    "gradient_accumulation_steps": None,
    "beta_1": 0.9,
    "beta_2": 0.999,
    "epsilon": 1e-07,
    "amsgrad": False,
}
TORCH_GROUP = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "amsgrad": False,
    "maximize": False,
}


def keras(**options):
    return adam_tx.interop.keras.from_config(KERAS_CONFIG | options)


def torch(optimizer, **options):
    return adam_tx.interop.torch.from_param_group(TORCH_GROUP | options, optimizer)


def formula():
    """Epsilon inside the root, as the notebook writes it."""
    return adam_tx.chain(
        adam_tx.scale_by_momentum(0.9),
        adam_tx.scale_by_rms(0.999, eps=0.0, eps_root=1e-7, debias=True),
        adam_tx.bias_correction(0.9),
        optax.scale_by_learning_rate(1e-3),
    )


def scheduled():
    return adam_tx.adam(
        optax.cosine_decay_schedule(1e-3, 100),
        b1=optax.linear_schedule(0.8, 0.95, 50),
        b2=optax.linear_schedule(0.99, 0.9999, 50),
        eps=lambda count: 1e-8 / (1.0 + count.astype(jnp.float32)),
    )


OPTIMIZERS = {
    "adam": lambda: adam_tx.adam(1e-3),
    "adam, no epsilon": lambda: adam_tx.adam(1e-3, eps=0.0),
    "adam, arrays": lambda: adam_tx.adam(*(jnp.float32(x) for x in (1e-3, 0.9, 0.999, 1e-8))),
    "adam, schedules": scheduled,
    "adam, no momentum": lambda: adam_tx.adam(1e-3, b1=0.0),
    "nadam": lambda: adam_tx.adam(1e-3, nesterov=True),
    "nadam, schedules": lambda: adam_tx.adam(1e-3, b1=optax.linear_schedule(0.8, 0.95, 50), nesterov=True),
    "adamw": lambda: adam_tx.adamw(1e-3, weight_decay=0.1),
    "keras": keras,
    "keras amsgrad": lambda: keras(amsgrad=True, weight_decay=0.01),
    "keras ema": lambda: keras(use_ema=True, ema_overwrite_frequency=3),
    "torch amsgrad": lambda: torch("AdamW", amsgrad=True, maximize=True, weight_decay=0.1),
    "torch L2": lambda: torch("Adam", weight_decay=0.1),
    "formula": formula,
    "laprop": lambda: adam_tx.laprop(1e-3),
    "sgd nesterov": lambda: adam_tx.sgd(1e-3, 0.9, nesterov=True, dampening=0.1),
    "rmsprop": lambda: adam_tx.rmsprop(1e-3, momentum=0.9),
    "rmsprop centered": lambda: adam_tx.rmsprop(1e-3, eps_in_sqrt=False, centered=True),
    "adagrad": lambda: adam_tx.adagrad(1e-3),
    "amsgrad": lambda: adam_tx.amsgrad(1e-3),
    "adamax": lambda: adam_tx.adamax(1e-3),
    "adamaxw": lambda: adam_tx.adamaxw(1e-3, eps=0.0, weight_decay=0.1),
    "adabelief": lambda: adam_tx.adabelief(1e-3),
    "yogi": lambda: adam_tx.yogi(1e-3),
    "radam": lambda: adam_tx.radam(1e-3, b2=0.9, threshold=4.0),
    "adam_atan2": lambda: adam_tx.adam_atan2(1e-3, weight_decay=0.1),
    "adopt": lambda: adam_tx.adopt(1e-3),
    "ademamix": lambda: adam_tx.ademamix(1e-3, alpha=optax.linear_schedule(0.0, 5.0, 50)),
    "lion": lambda: adam_tx.lion(1e-3),
    "momentum": lambda: adam_tx.chain(adam_tx.scale_by_momentum(0.9, nesterov=True)),
}
"""Name -> factory of a transformation whose updates are ready for `optax.apply_updates`."""

PER_TENSOR = {
    "lamb": lambda: adam_tx.lamb(1e-3, weight_decay=0.1),
}
"""Those whose rule of an element depends on its whole tensor."""

SMALL_STATE = {
    "adam, bf16 mu": lambda: adam_tx.adam(1e-3, mu_dtype=jnp.bfloat16),
    "adam, bf16 mu and nu": lambda: adam_tx.adam(1e-3, b2=0.95, mu_dtype=jnp.bfloat16, nu_dtype=jnp.bfloat16),
}
"""Those that store moments in 16 bits, which complex parameters cannot have."""
