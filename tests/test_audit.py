"""`audit` names what it is given by its answers alone; mistakes that shipped are found, and nothing right is blamed.

Formulas in NumPy stand for optimizers here, so that what names them is held to something that knows none of its links.
`benchmarks/audit.py` has all of Optax's optimizers, all of ours, and PyTorch's.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import planted
import pytest
from catalogue import OPTIMIZERS

import adam_tx
from adam_tx.probes import dialects
from adam_tx.probes._audit import audited
from adam_tx.probes.promises import counted
from adam_tx.probes.training import Stepper

LR, B1, B2, EPS, WD = 2e-3, 0.85, 0.99, 1e-6, 0.05


class Formula:
    """A rule in NumPy as what is probed. It gets the arrays that it keeps, gradient, parameters and step."""

    def __init__(self, rule):
        self.rule = rule
        self.name = "a formula"

    def held(self, grads, params, dtype):
        return self.steps(grads, lambda name, t, _: params[name][:, t])

    def followed(self, grads, start, dtype):
        return self.steps(grads, lambda name, t, sum_of: start[name] + sum_of)

    def steps(self, grads, place):
        made = {}
        for name, grad in grads.items():
            kept = {"m": np.zeros_like(grad[:, 0]), "v": np.zeros_like(grad[:, 0]), "x": np.zeros_like(grad[:, 0])}
            made[name] = np.zeros_like(grad)
            for t in range(grad.shape[1]):
                p = place(name, t, made[name][:, :t].sum(1))
                made[name][:, t] = self.rule(kept, grad[:, t], p, t + 1)
        return made


def moments(kept, g, t):
    kept["m"] = B1 * kept["m"] + (1 - B1) * g
    kept["v"] = B2 * kept["v"] + (1 - B2) * g**2
    return kept["m"], kept["v"], 1 - B1**t, 1 - B2**t


def algorithm_1(kept, g, p, t):
    m, v, c1, c2 = moments(kept, g, t)
    return -LR * (m / c1 / (np.sqrt(v / c2) + EPS))


def adamw(kept, g, p, t):
    return algorithm_1(kept, g, p, t) - LR * WD * p


def uphill(kept, g, p, t):
    return -adamw(kept, g, p, t)


def adam_l2(kept, g, p, t):
    return algorithm_1(kept, g + WD * p, p, t)


def keras_adam(kept, g, p, t):
    m, v, c1, c2 = moments(kept, g, t)
    return -LR * np.sqrt(c2) / c1 * m / (np.sqrt(v) + EPS)


def inside(kept, g, p, t):
    m, v, c1, c2 = moments(kept, g, t)
    return -LR * m / c1 / np.sqrt(v / c2 + EPS**2)


def torch_amsgrad(kept, g, p, t):
    m, v, c1, c2 = moments(kept, g, t)
    kept["x"] = np.maximum(kept["x"], v)
    return -LR * m / c1 / (np.sqrt(kept["x"] / c2) + EPS)


def torch_nadam(kept, g, p, t):
    m, v, _, c2 = moments(kept, g, t)
    now, ahead = (B1 * (1 - 0.5 * 0.96 ** (s * 0.004)) for s in (t, t + 1))
    product = np.prod([B1 * (1 - 0.5 * 0.96 ** (s * 0.004)) for s in range(1, t + 1)])
    direction = ahead * m / (1 - product * ahead) + (1 - now) * g / (1 - product)
    return -LR * direction / (np.sqrt(v / c2) + EPS)


def laprop(kept, g, p, t):
    kept["v"] = B2 * kept["v"] + (1 - B2) * g**2
    kept["m"] = B1 * kept["m"] + (1 - B1) * g / (np.sqrt(kept["v"] / (1 - B2**t)) + EPS)
    return -LR * kept["m"] / (1 - B1**t)


def lion(kept, g, p, t):
    step = np.sign(B1 * kept["m"] + (1 - B1) * g)
    kept["m"] = B2 * kept["m"] + (1 - B2) * g
    return -LR * (step + WD * p)


def torch_rmsprop(kept, g, p, t):
    kept["v"] = B2 * kept["v"] + (1 - B2) * g**2
    kept["m"] = B1 * kept["m"] + g / (np.sqrt(kept["v"]) + EPS)
    return -LR * kept["m"]


NAMES = {
    "torch.optim.AdamW": (adamw, {"b1": B1, "b2": B2, "eps": EPS, "weight_decay": WD, "learning_rate": LR}),
    "keras.optimizers.Adam": (keras_adam, {"eps": EPS}),
    "torch.optim.Adam": (adam_l2, {"weight_decay": WD}),
    "optax.adam(eps=0,eps_root=e)": (inside, {"eps": EPS**2}),
    "torch.optim.Adam(amsgrad=True)": (torch_amsgrad, {"b2": B2}),
    "torch.optim.NAdam": (torch_nadam, {"momentum_decay": 0.004}),
    "adam_tx.laprop": (laprop, {"b1": B1}),
    "optax.lion": (lion, {"b1": B1, "b2": B2}),
    "torch.optim.RMSprop": (torch_rmsprop, {"b2": B2, "momentum": B1}),
}
EVERY_RUN = ("torch.optim.AdamW", "keras.optimizers.Adam", "optax.lion")


@functools.cache
def audit_of(rule):
    return audited(Formula(rule), [])


@functools.cache
def mistake(name, promises=False):
    return adam_tx.audit(planted.MISTAKES[name][0](), promises=promises, name=name)


def in_turn(names, every_run):
    return [pytest.param(n, marks=() if n in every_run else pytest.mark.exhaustive) for n in names]


@pytest.mark.parametrize("name", in_turn(NAMES, EVERY_RUN))
def test_a_formula_is_named_and_its_hyperparameters_are_measured(name):
    rule, hyperparams = NAMES[name]
    found = audit_of(rule).assert_is(name, **hyperparams)
    assert found.difference <= 1e-10
    assert found.first_step is None
    assert not found.findings


def test_another_optimizer_than_was_said_is_an_error_that_says_where_and_by_how_much():
    with pytest.raises(AssertionError) as error:
        audit_of(keras_adam).assert_is("torch.optim.AdamW")
    said = str(error.value)
    assert "is not torch.optim.AdamW: it is adam, epsilon before the correction" in said
    assert "it differs from step 1 on, at most by" in said
    with pytest.raises(AssertionError, match=r"but its b2 is 0\.99, not 0\.999"):
        audit_of(adamw).assert_is("optax.adamw", b2=0.999)
    with pytest.raises(AssertionError, match=r"(?s)a formula is not optax\.adamw.*Updates go up the gradient"):
        audit_of(uphill).assert_is("optax.adamw")
    with pytest.raises(ValueError, match=r"assert_is: name must be one of .*'torch.optim.Adam'.*, got 'torch.Adam'"):
        audit_of(adamw).assert_is("torch.Adam")


# what is left out here and below is in the table of benchmarks/audit.py
OFTEN = ["a count that is never incremented", *list(planted.MISTAKES)[1::3]]


@pytest.mark.parametrize("name", in_turn(OFTEN, OFTEN[:1]))
def test_a_planted_mistake_is_found_and_named(name):
    printed = " ".join(str(mistake(name, promises="bfloat16" in name)).split())
    for words in planted.MISTAKES[name][1]:
        assert words in printed


@pytest.mark.usefixtures("standard_promotion")
def test_a_count_in_bfloat16_is_found_to_stop_at_256():
    advance = Stepper(planted.adam(count_dtype=jnp.bfloat16)).advance
    found = counted("counts", advance, "bfloat16")
    assert found.kept is False
    assert "bfloat16 stops at 256" in found.shown
    assert counted("counts", Stepper(optax.adam(1e-3)).advance, "bfloat16").kept is True


@pytest.mark.exhaustive
def test_a_function_of_the_learning_rate_shows_what_the_rate_multiplies():
    found = adam_tx.audit(planted.decay_without_rate, promises=False)
    assert found.findings == ("Weight decay is not multiplied by the learning rate: at twice the rate it is the same.",)
    shown = {promise.name: promise.kept for promise in adam_tx.audit(optax.adamw, promises=False).promises}
    assert shown == {
        "the step is proportional to the learning rate": True,
        "weight decay follows the learning rate": True,
        "a schedule is read at the number of earlier updates": True,
    }


@pytest.mark.exhaustive
def test_a_schedule_and_a_clip_around_it_do_not_hide_an_optimizer():
    scheduled = adam_tx.audit(optax.adamw(optax.cosine_decay_schedule(1e-3, 100), weight_decay=0.01), promises=False)
    assert scheduled.assert_is("optax.adamw", weight_decay=0.01).scheduled
    clipped = adam_tx.audit(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)), promises=False)
    assert clipped.assert_is("optax.adam", eps=1e-8).small


NOT_KNOWN = {
    "adamc": "a correction with another decay, or a schedule",
    **dict.fromkeys(("radam", "schedule_free_adamw", "schedule_free_sgd"), ""),
}
"""Settings of the catalogue that are no dialect, and what is said of each: a decay by the rate's square, another
threshold, a warm-up or weights of the average."""


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["adam", "adamc", "lion", "radam", "schedule_free_adamw"])
def test_our_optimizers_keep_their_promises(name):
    """But one: a gradient of 1e30 makes squares that are no float32."""
    found = adam_tx.audit(OPTIMIZERS[name](), name=name)
    assert (found.dialect is None) == (name in NOT_KNOWN)
    assert all(NOT_KNOWN.get(name, "nothing") in finding for finding in found.findings)
    assert not [promise for promise in found.broken if "1e30" not in promise.name]


def test_what_moves_nothing_is_said_to_move_nothing():
    found = audited(Formula(lambda kept, g, p, t: 0.0 * g), [])
    assert found.dialect is None
    assert found.findings == ("Nothing moves the matrix and the vector.",)


def test_an_audit_prints_its_parts_and_hyperparameters_as_a_table():
    printed = str(audit_of(adamw))
    assert printed.startswith("a formula: it is adam with decoupled weight decay, which is torch.optim.AdamW, ")
    assert "order            momentum first" in printed
    assert "epsilon          1e-06 outside the root, after its correction" in printed
    assert "weight_decay     0.05" in printed


def test_what_is_no_transformation_is_refused():
    with pytest.raises(TypeError, match=r"audit: tx must be a transformation, or a function that makes one, got int\."):
        adam_tx.audit(3)
    with pytest.raises(TypeError, match=r"audit: tx must make a transformation of a learning rate, got float\."):
        adam_tx.audit(lambda learning_rate: learning_rate)


def test_each_dialect_has_a_name_of_its_own():
    names = [dialect.name for dialect in dialects.DIALECTS]
    assert len(set(names)) == len(names)
    assert not [name for name in dialects.known_names() if not dialects.by_alias(name)]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [dialect.name for dialect in dialects.DIALECTS[::4]])
def test_each_dialect_is_found_to_be_itself(name):
    dialect = next(dialect for dialect in dialects.DIALECTS if dialect.name == name)
    numbers = {"learning_rate": 1e-3, **dialect.numbers}
    with jax.enable_x64(True):
        made = dialect.make("none", numbers)
    assert adam_tx.audit(made, promises=False, name=name).dialect == name
