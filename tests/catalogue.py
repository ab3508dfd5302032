"""Every optimizer with several settings, as factories; `test_conformance` holds all of them to the same contract."""

import jax
import jax.numpy as jnp
import optax
import pytest

import adam_tx
from adam_tx import interop, schedules, storage

KERAS_BASE = {
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
}
KERAS_ADAM = {
    "beta_1": 0.9,
    "beta_2": 0.999,
    "epsilon": 1e-07,
    "amsgrad": False,
}
KERAS_CONFIG = KERAS_BASE | KERAS_ADAM
TORCH_GROUP = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "amsgrad": False,
    "maximize": False,
}
TORCH_ADAFACTOR = {
    "lr": 1e-2,
    "eps": (None, 1e-3),
    "beta2_decay": -0.8,
    "d": 1.0,
    "weight_decay": 0.1,
    "maximize": True,
}


def injected(make):
    return optax.inject_hyperparams(make, hyperparam_dtype=jnp.float32)


def keras(optimizer="Adam", **options):
    """A class of Keras, whose own keys must be given for any but Adam."""
    return interop.keras.from_config(KERAS_BASE | (KERAS_ADAM if optimizer == "Adam" else {}) | options, optimizer)


def torch(optimizer, **options):
    return interop.torch.from_param_group(TORCH_GROUP | options, optimizer)


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
    "adam, injected": lambda: injected(adam_tx.adam)(learning_rate=1e-3, eps=1e-6),
    "adam, no momentum": lambda: adam_tx.adam(1e-3, b1=0.0),
    "nadam": lambda: adam_tx.nadam(1e-3),
    "adam, nesterov": lambda: adam_tx.adam(1e-3, nesterov=True),
    "nadam, schedules": lambda: adam_tx.adam(1e-3, b1=optax.linear_schedule(0.8, 0.95, 50), nesterov=True),
    "nadamw": lambda: adam_tx.nadamw(1e-3, momentum_decay=0.004, weight_decay=0.1),
    "adamw": lambda: adam_tx.adamw(1e-3, weight_decay=0.1),
    "adamw, masked": lambda: adam_tx.adamw(1e-3, weight_decay=0.1, mask=lambda p: jax.tree.map(lambda _: False, p)),
    "adamc": lambda: adam_tx.adamc(optax.linear_schedule(1e-3, 0.0, 50), weight_decay=0.1, max_learning_rate=1e-3),
    "keras": keras,
    "keras nadam": lambda: keras("Nadam", beta_1=0.9, beta_2=0.999, epsilon=1e-7, weight_decay=0.1),
    "keras rmsprop": lambda: keras("RMSprop", rho=0.9, momentum=0.9, epsilon=1e-7, centered=True, weight_decay=0.1),
    "keras amsgrad": lambda: keras(amsgrad=True, weight_decay=0.01),
    "keras ema": lambda: keras(use_ema=True, ema_overwrite_frequency=3),
    "torch amsgrad": lambda: torch("AdamW", amsgrad=True, maximize=True, weight_decay=0.1),
    "torch L2": lambda: torch("Adam", weight_decay=0.1),
    "formula": formula,
    "decayed after the step": lambda: adam_tx.chain(adam_tx.adam(1e-3), adam_tx.decay_stepped_weights(0.1, times=1e-3)),
    "laprop": lambda: adam_tx.laprop(1e-3),
    "sgd": lambda: adam_tx.sgd(1e-3, 0.9, nesterov=True, dampening=0.1),
    "rmsprop": lambda: adam_tx.rmsprop(1e-3, momentum=0.9),
    "rmsprop centered": lambda: adam_tx.rmsprop(1e-3, eps_in_sqrt=False, centered=True),
    "adagrad": lambda: adam_tx.adagrad(1e-3),
    "amsgrad": lambda: adam_tx.amsgrad(1e-3),
    "adamax": lambda: adam_tx.adamax(1e-3),
    "adamaxw": lambda: adam_tx.adamaxw(1e-3, eps=0.0, weight_decay=0.1),
    "adabelief": lambda: adam_tx.adabelief(1e-3),
    "yogi": lambda: adam_tx.yogi(1e-3),
    "radam": lambda: adam_tx.radam(1e-3, b2=0.9, threshold=4.0),
    "radam, official": lambda: adam_tx.radam(1e-3, degenerate=False),
    "adam_atan2": lambda: adam_tx.adam_atan2(1e-3, weight_decay=0.1),
    "adopt": lambda: adam_tx.adopt(1e-3),
    "ademamix": lambda: adam_tx.ademamix(1e-3, alpha=5.0),
    "ademamix, warm-up": lambda: adam_tx.ademamix(
        1e-3, alpha=schedules.warmup(5.0, 50), b3=schedules.half_life_decay(0.9, 0.999, 50), weight_decay=0.1
    ),
    "lion": lambda: adam_tx.lion(1e-3),
    "momentum": lambda: adam_tx.chain(adam_tx.scale_by_momentum(0.9, nesterov=True)),
    "schedule_free_adamw": lambda: adam_tx.schedule_free_adamw(1e-3, 5, weight_decay=0.1),
    "schedule_free_sgd": lambda: adam_tx.schedule_free_sgd(1e-2, r=1.0),
}
"""Name -> factory of a transformation whose updates are ready for `optax.apply_updates`."""

