"""`second_moment` gives the debiased average of squares of any optimizer, in the shape of its parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import costly

import adam_tx
from adam_tx import storage

SHAPES = {"dense": {"kernel": (4, 6), "bias": (4,)}}
STEPS = 5
RNG = np.random.default_rng(0)


def tree(make):
    return jax.tree.map(make, SHAPES, is_leaf=lambda node: isinstance(node, tuple))


PARAMS = tree(RNG.standard_normal)
GRADS = [tree(lambda shape, n=n: RNG.standard_normal(shape) * (0.5 + n % 3)) for n in range(STEPS)]


def ran(tx):
    """The parameters and the state after some steps, in the precision that is enabled."""
    params = jax.tree.map(jnp.asarray, PARAMS)
    grads = jax.tree.map(lambda *leaves: jnp.stack(leaves), *GRADS)

    def step(carry, grad):
        updates, state = tx.update(grad, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    return jax.jit(lambda params, grads: jax.lax.scan(step, (params, tx.init(params)), grads)[0])(params, grads)


def often(cases, *every_run):
    """These cases in every run, the others with `-m exhaustive`."""
    return costly(list(cases), every_run)


def averaged(decay, squared=np.square, debias=True):
    """The average of what is squared by its formula, for each leaf; a decay may be a function of the count."""

    def of_leaf(*grads):
        total, weight = 0.0, 0.0
        for count, grad in enumerate(grads):
            d = decay(count) if callable(decay) else decay
            total = d * total + (1 - d) * squared(grad)
            weight = d * weight + (1 - d)
        return total / weight if debias else total

    return jax.tree.map(of_leaf, *GRADS)


def largest(*averages):
    return jax.tree.map(lambda *leaves: np.max(leaves, 0), *averages)


def so_far(decay, debias):
    """The averages after each step."""
    weights = [1 - decay ** (n + 1) for n in range(STEPS)]
    made = [jax.tree.map(np.zeros_like, PARAMS)]
    for grad in GRADS:
        made.append(jax.tree.map(lambda v, g: decay * v + (1 - decay) * g**2, made[-1], grad))
    return [jax.tree.map(lambda v, w=w: v / w, v) if debias else v for v, w in zip(made[1:], weights, strict=True)]


def factored(grad):
    squared = grad**2 + 1e-30
    if grad.ndim < 2:
        return squared
    rows, columns = squared.mean(1, keepdims=True), squared.mean(0, keepdims=True)
    return rows * columns / rows.mean()


def in_blocks(grad):
    """Adam-mini's: one number for each output, of a bias one for all of it."""
    return np.broadcast_to((grad**2).mean(0, keepdims=True), grad.shape)


def rising(count):
    return 0.5 + 0.1 * count


FORMULAS = {
    "adamw": (lambda: adam_tx.adamw(1e-2, b2=0.9, weight_decay=0.1), None, lambda: averaged(0.9)),
    "a schedule": (lambda: adam_tx.adam(1e-2, b2=rising), None, lambda: averaged(rising)),
    "Keras's order": (
        lambda: adam_tx.chain(adam_tx.scale_by_rms(0.9), adam_tx.bias_correction(None, 0.9)),
        None,
        lambda: averaged(0.9),
    ),
    "Optax's": (lambda: optax.adam(1e-2, b2=0.9), None, lambda: averaged(0.9)),
    "Optax's, no memory": (lambda: optax.adam(1e-2, b2=0.0), "nu", lambda: averaged(0.0)),
    "RMSprop": (lambda: adam_tx.rmsprop(1e-2, decay=0.9), "nu", lambda: averaged(0.9, debias=False)),
    "Optax's RMSprop": (lambda: optax.rmsprop(1e-2, decay=0.9), None, lambda: averaged(0.9, debias=False)),
    "centered": (lambda: adam_tx.rmsprop(1e-2, 0.9, centered=True), None, lambda: averaged(0.9, debias=False)),
    "AMSGrad": (
        lambda: adam_tx.chain(adam_tx.scale_by_max_rms(0.9, debias=True)),
        "nu_max",
        lambda: jax.tree.map(lambda v: v / (1 - 0.9**STEPS), largest(*so_far(0.9, debias=False))),
    ),
    "AMSGrad's nu": (lambda: adam_tx.amsgrad(1e-2, b2=0.9), "nu", lambda: averaged(0.9)),
    "Optax's AMSGrad": (
        lambda: optax.amsgrad(1e-2, b2=0.9),
        "nu_max_of_debiased",
        lambda: largest(*so_far(0.9, debias=True)),
    ),
    "Adagrad": (
        lambda: adam_tx.adagrad(1e-2, initial_accumulator_value=0.1),
        "sum_of_squares",
        lambda: jax.tree.map(lambda *g: 0.1 + np.sum(np.square(g), 0), *GRADS),
    ),
}


