"""Each member of the family is the optimizer of the same name in Optax, over a hundred float64 steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import run
import soap
from optax import contrib

import adam_tx

pytestmark = pytest.mark.usefixtures("standard_promotion")

BIG = {"eps": 1e-2}  # so that its place shows
PAIRS = {
    "sgd": (adam_tx.sgd, optax.sgd, {}),
    "sgd momentum": (adam_tx.sgd, optax.sgd, {"momentum": 0.9}),
    "sgd nesterov": (adam_tx.sgd, optax.sgd, {"momentum": 0.9, "nesterov": True}),
    "rmsprop": (adam_tx.rmsprop, optax.rmsprop, BIG),
    "rmsprop outside": (adam_tx.rmsprop, optax.rmsprop, BIG | {"eps_in_sqrt": False}),
    "rmsprop centered": (adam_tx.rmsprop, optax.rmsprop, BIG | {"centered": True}),
    "rmsprop momentum": (adam_tx.rmsprop, optax.rmsprop, BIG | {"momentum": 0.9, "nesterov": True}),
    "adagrad": (adam_tx.adagrad, optax.adagrad, BIG),
    "nadam": (adam_tx.nadam, optax.nadam, BIG),
    "nadamw": (adam_tx.nadamw, optax.nadamw, BIG | {"weight_decay": 0.1}),
    "amsgrad": (adam_tx.amsgrad, optax.amsgrad, BIG),
    "amsgrad eps_root": (adam_tx.amsgrad, optax.amsgrad, {"eps_root": 1e-2, "b2": 0.9}),
    "adamax": (adam_tx.adamax, optax.adamax, BIG),
    "adamaxw": (adam_tx.adamaxw, optax.adamaxw, BIG | {"weight_decay": 0.1}),
    "adabelief": (adam_tx.adabelief, optax.adabelief, BIG | {"eps_root": 1e-3}),
    "radam": (adam_tx.radam, optax.radam, BIG),
    "radam threshold": (adam_tx.radam, optax.radam, BIG | {"threshold": 4.0, "b2": 0.99}),
    "novograd": (adam_tx.novograd, optax.novograd, BIG | {"eps_root": 1e-3, "weight_decay": 0.1}),
    "lamb": (adam_tx.lamb, optax.lamb, BIG | {"weight_decay": 0.1}),
    "lion": (adam_tx.lion, optax.lion, {"weight_decay": 0.1}),
    "adopt": (adam_tx.adopt, contrib.adopt, BIG),
    "ademamix": (adam_tx.ademamix, contrib.ademamix, BIG | {"weight_decay": 0.1}),
    "ademamix schedules": (
        adam_tx.ademamix,
        contrib.ademamix,
        {"alpha": optax.linear_schedule(0.0, 5.0, 50), "b3": optax.linear_schedule(0.9, 0.999, 50)},
    ),
}


@pytest.fixture(scope="module")
def ends():
    """Where ours and Optax's end, in one program."""
    makers = {}
    for name, (ours, theirs, options) in PAIRS.items():
        makers |= {f"{name}, ours": lambda f=ours, o=options: f(0.01, **o)}
        makers |= {f"{name}, theirs": lambda f=theirs, o=options: f(0.01, **o)}
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        return run.ends(makers, *oracles.problem())


@pytest.mark.parametrize("name", PAIRS)
def test_a_hundred_float64_steps_agree_with_optax_to_1e_10(name, ends):
    params, _ = oracles.problem()
    assert run.relative_error(ends[f"{name}, ours"], ends[f"{name}, theirs"], params) <= 1e-10


def test_yogi_agrees_with_optax_when_its_momentum_starts_where_optax_starts_it(x64):
    params, grads = oracles.problem()
    theirs = run.trajectory(optax.yogi(0.01, eps=1e-2), params, grads)
    ours = adam_tx.yogi(0.01, eps=1e-2)

    def init(params):
        state = ours.init(params)
        momentum = state["scale_by_momentum"]
        return state | {"scale_by_momentum": momentum._replace(mu=jnp.full_like(momentum.mu, 1e-6))}

    ours = run.trajectory(optax.GradientTransformation(init, ours.update), params, grads)
    assert run.relative_error(ours, theirs, params) <= 1e-10