PER_TENSOR = {
    "lamb": lambda: adam_tx.lamb(1e-3, weight_decay=0.1),
    "keras lamb": lambda: keras("Lamb", beta_1=0.9, beta_2=0.999, epsilon=1e-7, weight_decay=0.1),
    "novograd": lambda: adam_tx.novograd(1e-3, weight_decay=0.1),
    "adafactor": lambda: adam_tx.adafactor(1e-2, min_dim_size_to_factor=2, weight_decay_rate=1e-4),
    "adafactor, whole": lambda: adam_tx.adafactor(1e-2, momentum=0.9, multiply_by_parameter_scale=False),
    "torch adafactor": lambda: interop.torch.from_param_group(TORCH_ADAFACTOR, "Adafactor"),
    "adam_mini": lambda: adam_tx.adam_mini(1e-3, weight_decay=0.1),
    "adam_mini, whole": lambda: adam_tx.adam_mini(1e-3, block=adam_tx.whole_tensor),
    "stable_adamw": lambda: adam_tx.stable_adamw(1e-3),
    "mars_adamw": lambda: adam_tx.mars_adamw(1e-3, weight_decay=0.1),
    "soap": lambda: adam_tx.soap(1e-3, every=2),
    "soap, some axes": lambda: adam_tx.soap(1e-3, every=3, axes=lambda _, shape: range(len(shape) - 1)),
    "cautious": lambda: adam_tx.cautious(adam_tx.adamw(1e-3)),
    "muon": lambda: adam_tx.muon(1e-2, weight_decay=0.1),
    "muon, by AdamW's rate": lambda: adam_tx.muon(
        1e-3, "polar_express", consistent_rms=0.2, others=adam_tx.lion(1e-4), dtype=jnp.bfloat16
    ),
    "normuon": lambda: adam_tx.normuon(1e-2, adam_tx.adamw(1e-3), weight_decay=0.1),
    "adamh": lambda: adam_tx.adamh(1e-2, adam_tx.adam(1e-3)),
    "muonh": lambda: adam_tx.muonh(1e-2, adam_tx.adam(1e-3)),
}
"""Those whose rule of an element depends on its whole tensor."""

FOR_MATRICES = {name for name in PER_TENSOR if name.split(",")[0] in ("muon", "normuon", "adamh", "muonh")}
"""Those that want to know which leaves are matrices."""

SMALL_STATE = {
    "adam, bf16 mu": lambda: adam_tx.adam(1e-3, mu_dtype=jnp.bfloat16),
    "adam, bf16 mu and nu": lambda: adam_tx.adam(1e-3, b2=0.95, mu_dtype=jnp.bfloat16, nu_dtype=jnp.bfloat16),
}
"""Those that store moments in 16 bits, which complex parameters cannot have."""

ROUNDED, EIGHT_BIT = storage.StochasticBFloat16(), storage.EightBit(block=2, min_size=1)
AT_RANDOM = {
    "adam, rounded at random": lambda: adam_tx.adam(1e-3, mu_dtype=ROUNDED, nu_dtype=ROUNDED),
    "adamw, eight bit": lambda: adam_tx.adamw(1e-3, weight_decay=0.1, mu_dtype=EIGHT_BIT, nu_dtype=EIGHT_BIT),
}
"""Those whose moments are rounded at random, by where an element stands."""
SMALL_STATE |= AT_RANDOM


ONE_SETTING = {*adam_tx.optimizers.__all__, *AT_RANDOM}
"""An entry for each optimizer, and those whose moments are rounded at random."""


BUILDS = {
    *("adam", "adamw", "nadam", "sgd", "lion", "amsgrad", "adagrad", "radam", "adopt", "ademamix", "cautious"),
    *("lamb", "adafactor", "adam_mini", "stable_adamw", "mars_adamw", "soap", "adamw, eight bit"),
}
"""One of each build: what they keep, read and reduce differs in kind, and not by a formula alone."""


def costly(cases, every_run=BUILDS):
    """Names, or cases of several parameters, for a test that compiles much: the others run with `-m exhaustive`."""
    rest = pytest.mark.exhaustive
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*v, marks=() if c in every_run else rest) for c, v in zip(cases, values, strict=True)]
