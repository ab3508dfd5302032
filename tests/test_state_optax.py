"""The state of Optax's optimizers goes on here, and there again."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import run

import adam_tx
from adam_tx import export_state, migrate

pytestmark = pytest.mark.usefixtures("standard_promotion")

RATE, STEPS = 1e-2, 20
SCHEDULE = optax.exponential_decay(RATE, 10, 0.9)


def adafactor_in_float64(learning_rate, *momentum):
    """`optax.adafactor`, which takes its decay in float32 whatever the parameters, with one in float64."""
    return optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=3, decay_rate_fn=lambda step, by: 1 - (step + 1.0) ** -by),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_learning_rate(learning_rate, flip_sign=False),
        optax.scale_by_param_block_rms(),
        *momentum,
        optax.scale(-1.0),
    )


PAIRS = {
    "adam": (lambda: optax.adam(RATE), lambda: adam_tx.adam(RATE)),
    "adam, nesterov": (lambda: optax.adam(RATE, nesterov=True), lambda: adam_tx.adam(RATE, nesterov=True)),
    "adamw": (lambda: optax.adamw(SCHEDULE), lambda: adam_tx.adamw(SCHEDULE)),
    "adamw, clipped": (
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE)),
        lambda: optax.chain(optax.clip_by_global_norm(1.0), adam_tx.adamw(RATE)),
    ),
    "amsgrad": (lambda: optax.amsgrad(RATE), lambda: adam_tx.amsgrad(RATE)),
    "adamax": (lambda: optax.adamax(RATE), lambda: adam_tx.adamax(RATE)),
    "adabelief": (lambda: optax.adabelief(RATE), lambda: adam_tx.adabelief(RATE)),
    "yogi": (lambda: optax.yogi(RATE), lambda: adam_tx.yogi(RATE)),
    "radam": (lambda: optax.radam(RATE), lambda: adam_tx.radam(RATE)),
    "lamb": (lambda: optax.lamb(RATE), lambda: adam_tx.lamb(RATE)),
    "lion": (lambda: optax.lion(RATE), lambda: adam_tx.lion(RATE)),
    "adagrad": (lambda: optax.adagrad(RATE), lambda: adam_tx.adagrad(RATE)),
    "rmsprop": (
        lambda: optax.rmsprop(SCHEDULE, momentum=0.9, centered=True),
        lambda: adam_tx.rmsprop(SCHEDULE, momentum=0.9, centered=True),
    ),
    "sgd": (lambda: optax.sgd(RATE, momentum=0.9), lambda: adam_tx.sgd(RATE, 0.9)),
    "adafactor": (
        lambda: adafactor_in_float64(RATE),
        lambda: adam_tx.adafactor(RATE, min_dim_size_to_factor=3),
    ),
    "adafactor, momentum": (
        lambda: adafactor_in_float64(SCHEDULE, optax.ema(0.9, debias=False)),
        lambda: adam_tx.adafactor(SCHEDULE, min_dim_size_to_factor=3, momentum=0.9),
    ),
    "novograd": (
        lambda: optax.novograd(RATE, weight_decay=0.1),
        lambda: adam_tx.novograd(RATE, weight_decay=0.1),
    ),
    "adopt": (lambda: optax.contrib.adopt(RATE), lambda: adam_tx.adopt(RATE)),
    "ademamix": (
        lambda: optax.contrib.ademamix(RATE, weight_decay=0.1),
        lambda: adam_tx.ademamix(RATE, weight_decay=0.1),
    ),
    "accumulated": (
        lambda: optax.MultiSteps(optax.adam(RATE), 3).gradient_transformation(),
        lambda: optax.MultiSteps(adam_tx.adam(RATE), 3).gradient_transformation(),
    ),
}


def steps(tx, params, state, grads):
    def step(carry, grad):
        params, state = carry
        updates, state = tx.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), grads)[0]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("adamw", "amsgrad", "rmsprop", "adafactor, momentum", "ademamix", "accumulated"), id="some"),
        pytest.param(tuple(PAIRS), id="all", marks=pytest.mark.exhaustive),
    ],
)
def test_steps_of_optax_then_ours_then_optax_again_are_optaxs_to_1e_12(names, x64):
    rng = np.random.default_rng(0)
    shapes = {"wide": (3, 4), "tall": (5, 2, 3), "b": (4,)}
    params = {path: jnp.asarray(rng.standard_normal(shape)) for path, shape in shapes.items()}
    grads = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal((3 * STEPS, *p.shape))), params)
    first, second, third = (jax.tree.map(lambda g, k=k: g[k * STEPS : (k + 1) * STEPS], grads) for k in range(3))
    made = {name: tuple(make() for make in PAIRS[name]) for name in names}

    def run_all(which, begun, grads):
        return jax.jit(lambda: {n: steps(made[n][which], *begun[n], grads) for n in made})()

    start = {name: (params, theirs.init(params)) for name, (theirs, _) in made.items()}
    there = run_all(0, start, first)
    moved = {n: (p, migrate(s, *made[n], p, report=None)) for n, (p, s) in there.items()}
    here = run_all(1, moved, second)
    back = {n: (p, migrate(s, *made[n][::-1], p, report=None)) for n, (p, s) in here.items()}
    ends, whole = run_all(0, back, third), run_all(0, start, grads)
    for name in made:
        for path, leaf in params.items():
            error = run.relative_error(
                np.asarray(ends[name][0][path]), np.asarray(whole[name][0][path]), np.asarray(leaf)
            )
            assert error <= 1e-12, (name, path, error)


LEAVE = {
    "add_decayed_weights": optax.add_decayed_weights(lambda count: 0.1),
    "add_noise": optax.add_noise(0.1, 0.5, jax.random.key(0)),
    "zero_nans": optax.zero_nans(),
    "clip": optax.clip(1.0),
    "clip_by_global_norm": optax.clip_by_global_norm(1.0),
    "clip_by_block_rms": optax.clip_by_block_rms(1.0),
    "adaptive_grad_clip": optax.adaptive_grad_clip(0.1),
    "identity": optax.identity(),
    "snapshot": optax.snapshot("norm", optax.tree.norm),
    "masked decay": optax.masked(optax.add_decayed_weights(0.1), {"w": True, "b": False}),
}
"""What leaves a gradient what it is."""
PARAMS = {"w": jnp.ones((3, 3)), "b": jnp.ones(3)}


def that_scale():
    """Every transformation of Optax that is called so, made with its defaults, or 3 where there is none."""
    for module in (optax, optax.contrib):
        for name in dir(module):
            if name.startswith(("scale_by_", "normalize")) and inspect.isfunction(make := getattr(module, name)):
                of = inspect.signature(make).parameters.values()
                needed = {p.name: 3 for p in of if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
                yield pytest.param(make, needed, id=name)
    yield pytest.param(optax.contrib.reduce_on_plateau, {}, id="reduce_on_plateau")
    yield pytest.param(optax.apply_every, {"k": 2}, id="apply_every")


@pytest.mark.parametrize(("make", "needed"), list(that_scale()))
def test_a_momentum_behind_what_optax_scales_is_none_of_gradients(make, needed):
    needed |= {"scale_by_schedule": {"step_size_fn": SCHEDULE}, "scale_by_learning_rate": {"learning_rate": RATE}}.get(
        make.__name__, {}
    )
    try:
        tx = optax.chain(make(**needed), optax.trace(0.9))
        state = tx.init(PARAMS)
    except (TypeError, ValueError):
        pytest.skip("needs more than numbers")
    roles = {key.split("/")[0] for key in export_state(state, PARAMS, tx)}
    assert any(role.startswith("trace_of_") for role in roles)
    assert "trace" not in roles


@pytest.mark.parametrize("name", LEAVE)
def test_a_momentum_behind_a_clip_or_a_decay_is_one_of_gradients(name):
    tx = optax.chain(LEAVE[name], optax.trace(0.9))
    assert "trace/w" in export_state(tx.init(PARAMS), PARAMS, tx)


def test_what_is_masked_out_of_a_division_is_not_taken_for_divided():
    tx = optax.chain(optax.masked(optax.scale_by_rms(), {"w": True, "b": False}), optax.trace(0.9))
    exported = export_state(tx.init(PARAMS), PARAMS, tx)
    assert "trace_of_changed_scaled/b" in exported


AVERAGED = {
    "adafactor": optax.adafactor(RATE, momentum=0.9, multiply_by_parameter_scale=False, min_dim_size_to_factor=2),
    **{
        name: optax.chain(make, optax.trace(0.9))
        for name, make in {
            "factored": optax.scale_by_factored_rms(min_dim_size_to_factor=2),
            "sm3": optax.scale_by_sm3(),
            "adadelta": optax.scale_by_adadelta(),
            "rprop": optax.scale_by_rprop(RATE),
            "a stranger": optax.GradientTransformation(
                lambda params: jnp.zeros(()), lambda updates, state, params=None: (updates, state)
            ),
        }.items()
    },
}


@pytest.mark.parametrize("name", AVERAGED)
def test_averages_behind_what_divides_or_is_not_known_are_not_matched_with_those_of_gradients(name):
    theirs = AVERAGED[name]
    ours = adam_tx.adamw(RATE) if name == "adafactor" else adam_tx.sgd(RATE, 0.9)
    for old, new in ((theirs, ours), (ours, theirs)):
        with pytest.raises(
            ValueError, match="is another quantity: (one is of updates that were divided|they are averages)"
        ):
            migrate(old.init(PARAMS), old, new, PARAMS)
    others = [tx for other, tx in AVERAGED.items() if other not in (name, "adafactor")]
    for other in others if name != "adafactor" else ():
        with pytest.raises(ValueError, match="is another quantity"):
            migrate(theirs.init(PARAMS), theirs, other, PARAMS)


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_optaxs_adafactor_loses_nothing_on_the_way_here_and_back(momentum):
    theirs, ours = (lib.adafactor(RATE, 2, momentum=momentum) for lib in (optax, adam_tx))
    state = jax.tree.map(lambda x: x + 1 if x.size > 1 else x, theirs.init(PARAMS))
    said = []
    there = migrate(state, theirs, ours, PARAMS, report=said.append)
    back = migrate(there, ours, theirs, PARAMS, report=said.append)
    assert not any(row in text for text in said for row in ("started fresh", "dropped"))
    jax.tree.map(np.testing.assert_array_equal, back, state)


def test_a_momentum_with_a_schedule_inside_keeps_its_sign():
    lr = adam_tx.scale_by_learning_rate
    down, up = (adam_tx.chain(lr(SCHEDULE, flip_sign=flip), adam_tx.scale_by_heavy_ball(0.9)) for flip in (True, False))
    state = down.update(PARAMS, down.init(PARAMS), PARAMS)[1]
    trace = export_state(state, PARAMS, down)["trace_of_steps/w"]
    moved = export_state(migrate(state, down, up, PARAMS, report=None), PARAMS, up)
    np.testing.assert_array_equal(moved["trace_of_steps/w"], -trace)
    older = export_state(state, PARAMS, down) | {"trace_of_steps.rate": np.asarray(np.nan)}  # of an unknown sign
    back = export_state(adam_tx.import_state(down, PARAMS, older), PARAMS, down)
    np.testing.assert_array_equal(back["trace_of_steps/w"], trace)


def test_a_square_that_optax_keeps_complex_becomes_real_and_goes_back():
    params, old, new = {"c": jnp.array([1.0 + 2.0j, -0.5j])}, optax.adam(1e-2), adam_tx.adam(1e-2)
    _, state = old.update(params, old.init(params), params)
    moved = adam_tx.migrate(state, old, new, params, report=None)
    np.testing.assert_array_equal(moved["scale_by_rms"].nu["c"], state[0].nu["c"].real)
    back = adam_tx.migrate(moved, new, old, params, report=None)
    np.testing.assert_array_equal(back[0].nu["c"], state[0].nu["c"])