@pytest.mark.parametrize("name", often(FORMULAS, "Keras's order", "AMSGrad"))
def test_a_second_moment_is_its_formula(name, x64, standard_promotion):
    make, role, formula = FORMULAS[name]
    tx = make()
    params, state = ran(tx)
    found = adam_tx.second_moment(state, params, tx, role)
    jax.tree.map(lambda mine, exact: np.testing.assert_allclose(mine, exact, 1e-12), found, formula())


SPREAD = {
    "rows and columns": (lambda: adam_tx.chain(adam_tx.scale_by_row_column_rms(0.0)), factored),
    "blocks": (lambda: adam_tx.adam_mini(1e-2, b2=0.0), in_blocks),
    "Optax's": (lambda: optax.adafactor(1e-2, min_dim_size_to_factor=2, decay_rate=0.0), factored),
}


@pytest.mark.parametrize("name", often(SPREAD, "rows and columns"))
def test_rows_and_columns_and_blocks_stand_at_every_element(name, x64, standard_promotion):
    make, each = SPREAD[name]
    tx = make()
    params, state = ran(tx)
    found = adam_tx.second_moment(state, params, tx)["dense"]["kernel"]
    np.testing.assert_allclose(found, each(GRADS[-1]["dense"]["kernel"]), 1e-12)


ADAM = adam_tx.adam(1e-2, b2=0.9)
AROUND = {
    "guard": optax.chain(optax.clip_by_global_norm(1e6), adam_tx.guard(ADAM)),
    "monitor": adam_tx.monitor(ADAM),
    "groups": adam_tx.groups({"*/bias": optax.adam(1e-3, b2=0.9)}, ADAM),
    "injected": optax.inject_hyperparams(adam_tx.adam, hyperparam_dtype=jnp.float32)(1e-2, b2=0.9),
    "Optax's, injected": optax.inject_hyperparams(optax.adam, static_args="b2")(1e-2, b2=0.9),
    "partition": optax.partition({"a": ADAM, "b": optax.adam(1e-2, b2=0.9)}, {"dense": {"kernel": "a", "bias": "b"}}),
    "several steps": optax.MultiSteps(ADAM, 1).gradient_transformation(),
    "Optax's guard": optax.apply_if_finite(ADAM, 3),
    "cautious": adam_tx.cautious(ADAM),
    "16 bits": adam_tx.adam(1e-2, b2=0.9, nu_dtype=storage.StochasticBFloat16()),
    "8 bits": adam_tx.adam(1e-2, b2=0.9, nu_dtype=storage.EightBit(block=2, min_size=1)),
}


