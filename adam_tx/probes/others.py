"""The other dialects: signs, other second moments, rules of whole tensors; and those without a first moment."""

from __future__ import annotations

from collections.abc import Iterator

import optax

from adam_tx import optimizers, schedules
from adam_tx.links.centered_rms import scale_by_centered_rms
from adam_tx.links.clip import clip_by_rms
from adam_tx.links.heavy_ball import scale_by_heavy_ball
from adam_tx.links.learning_rate import scale_by_learning_rate
from adam_tx.links.lion_momentum import scale_by_lion_momentum
from adam_tx.links.rms import scale_by_rms
from adam_tx.links.row_column_rms import last_axes, scale_by_row_column_rms
from adam_tx.links.summed_rms import scale_by_summed_rms
from adam_tx.probes.adams import ADAM, AFTER, BETAS
from adam_tx.probes.dialect import Dialect, Direction, Links, Numbers, aliases, own, part, seen, whole

_RATE = {"learning_rate": 1e-3}
_ADAMW = {**_RATE, **ADAM, "weight_decay": 1e-4}
_ODD = {"degree": 0.0, "linear": False}
_TENSOR = {"degree": 0.0, "elementwise": False}
_LINEAR = {"degree": 1.0, "linear": True, "second": "nothing"}


def _lion(n: Numbers) -> Links:
    return scale_by_lion_momentum(n["b1"], n["b2"]), optax.scale_by_sign()


def _sign(_: Numbers) -> Links:
    return (optax.scale_by_sign(),)


def _adafactor_of_last_axes(n: Numbers) -> Links:
    rms = scale_by_row_column_rms(schedules.power_decay(0.8), eps_stored=0.0, axes=last_axes)
    step = scale_by_learning_rate(schedules.relative_step(n["learning_rate"]))
    return rms, clip_by_rms(1.0), optax.scale_by_param_block_rms(1e-3), step


def _cautious_adamw(n: Numbers) -> Links:
    return (optimizers.cautious(optimizers.adamw(**n)),)


def _others() -> Iterator[Dialect]:
    """Those whose rule of a number is another one."""
    belief, eps_1e3 = {**BETAS, "eps": 1e-16, "eps_root": 1e-16}, {**BETAS, "eps": 1e-3}
    yogi = seen("maximum", **AFTER)
    adopt, floor = {"b1": 0.9, "b2": 0.9999, "eps": 1e-6}, seen(None, None, place="floor")
    lion = aliases(w="optax.lion adam_tx.lion keras.optimizers.Lion")
    yield Dialect(
        "adabelief", part(optimizers.adabelief), belief, _ODD, aliases(plain="optax.adabelief adam_tx.adabelief")
    )
    yield Dialect("yogi", part(optimizers.yogi), eps_1e3, yogi, aliases(plain="adam_tx.yogi"))
    yield Dialect("yogi, momentum from 1e-6", part(optax.yogi), eps_1e3, yogi, aliases(plain="optax.yogi"))
    yield Dialect("lion", _lion, {"b1": 0.9, "b2": 0.99}, {"degree": 0.0, "sign": True, "keeps": True}, lion)
    signs = {"degree": 0.0, "sign": True, "keeps": False}
    yield Dialect("sign descent", _sign, {}, signs, aliases(plain="optax.sign_sgd"))
    yield Dialect("adopt", part(optimizers.adopt), adopt, floor, aliases(plain="optax.contrib.adopt adam_tx.adopt"))
    atan2 = {"b1": 0.9, "b2": 0.99, "b": 1.0}
    bounded = {**_ODD, "place": None}
    yield Dialect("adam_atan2", part(optimizers.adam_atan2), atan2, bounded, aliases(w="adam_tx.adam_atan2"))
    free, running = {**_ADAMW, "learning_rate": 2.5e-3}, {"degree": 0.0, "order": "root first", "place": "outside"}
    names = own("optax.contrib.schedule_free_adamw adam_tx.schedule_free_adamw")
    yield Dialect("schedule_free_adamw", whole(optimizers.schedule_free_adamw), free, running, names)
    adadelta = {"learning_rate": 1.0, "rho": 0.9, "eps": 1e-6}
    delta = seen("maximum", None, place="inside")
    yield Dialect("adadelta", whole(optax.adadelta), adadelta, delta, own("optax.adadelta torch.optim.Adadelta"))
    yield Dialect("rprop", whole(optax.rprop), _RATE, _ODD, own("optax.rprop"))