def test_adafactor_agrees_with_optax_given_the_same_float64_decay(x64):
    """Optax takes 1 - t^-0.8 in float32 whatever the parameters, so the decay is put in from outside."""
    params, grads = oracles.matrix_problem(shape=(6, 3, 5))
    theirs = optax.chain(
        optax.scale_by_factored_rms(
            min_dim_size_to_factor=4, decay_rate_fn=lambda step, exponent: 1 - (step + 1.0) ** -exponent
        ),
        optax.clip_by_block_rms(0.5),
        optax.scale_by_learning_rate(0.1, flip_sign=False),
        optax.scale_by_param_block_rms(),
        optax.ema(0.9, debias=False),
        optax.add_decayed_weights(0.01),
        optax.scale(-1.0),
    )
    ours = adam_tx.adafactor(0.1, 4, clipping_threshold=0.5, momentum=0.9, weight_decay_rate=0.01)
    assert ours.init(params)["scale_by_row_column_rms"].nu_row.shape == (6, 3, 1)
    theirs = run.trajectory(theirs, params, grads)
    assert run.relative_error(run.trajectory(ours, params, grads), theirs, params) <= 1e-10


@pytest.mark.parametrize("min_dim", [4, 128], ids=["factored", "whole"])
def test_adafactor_is_optax_adafactor_to_float32(min_dim, x64):
    params, grads = oracles.matrix_problem()
    theirs = run.trajectory(optax.adafactor(0.1, min_dim), params, grads)
    assert run.relative_error(run.trajectory(adam_tx.adafactor(0.1, min_dim), params, grads), theirs, params) <= 1e-6


def test_dozats_own_nadam_is_a_schedule_and_a_factor(x64):
    """mu, too, decays by the schedule, and the debiased nu is multiplied by b2."""
    b1, b2, lr, eps = 0.9, 0.99, 0.01, 1e-2
    ours = adam_tx.nadam(lr / b2**0.5, adam_tx.schedules.nadam_decay(b1), b2, eps / b2**0.5)
    params, grads = oracles.problem()
    decays = b1 * (1 - 0.5 * 0.96 ** (np.arange(1, len(grads) + 2) / 250))
    m, v, p = np.zeros_like(params), np.zeros_like(params), params
    for t, g in enumerate(grads, start=1):
        now, following = decays[t - 1 : t + 1]
        m, v = now * m + (1 - now) * g, b2 * v + (1 - b2) * g * g
        ahead = following * m / (1 - np.prod(decays[: t + 1])) + (1 - now) * g / (1 - np.prod(decays[:t]))
        p = p - lr * ahead / (np.sqrt(b2 * v / (1 - b2**t)) + eps)
    assert run.relative_error(run.trajectory(ours, params, grads)[-1], p, params) <= 1e-12


def test_adamc_decays_what_is_normalized_by_the_square_of_the_rate_and_the_rest_by_the_rate(x64):
    params, grads = oracles.problem(steps=50)
    normalized = params > 0  # one leaf an element

    def rate(count):  # Optax's linear schedule is float32
        return 0.02 * (1 - count.astype(float) / 50)

    tx = adam_tx.adamc(rate, eps=1e-2, weight_decay=0.5, max_learning_rate=0.02, normalized=list(normalized))
    p, state, exact = list(params), tx.init(list(params)), params
    m, v, update = np.zeros_like(params), np.zeros_like(params), jax.jit(tx.update)
    for t, g in enumerate(grads, start=1):
        updates, state = update(list(g), state, p)
        p = optax.apply_updates(p, updates)
        m, v, eta = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g, 0.02 * (1 - (t - 1) / 50)
        u = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-2)
        exact = exact - eta * u - np.where(normalized, eta**2 / 0.02, eta) * 0.5 * exact
    assert run.relative_error(np.array(p), exact, params) <= 1e-12


def test_laprop_is_its_formula(x64):
    params, grads = oracles.problem()
    ours = run.trajectory(adam_tx.laprop(0.01, 0.9, 0.99, eps=1e-2), params, grads)
    mu = nu = np.zeros_like(params)
    p = params
    for t, g in enumerate(grads, start=1):
        nu = 0.99 * nu + 0.01 * g * g
        mu = 0.9 * mu + 0.1 * g / (np.sqrt(nu / (1 - 0.99**t)) + 1e-2)
        p = p - 0.01 * mu / (1 - 0.9**t)
    assert run.relative_error(ours[-1], p, params) <= 1e-12