@pytest.mark.parametrize("name", often(AROUND, "groups", "8 bits"))
def test_a_second_moment_is_found_in_any_wrapper_and_storage_also_when_it_is_traced(name, standard_promotion):
    tx = AROUND[name]
    params, state = ran(tx)
    found = jax.jit(lambda state, params: adam_tx.second_moment(state, params, tx))(state, params)
    exact = averaged(0.9)
    # bfloat16 keeps 8 bits, and what is rounded at random is wrong by up to a unit of the last at each step;
    # 8-bit numbers of squares are a sixteenth apart
    rtol = {"16 bits": STEPS * 2**-7, "8 bits": STEPS / 16}.get(name, 2e-6)
    for mine, right in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        assert mine.dtype == jnp.float32
        np.testing.assert_allclose(mine, right, rtol)


def test_before_the_first_update_it_is_zero_and_of_shapes_it_is_a_shape():
    params = jax.tree.map(jnp.asarray, PARAMS)
    found = adam_tx.second_moment(ADAM.init(params), params, ADAM)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found))
    shapes = jax.eval_shape(ADAM.init, params)
    abstract = jax.eval_shape(lambda state: adam_tx.second_moment(state, params, ADAM), shapes)
    assert jax.tree.map(jnp.shape, abstract) == jax.tree.map(jnp.shape, params)


def test_parameters_without_a_second_moment_are_masked_and_absent_ones_stay():
    params = {"kernel": jnp.ones(2), "bias": jnp.ones(1), "head": jnp.ones(1), "absent": None}
    tx = adam_tx.groups({"bias": "freeze", "head": adam_tx.sgd(0.1)}, ADAM)
    found = adam_tx.second_moment(tx.init(params), params, tx)
    masked = optax.MaskedNode()
    assert {**found, "kernel": found["kernel"].shape} == {
        "kernel": (2,),
        "absent": None,
        "bias": masked,
        "head": masked,
    }


def test_what_scales_gradients_before_they_are_clipped_takes_it_as_it_is():
    """As `jax_privacy.optimizers.scale_then_privatize` does, given it as `extract_preconditioner_from_state_fn`."""
    params, state = ran(ADAM)

    @jax.jit
    def scaled(grads, state):
        sizes = adam_tx.second_moment(state, params, ADAM)
        return jax.tree.map(lambda g, v: g / (jnp.sqrt(v) + 1e-8), grads, sizes)

    found = scaled(jax.tree.map(jnp.asarray, GRADS[0]), state)
    expected = jax.tree.map(lambda g, v: g / np.sqrt(v), GRADS[0], averaged(0.9))
    jax.tree.map(lambda mine, right: np.testing.assert_allclose(mine, right, 2e-5), found, expected)


def test_what_is_not_there_not_clear_or_not_of_elements_is_refused(standard_promotion):
    params = jax.tree.map(jnp.asarray, PARAMS)
    injected = optax.inject_hyperparams(optax.adam)(1e-2)
    for tx, role, message in (
        (adam_tx.sgd(0.1, 0.9), None, "tx keeps no second moment of any parameter, only trace. Give another role"),
        (adam_tx.sgd(0.1), None, "only nothing"),
        (ADAM, "nu_max", "tx keeps no nu_max of any parameter, only mu, nu"),
        (
            adam_tx.amsgrad(0.1),
            None,
            r"leaf \['dense'\]\['bias'\] has \['nu', 'nu_max_of_debiased'\]; say which: role=",
        ),
        (adam_tx.soap(0.1), None, "nu_of_basis of leaf .* cannot be given: it is kept in another basis"),
        (adam_tx.novograd(0.1), None, "nu_of_block_sums of leaf .* cannot be given: it is a sum over each block"),
    ):
        with pytest.raises(ValueError, match=message):
            adam_tx.second_moment(jax.eval_shape(tx.init, params), params, tx, role)
    with pytest.raises(ValueError, match="a decay that is not known here: it is a schedule, or injected. Take"):
        jax.eval_shape(lambda state: adam_tx.second_moment(state, params, injected), injected.init(params))
    with pytest.raises(ValueError, match="came in the place of what"):
        adam_tx.second_moment(jax.eval_shape(optax.adam(0.1).init, params), params, ADAM)