def _of_tensors() -> Iterator[Dialect]:
    """Those that look at whole tensors."""
    mini = {**seen(), **_TENSOR}
    yield Dialect("adam_mini", part(optimizers.adam_mini), ADAM, mini, aliases(w="adam_tx.adam_mini"))
    yield Dialect("lamb", whole(optimizers.lamb), _ADAMW, _TENSOR, own("optax.lamb adam_tx.lamb"))
    novograd = {**_RATE, "b1": 0.9, "b2": 0.25, "eps": 1e-6, "weight_decay": 0.0}
    yield Dialect("novograd", whole(optimizers.novograd), novograd, _TENSOR, own("optax.novograd adam_tx.novograd"))
    yield Dialect("adafactor", whole(optimizers.adafactor), _RATE, _TENSOR, own("adam_tx.adafactor"))
    yield Dialect("adafactor, decay in float32", whole(optax.adafactor), _RATE, _TENSOR, own("optax.adafactor"))
    yield Dialect("adafactor, last axes", _adafactor_of_last_axes, _RATE, _TENSOR, own("torch.optim.Adafactor"))
    stable = {**_ADAMW, "b2": 0.99}
    yield Dialect("stable_adamw", whole(optimizers.stable_adamw), stable, mini, own("adam_tx.stable_adamw"))
    mars = {**_ADAMW, "b1": 0.95, "b2": 0.99, "gamma": 0.025}
    yield Dialect("mars_adamw", whole(optimizers.mars_adamw), mars, _TENSOR, own("adam_tx.mars_adamw"))
    soap = {**_ADAMW, "b1": 0.95, "b2": 0.95}
    yield Dialect("soap", whole(optimizers.soap, every=10), soap, _TENSOR, own("adam_tx.soap"))
    yield Dialect(
        "cautious adamw", _cautious_adamw, _ADAMW, {**_ODD, **_TENSOR}, own("adam_tx.cautious(adam_tx.adamw)")
    )
    muon = {**_RATE, "weight_decay": 0.0}
    ahead = {**_TENSOR, "ahead": True}
    yield Dialect("muon", whole(optimizers.muon), muon, ahead, own("optax.contrib.muon adam_tx.muon"))


def _rmsprop(*, inside: bool, centered: bool, nesterov: bool) -> Direction:
    def direction(n: Numbers) -> Links:
        scale = scale_by_centered_rms if centered else scale_by_rms
        eps, eps_root = (0.0, n["eps"]) if inside else (n["eps"], 0.0)
        momentum = [scale_by_heavy_ball(n["momentum"], nesterov=nesterov)] if "momentum" in n else []
        return scale(n["b2"], eps, eps_root=eps_root), *momentum

    return direction


def _rmsprops() -> Iterator[Dialect]:
    names = {
        "inside": aliases(plain="optax.rmsprop adam_tx.rmsprop", w="keras.optimizers.RMSprop"),
        "outside": aliases(l2="torch.optim.RMSprop"),
    }
    for centered in (False, True):
        for place, called in names.items():
            for how in ("", ", with momentum", ", Nesterov's"):
                order, ahead = "root first" if how else None, how == ", Nesterov's"
                facts = _ODD if centered else seen("average", order, place=place) | {"ahead": ahead}
                numbers = {"b2": 0.9, "eps": 1e-8, **({"momentum": 0.9} if how else {})}
                direction = _rmsprop(inside=place == "inside", centered=centered, nesterov=ahead)
                what = f"rmsprop{', centered' if centered else ''}{how}, epsilon {place}"
                yield Dialect(what, direction, numbers, facts, called)


def _summed(n: Numbers) -> Links:
    return (scale_by_summed_rms(n["eps"]),)


def _nothing(_: Numbers) -> Links:
    return ()


def _heavy_ball(*, nesterov: bool) -> Direction:
    def direction(n: Numbers) -> Links:
        return (scale_by_heavy_ball(n["momentum"], dampening=n.get("dampening", 0.0), nesterov=nesterov),)

    return direction


def _without_first_moment() -> Iterator[Dialect]:
    """Those that divide the gradient itself, and those that divide nothing."""
    adagrad = aliases(plain="optax.adagrad adam_tx.adagrad", w="keras.optimizers.Adagrad")
    inside, outside = (seen("sum", None, place=place) for place in ("inside", "outside"))
    yield Dialect("adagrad", part(optimizers.adagrad), {"eps": 1e-7}, inside, adagrad)
    yield Dialect("adagrad, from zero", _summed, {"eps": 1e-10}, outside, aliases(l2="torch.optim.Adagrad"))
    yield from _rmsprops()
    sgd = aliases("torch.optim.SGD", plain="optax.sgd adam_tx.sgd", w="keras.optimizers.SGD")
    yield Dialect("sgd", _nothing, {}, {**_LINEAR, "keeps": False}, sgd)
    for nesterov, how in ((False, ""), (True, ", Nesterov's")):
        facts, direction = {**_LINEAR, "keeps": True, "ahead": nesterov}, _heavy_ball(nesterov=nesterov)
        yield Dialect(f"sgd with momentum{how}", direction, {"momentum": 0.9}, facts, sgd)
        dampened = {"momentum": 0.9, "dampening": 0.5}
        yield Dialect(f"sgd with dampened momentum{how}", direction, dampened, facts, aliases("torch.optim.SGD"))


OTHERS = (*_others(), *_of_tensors(), *_without_first_moment())