def test_adam_atan2_is_its_formula(x64):
    params, grads = oracles.problem()
    ours = run.trajectory(adam_tx.adam_atan2(0.01, weight_decay=0.1), params, grads)
    m, v, p = np.zeros_like(params), np.zeros_like(params), params
    for t, g in enumerate(grads, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        u = 1.27 * np.arctan2(m / (1 - 0.9**t), np.sqrt(v / (1 - 0.99**t)))
        p = p - 0.01 * (u + 0.1 * p)
    assert run.relative_error(ours[-1], p, params) <= 1e-12


def test_dampened_sgd_takes_the_first_gradient_whole(x64):
    """As PyTorch: the buffer starts from the gradient, dampened only from the second on."""
    params, grads = oracles.problem(steps=20)
    ours = run.trajectory(adam_tx.sgd(0.01, 0.9, dampening=0.5), params, grads)
    buffer, p = grads[0], params - 0.01 * grads[0]
    for g in grads[1:]:
        buffer = 0.9 * buffer + 0.5 * g
        p = p - 0.01 * buffer
    assert run.relative_error(ours[-1], p, params) <= 1e-12


def without_correction(lr):
    """BERT's Adam: the first two links, and the step."""
    momentum, _, _, step = adam_tx.adam(lr).links.values()
    return adam_tx.chain(momentum, adam_tx.scale_by_rms(0.999, 0.0), step)


def keras_adam(lr):
    """Epsilon added to the raw root."""
    momentum, _, _, step = adam_tx.adam(lr).links.values()
    return adam_tx.chain(momentum, adam_tx.scale_by_rms(0.999, 0.1), adam_tx.bias_correction(0.9, 0.999), step)


FIRST_STEPS = {  # the update over the learning rate if the first gradient is 3
    "adam": (lambda lr: adam_tx.adam(lr, eps=1.0), -3 / 4),
    "adam of Keras": (keras_adam, -3 / (3 + 0.1 / 0.001**0.5)),
    "adam of BERT": (without_correction, -0.1 / 0.001**0.5),
    "nadam": (adam_tx.nadam, -1.4736842),
    "nadam of PyTorch": (lambda lr: adam_tx.nadam(lr, momentum_decay=0.004), -1.05645),
    "adamax": (adam_tx.adamax, -1.0),
    "radam": (adam_tx.radam, -3.0),
    "radam, official": (lambda lr: adam_tx.radam(lr, degenerate=False), 0.0),
    "rmsprop": (lambda lr: adam_tx.rmsprop(lr, 0.99, eps=1.0, eps_in_sqrt=False), -3 / 1.3),
    "rmsprop, inside": (lambda lr: adam_tx.rmsprop(lr, 0.99, eps=1.0), -3 / 1.09**0.5),
    "adagrad": (lambda lr: adam_tx.adagrad(lr, 5.0, eps=2.0), -3 / 4),
    "novograd": (lambda lr: adam_tx.novograd(lr, eps=0.0), -1.0),
    "lion": (lambda lr: adam_tx.lion(lr, weight_decay=0.0), -1.0),
    "adopt": (adam_tx.adopt, 0.0),
    "soap": (adam_tx.soap, 0.0),
    "ademamix": (adam_tx.ademamix, -1.0005),
    "adam_atan2": (adam_tx.adam_atan2, -1.27 * np.pi / 4),
    "adabelief": (lambda lr: adam_tx.adabelief(lr, eps=0.0, eps_root=0.001), -3 / (0.81 * 9 + 1) ** 0.5),
    "laprop": (adam_tx.laprop, -1.0),
}


@pytest.fixture(scope="module")
def first_steps():
    def first(make):
        tx, params = make(1.0), jnp.float32(0.0)
        return tx.update(jnp.float32(3.0), tx.init(params), params)[0]

    return jax.jit(lambda: {name: first(make) for name, (make, _) in FIRST_STEPS.items()})()


@pytest.mark.parametrize("name", FIRST_STEPS)
def test_the_first_step_is_what_the_recurrence_says(name, first_steps):
    np.testing.assert_allclose(first_steps[name], FIRST_STEPS[name][1], rtol=3e-6)


SWAPS = {
    "amsgrad": (1, adam_tx.scale_by_max_rms(debias=True, max_of="debiased"), adam_tx.amsgrad),
    "adabelief": (1, adam_tx.scale_by_belief_rms(debias=True), adam_tx.adabelief),
    "yogi": (1, adam_tx.scale_by_yogi_rms(debias=True), adam_tx.yogi),
    "radam": (1, adam_tx.scale_by_rectified_rms(debias=True), adam_tx.radam),
    "adamax": (1, adam_tx.scale_by_max_norm(), adam_tx.adamax),
}
ADAM = list(adam_tx.adam(0.01).links.values())
REORDERED = {
    "laprop": (adam_tx.laprop(0.01, eps=1e-8), [ADAM[1], ADAM[0], *ADAM[2:]]),
    "nadam": (adam_tx.nadam(0.01), [adam_tx.scale_by_momentum(nesterov=True, debias=True), ADAM[1], ADAM[3]]),
    "adam_mini": (
        adam_tx.adam_mini(0.01),
        [ADAM[0], adam_tx.scale_by_block_rms(block=adam_tx.output_unit, debias=True), *ADAM[2:]],
    ),
    "atan2": (
        adam_tx.adam_atan2(0.01),
        [adam_tx.scale_by_momentum(debias=True), adam_tx.scale_by_atan2(debias=True), ADAM[3]],
    ),
}


@pytest.mark.parametrize("name", SWAPS)
def test_swapping_one_link_of_adam_gives_the_named_optimizer_bit_for_bit(name, usual_compiler):
    position, link, named = SWAPS[name]
    links = list(adam_tx.adam(0.01).links.values())
    links[position] = link
    params, grads = oracles.problem()
    swapped = run.trajectory(adam_tx.chain(*links), params, grads, jnp.float32)
    np.testing.assert_array_equal(swapped, run.trajectory(named(0.01), params, grads, jnp.float32))


@pytest.mark.parametrize("name", REORDERED)
def test_reordering_or_replacing_links_of_adam_gives_the_named_optimizer_bit_for_bit(name, usual_compiler):
    named, links = REORDERED[name]
    params, grads = oracles.matrix_problem()
    swapped = run.trajectory(adam_tx.chain(*links), params, grads, jnp.float32)
    np.testing.assert_array_equal(swapped, run.trajectory(named, params, grads, jnp.float32))


def steps_of(tx, state, grads):
    """The updates of six gradients, operation by operation: compiled together they would be rounded together."""
    params, emitted = jnp.zeros(grads.shape[1:]), []
    for grad in jnp.asarray(grads[:6], jnp.float32):
        updates, state = tx.update(grad, state, params)
        emitted.append(updates)
    return np.stack(emitted)


def adam_of_soap():
    momentum, rms = adam_tx.scale_by_momentum(0.95), adam_tx.scale_by_rms(0.95)
    return adam_tx.chain(momentum, rms, adam_tx.bias_correction(0.95, 0.95), ADAM[3])


@pytest.mark.exhaustive
def test_soap_in_the_identity_basis_is_adam_bit_for_bit():
    """Started as after its first update, which only looks for a basis, and never to look again."""
    params, grads = oracles.matrix_problem()
    turned, adam = adam_tx.soap(0.01, weight_decay=0.0, every=10**6), adam_of_soap()
    state = turned.init(jnp.float32(params))
    state["count"] = jnp.full((), 2, jnp.int32)
    ours = steps_of(turned, state, grads)
    np.testing.assert_array_equal(ours, steps_of(adam, adam.init(jnp.float32(params)), grads))


def test_soap_without_axes_to_turn_is_adam_one_update_late_bit_for_bit():
    params, grads = oracles.matrix_problem()
    unturned, adam = adam_tx.soap(0.01, weight_decay=0.0, axes=lambda *_: ()), adam_of_soap()
    ours = steps_of(unturned, unturned.init(jnp.float32(params)), grads)
    late = steps_of(adam, adam.init(jnp.float32(params)), grads[1:])
    np.testing.assert_array_equal(ours[1:], late[:-1])


@pytest.mark.exhaustive
def test_soap_beats_adam_on_an_ill_conditioned_problem_for_every_seed():
    """Each with its best learning rate; `benchmarks/soap.py` has more seeds, steps, and noise."""
    losses = soap.race(seeds=3, steps=150)
    assert (losses["soap"] < 0.7 * losses["adam"]).all()


def test_a_leaf_without_a_gradient_keeps_its_basis():
    tx, params = adam_tx.soap(0.01), {"a": jnp.eye(2), "b": jnp.eye(3)}
    state = tx.init(params)
    for grads in (params, {"a": None, "b": jnp.ones((3, 3))}):
        before = state["in_eigenbasis"].memory
        updates, state = tx.update(grads, state, params)
    assert updates["a"] is None
    jax.tree.map(np.testing.assert_array_equal, before[0]["a"], state["in_eigenbasis"].memory[0]["a"])
    assert not np.array_equal(before[0]["b"], state["in_eigenbasis"].memory[0]["b"])
