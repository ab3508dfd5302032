"""The dialects of Adam: an average divided by the root of an average, or by a maximum, corrected or not."""

from __future__ import annotations

from collections.abc import Callable

import optax

from adam_tx import optimizers, schedules
from adam_tx.links.bias_correction import bias_correction
from adam_tx.links.learning_rate import scale_by_learning_rate
from adam_tx.links.max_norm import scale_by_max_norm
from adam_tx.links.max_rms import scale_by_max_rms
from adam_tx.links.momentum import scale_by_momentum
from adam_tx.links.rectified_rms import scale_by_rectified_rms
from adam_tx.links.rms import scale_by_rms
from adam_tx.probes.dialect import Dialect, Direction, Links, Numbers, aliases, own, part, seen

BETAS = {"b1": 0.9, "b2": 0.999}
ADAM = {**BETAS, "eps": 1e-8}
AFTER = {"place": "outside", "corrected": True}
BEFORE = {"place": "outside", "corrected": False}
_MAXIMUM = "maximum"


def _after_momentum(rms: Callable[[Numbers], optax.GradientTransformation], *, both: bool = False) -> Direction:
    """A momentum, what divides it, and the correction of the first or of both."""

    def direction(n: Numbers) -> Links:
        correction = bias_correction(n["b1"], n["b2"]) if both else bias_correction(n["b1"])
        return scale_by_momentum(n["b1"]), rms(n), correction

    return direction


def _corrected(n: Numbers) -> optax.GradientTransformation:
    return scale_by_rms(n["b2"], n["eps"], debias=True)


def _raw(n: Numbers) -> optax.GradientTransformation:
    return scale_by_rms(n["b2"], n["eps"])


def _inside(n: Numbers) -> optax.GradientTransformation:
    return scale_by_rms(n["b2"], 0.0, eps_root=n["eps"], debias=True)


def _rectified(n: Numbers) -> optax.GradientTransformation:
    return scale_by_rectified_rms(n["b2"], n["eps"])


def _largest_corrected(n: Numbers) -> optax.GradientTransformation:
    return scale_by_max_rms(n["b2"], n["eps"], debias=True)


def _largest(n: Numbers) -> optax.GradientTransformation:
    return scale_by_max_rms(n["b2"], n["eps"])


def _max_norm(n: Numbers) -> optax.GradientTransformation:
    return scale_by_max_norm(n["b2"], n["eps"], eps_stored=0.0)


def _not_corrected(n: Numbers) -> Links:
    return scale_by_momentum(n["b1"]), _raw(n)


def _nadam(momentum_decay: float | None = None) -> Direction:
    def direction(n: Numbers) -> Links:
        grows = n.get("momentum_decay", momentum_decay)
        read = None if grows is None else schedules.nadam_decay(n["b1"], grows)
        return scale_by_momentum(n["b1"], read=read, nesterov=True, debias=True), _corrected(n)

    return direction


def _of_momentum(*, debias: bool) -> Direction:
    """What becomes of Optax's links in a chain of Optax, where a link sees what the one before it made."""

    def direction(n: Numbers) -> Links:
        momentum = scale_by_momentum(n["b1"], debias=debias)
        rms = optax.scale_by_rms(n["b2"], n["eps"], bias_correction=debias)
        return (optax.chain(momentum, rms, scale_by_learning_rate(n["learning_rate"])),)

    return direction


_AHEAD = seen(**AFTER) | {"ahead": True}
_MOMENTS = {"degree": 0.0, "linear": False, "elementwise": True}
_WHOLE = {"learning_rate": 1e-3, **ADAM}

ADAMS = (
    Dialect(
        "adam",
        _after_momentum(_corrected),
        ADAM,
        seen(**AFTER),
        aliases(
            plain="paper optax.adam adam_tx.adam",
            l2="torch.optim.Adam",
            w="torch.optim.AdamW optax.adamw adam_tx.adamw",
        ),
    ),
    Dialect(
        "adam, epsilon before the correction",
        _after_momentum(_raw, both=True),
        ADAM,
        seen(**BEFORE),
        aliases(plain="tf.compat.v1.train.AdamOptimizer", w="keras.optimizers.Adam keras.optimizers.AdamW"),
    ),
    Dialect(
        "adam, epsilon inside the root",
        _after_momentum(_inside),
        ADAM,
        seen(place="inside", corrected=True),
        aliases(plain="optax.adam(eps=0,eps_root=e)"),
    ),
    Dialect(
        "adam, not corrected",
        _not_corrected,
        ADAM,
        seen(**BEFORE, first_correction=1.0, second_correction=-0.5),
        aliases(w="bert.AdamWeightDecayOptimizer"),
    ),
    Dialect(
        "nadam", _nadam(), ADAM, _AHEAD, aliases(plain="optax.nadam adam_tx.nadam", w="optax.nadamw adam_tx.nadamw")
    ),
    Dialect("nadam, fast growing momentum", _nadam(1.0), ADAM, _AHEAD, aliases(w="keras.optimizers.Nadam")),
    Dialect(
        "nadam, growing momentum", _nadam(), {**ADAM, "momentum_decay": 0.004}, _AHEAD, aliases("torch.optim.NAdam")
    ),
    Dialect(
        "radam", part(optimizers.radam), ADAM, seen(**AFTER, rises=True), aliases(plain="optax.radam adam_tx.radam")
    ),
    Dialect(
        "radam, epsilon before the correction",
        _after_momentum(_rectified),
        ADAM,
        seen(**BEFORE, rises=True),
        aliases("torch.optim.RAdam"),
    ),
    Dialect(
        "laprop", part(optimizers.laprop), ADAM, seen(order="root first", **AFTER), aliases(plain="adam_tx.laprop")
    ),
    Dialect(
        "ademamix",
        part(optimizers.ademamix),
        {**ADAM, "b3": 0.9999, "alpha": 5.0},
        seen(**AFTER, fades=False),
        aliases(w="optax.contrib.ademamix adam_tx.ademamix"),
    ),
    Dialect(
        "amsgrad, of the largest corrected moment",
        part(optimizers.amsgrad),
        ADAM,
        seen(_MAXIMUM, **AFTER),
        aliases(plain="optax.amsgrad adam_tx.amsgrad"),
    ),
    Dialect(
        "amsgrad, of the largest moment",
        _after_momentum(_largest_corrected),
        ADAM,
        seen(_MAXIMUM, **AFTER),
        aliases(l2="torch.optim.Adam(amsgrad=True)", w="torch.optim.AdamW(amsgrad=True)"),
    ),
    Dialect(
        "amsgrad, of the largest moment, epsilon before the correction",
        _after_momentum(_largest, both=True),
        ADAM,
        seen(_MAXIMUM, place="outside"),
        aliases(w="keras.optimizers.Adam(amsgrad=True)"),
    ),
    Dialect(
        "adamax",
        part(optimizers.adamax),
        ADAM,
        seen(_MAXIMUM, **AFTER),
        aliases(plain="optax.adamax adam_tx.adamax", l2="torch.optim.Adamax", w="optax.adamaxw adam_tx.adamaxw"),
    ),
    Dialect(
        "adamax, epsilon outside the maximum",
        _after_momentum(_max_norm),
        ADAM,
        seen(_MAXIMUM, **AFTER),
        aliases(w="keras.optimizers.Adamax"),
    ),
    *(
        Dialect(f"adam, the second moment is of the {what}", _of_momentum(debias=debias), _WHOLE, _MOMENTS, own(""))
        for what, debias in (("momentum", False), ("corrected momentum", True))
    ),
)
