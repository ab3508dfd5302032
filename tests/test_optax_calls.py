"""The calls of Optax that made a schedule or a wrapper are found and proved, or else called unknown."""

import json

import jax
import jax.numpy as jnp
import optax
import pytest
from rebuild import program, through_json

import adam_tx
from adam_tx import schedules
from adam_tx.describe import closures, source

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.ones(3)}
LINEAR = optax.linear_schedule(0.1, 0.0, 10)
ADAM = adam_tx.adam(1e-3)

pytestmark = pytest.mark.usefixtures("standard_promotion")  # which Optax's schedules and wrappers need


def is_matrix(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


class Swapped(adam_tx.Basis):
    """A basis of the user's: the last element first."""

    def axes(self, path, shape):
        """Every axis."""
        del path
        return range(len(shape))

    def find(self, basis, memory, grad, axis, count):
        """The same at every update."""
        del memory, grad, axis, count
        return adam_tx.Turn(jnp.eye(len(basis))[::-1], jnp.arange(len(basis)))


def evaluated(text):
    """What the code makes here, where adam_tx, optax, jnp and np are imported and this module's names are known."""
    return eval(text.replace(f"{__name__}.", ""))


SCHEDULES = {
    "constant": (optax.constant_schedule(0.1), "optax.constant_schedule"),
    "linear": (LINEAR, "optax.linear_schedule"),
    "no steps": (optax.linear_schedule(0.1, 0.2, 0), "optax.linear_schedule"),
    "polynomial": (optax.polynomial_schedule(1.0, 0.1, 2, 10), "optax.polynomial_schedule"),
    "cosine": (optax.cosine_decay_schedule(0.1, 10, alpha=0.1), "optax.cosine_decay_schedule"),
    "exponential": (optax.exponential_decay(0.1, 10, 0.9), "optax.exponential_decay"),
    "exponential, bounded": (optax.exponential_decay(0.1, 10, 0.9, end_value=0.05), "optax.exponential_decay"),
    "steps": (optax.piecewise_constant_schedule(0.1, {3: 0.5}), "optax.piecewise_constant_schedule"),
    "one cycle": (optax.cosine_onecycle_schedule(10, 0.1), "optax.piecewise_interpolate_schedule"),
    "warm-up": (optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 10, 0.01), "optax.warmup_cosine_decay_schedule"),
    "joined": (optax.join_schedules([LINEAR, optax.constant_schedule(0.1)], [5]), "optax.join_schedules"),
    "restarts": (
        optax.sgdr_schedule([{"init_value": 0.0, "peak_value": 0.1, "warmup_steps": 1, "decay_steps": 5}] * 2),
        "optax.join_schedules",
    ),
    "ours": (schedules.warmup(0.1, 5), "schedules.warmup"),
    "ours around Optax's": (schedules.relative_step(LINEAR), "schedules.relative_step"),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_comes_back_with_its_name(name):
    schedule, maker = SCHEDULES[name]
    tx = adam_tx.scale_by_learning_rate(schedule)
    config = through_json(tx)
    assert config["learning_rate"]["name"] == maker
    for again in (adam_tx.from_config(config, allow=[__name__]), evaluated(repr(tx))):
        rate = again.implementation.hyperparams["learning_rate"]
        assert f"{jax.make_jaxpr(rate)(0)}" == f"{jax.make_jaxpr(schedule)(0)}"


def test_a_schedule_has_the_same_config_after_it_was_used():
    schedule = optax.cosine_decay_schedule(0.1, 10)  # which turns its number of steps into a float
    before = adam_tx.get_config(adam_tx.adam(schedule))
    schedule(1)
    assert adam_tx.get_config(adam_tx.adam(schedule)) == before


WRAPPED = {
    "chain": optax.chain(optax.clip_by_global_norm(1.0), ADAM, optax.scale(0.5)),
    "chain of Optax's own": optax.adamw(LINEAR, weight_decay=0.1, mask=is_matrix),
    "named chain": optax.named_chain(("clip", optax.clip(1.0)), ("adam", ADAM)),
    "masked": optax.masked(ADAM, {"w": True, "b": False}),
    "masked by a function": optax.masked(ADAM, is_matrix, mask_compatible_extra_args=True),
    "partition": optax.partition({"x": ADAM, "name": optax.set_to_zero()}, {"w": "x", "b": "name"}),
    "apply_if_finite": optax.apply_if_finite(ADAM, 3),
    "MultiSteps": optax.MultiSteps(ADAM, 2),
    "MultiSteps as a pair": optax.chain(optax.MultiSteps(ADAM, 2, use_grad_mean=False).gradient_transformation()),
    "injected": optax.inject_hyperparams(adam_tx.adam)(LINEAR, eps=1e-6),
    "injected but for some": optax.inject_hyperparams(adam_tx.adam, static_args=("b1", "eps"))(1e-3, b1=0.8),
    "schedule_free": optax.contrib.schedule_free(ADAM, 0.05, b1=0.9),
    "flatten": optax.flatten(ADAM),
    "sign": optax.chain(optax.scale_by_sign(), optax.scale_by_learning_rate(LINEAR, flip_sign=False)),
    "momentum": optax.chain(optax.trace(0.9, nesterov=True), optax.ema(0.9, debias=False)),
    "in a chain of ours": adam_tx.chain(
        adam_tx.scale_by_momentum(0.9), ("m", optax.masked(adam_tx.scale_by_rms(0.99), is_matrix)), optax.clip(1.0)
    ),
    "as a link": adam_tx.as_link(optax.scale_by_sign(), name="sign", formula="sign(u)"),
    "another gradient": adam_tx.chain(
        adam_tx.scale_by_momentum(0.9),
        adam_tx.with_gradient(adam_tx.scale_by_rms(0.9), adam_tx.gradient_difference()),
    ),
    "a basis of the user's": adam_tx.chain(adam_tx.in_basis(adam_tx.scale_by_rms(0.9), Swapped())),
    "decayed parameters": adam_tx.on_decayed_weights(ADAM, 0.1, {"w": True, "b": False}, times=LINEAR),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapper_comes_back_to_the_last_bit(name):
    tx = WRAPPED[name]
    config, expected = through_json(tx), program(tx, PARAMS)
    for again in (adam_tx.from_config(config, allow=[__name__]), evaluated(source.render(tx))):
        assert type(again) is type(tx) or isinstance(tx, tuple)
        assert program(again, PARAMS) == expected
        assert adam_tx.get_config(again) == config


UNPROVED = {
    "the init of another": optax.GradientTransformation(optax.trace(0.9).init, optax.ema(0.9).update),
    "the init of another, beside the update of a link": optax.GradientTransformation(
        optax.trace(0.9).init, ADAM.update
    ),
    "extra arguments that it does not take": optax.GradientTransformationExtraArgs(*optax.scale(2.0)),
    "a function of the user's": optax.GradientTransformation(optax.init_empty_state, lambda *_: None),
}


@pytest.mark.parametrize("name", UNPROVED)
def test_what_cannot_be_proved_is_not_guessed(name):
    assert closures.call_of(UNPROVED[name]) is None
    assert "unknown" in adam_tx.get_config(UNPROVED[name])


OF_OPTAX = {
    name: made
    for name, made in ({name: schedule for name, (schedule, _) in SCHEDULES.items()} | WRAPPED).items()
    if not isinstance(made, adam_tx.Link) and not hasattr(made, "call")
}


def described(made):
    """The config of a transformation, or of a link with this schedule, as text."""
    return json.dumps(adam_tx.get_config(made if hasattr(made, "update") else adam_tx.scale_by_learning_rate(made)))


@pytest.mark.parametrize("name", OF_OPTAX)
def test_of_an_optax_whose_closures_have_other_variables_nothing_is_guessed(name, monkeypatch):
    def renamed(variables):
        return lambda made: {f"{key}_of_tomorrow": value for key, value in variables(made).items()}

    monkeypatch.setattr(closures, "closure_variables", renamed(closures.closure_variables))
    monkeypatch.setattr(closures, "vars", renamed(vars), raising=False)
    assert "unknown" in described(OF_OPTAX[name])


@pytest.mark.parametrize("name", OF_OPTAX)
def test_of_an_optax_that_lacks_a_function_its_name_is_not_written(name, monkeypatch):
    maker = closures.call_of(OF_OPTAX[name]).maker.__name__
    monkeypatch.delattr(optax, maker, raising=False)
    assert f'"optax.{maker}"' not in described(OF_OPTAX[name])


def test_functions_of_the_users_are_not_called_to_find_their_arguments():
    called = []

    def scale(step_size):
        called.append(step_size)
        return optax.GradientTransformation(optax.init_empty_state, lambda updates, *_: (step_size, updates))

    assert "unknown" in adam_tx.get_config(scale(2.0))
    assert called == [2.0]
