"""The optimizers of `examples/own_links.py` are their recurrences in float64, and keep what links promise."""

import json
import pickle
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import run

import adam_tx

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_links.py"
DTYPES = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64, jnp.complex64)

own = run.load_script(EXAMPLE)

MAKE = {
    "pnorm_adam": partial(own.pnorm_adam, 0.01),
    "adan": partial(own.adan, 0.01),
    "came": partial(own.came, 0.01),
    "muon": lambda: own.muon(0.01, adam_tx.adamw(0.01)),
    "prodigy": own.prodigy,
    "galore": partial(own.galore, 0.01, rank=1, every=2),
    "clipped adam": lambda: own.clip_to_average_norm(adam_tx.adam(0.01)),
}


@pytest.fixture(params=MAKE)
def make(request):
    return MAKE[request.param]


# Oracles: the parameters after every step, from the formulas.


def pnorm_adam(params, grads, lr, b1=0.9, b2=0.999, p=1.5, eps=1e-8):
    m, v, after = np.zeros_like(params), np.zeros_like(params), []
    for t, g in enumerate(grads, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * np.abs(g) ** p
        params = params - lr * m / (1 - b1**t) / ((v / (1 - b2**t)) ** (1 / p) + eps)
        after.append(params)
    return np.array(after)


def adan(p, grads, lr, b1=0.98, b2=0.92, b3=0.99, eps=1e-8):
    m, d, n, after = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p), []
    for t, (g, last) in enumerate(zip(grads, [grads[0], *grads], strict=False), start=1):
        m, d = b1 * m + (1 - b1) * g, b2 * d + (1 - b2) * (g - last)
        n = b3 * n + (1 - b3) * (g + b2 * (g - last)) ** 2
        p = p - lr * (m / (1 - b1**t) + b2 * d / (1 - b2**t)) / (np.sqrt(n / (1 - b3**t)) + eps)
        after.append(p)
    return np.array(after)


def came(p, grads, lr, b1=0.9, b2=0.999, b3=0.9999, weight_decay=0.0):
    factored = p.ndim > 1
    m, *kept, after = np.zeros_like(p), [], [], []

    def root_of_average(kept, square, decay):
        """What the official code multiplies by, which keeps (row, column), or the whole of a vector, in `kept`."""
        seen = [square.mean(-1), square.mean(-2)] if factored else [square]
        kept[:] = [decay * old + (1 - decay) * new for old, new in zip(kept or [0] * len(seen), seen, strict=True)]
        if not factored:
            return 1 / np.sqrt(kept[0])
        row, col = kept
        return 1 / np.sqrt(row / row.mean(-1, keepdims=True))[..., None] / np.sqrt(col)[..., None, :]

    for g in grads:
        u = g * root_of_average(kept[0], g**2 + 1e-30, b2)
        u = u / max(1, np.sqrt(np.mean(u**2)))
        m = b1 * m + (1 - b1) * u
        step = m * root_of_average(kept[1], (u - m) ** 2 + 1e-16, b3) if factored else m
        p = p - lr * (step + weight_decay * p)
        after.append(p)
    return np.array(after)


def newton_schulz(x, steps=5, eps=1e-7):
    x = x / (np.linalg.norm(x) + eps)
    for _ in range(steps):
        x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
    return x


def muon(p, grads, lr, b1=0.95):
    m, after = np.zeros_like(p), []
    for g in grads:
        m = b1 * m + (1 - b1) * g
        p = p - lr * newton_schulz(b1 * m + (1 - b1) * g) * max(1, p.shape[1] / p.shape[0]) ** 0.5
        after.append(p)
    return np.array(after)


def prodigy(p, grads, lr, b1=0.9, b2=0.999, eps=1e-8, d0=1e-6):
    """By the official code, for a constant rate or one for every step."""
    b3, start, d, r = np.sqrt(b2), p, d0, 0.0
    m, v, s, after = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p), []
    for g, rate in zip(grads, np.broadcast_to(lr, len(grads)), strict=True):
        r = b3 * r + (d / d0) * d * rate * np.sum(g * (start - p))
        s = b3 * s + (d / d0) * d * rate * g
        m, v = b1 * m + d * (1 - b1) * g, b2 * v + d * d * (1 - b2) * g * g
        before, d = d, max(d, r / np.sum(np.abs(s)))
        p = p - before * rate * m / (np.sqrt(v) + d * eps)
        after.append(p)
    return np.array(after)


def galore(params, grads, lr, b1=0.9, b2=0.999, rank=2, every=7, eps=1e-8):
    if params.shape[0] >= params.shape[1]:
        return galore_of_rows(params.T, grads.transpose(0, 2, 1), lr, b1, b2, rank, every, eps).transpose(0, 2, 1)
    return galore_of_rows(params, grads, lr, b1, b2, rank, every, eps)


def galore_of_rows(p, grads, lr, b1, b2, rank, every, eps):
    """P on the left. Singular vectors have no sign, so what the mean does has to follow them."""
    m, v, q, after = np.zeros((rank, p.shape[1])), 0.0, np.zeros((len(p), rank)), []
    for t, g in enumerate(grads, start=1):
        if (t - 1) % every == 0:
            found = np.linalg.svd(g)[0][:, :rank]
            q, m = found, found.T @ q @ m
        m, v = b1 * m + (1 - b1) * q.T @ g, b2 * v + (1 - b2) * (q.T @ g) ** 2
        p = p - lr * q @ (m / (np.sqrt(v) + eps)) * np.sqrt(1 - b2**t) / (1 - b1**t)
        after.append(p)
    return np.array(after)


VECTOR, WIDE, TALL, CUBE, SQUARE = (
    oracles.problem(steps=60),
    *(oracles.matrix_problem(steps=60, shape=shape) for shape in ((4, 6), (6, 4), (3, 4, 5), (4, 4))),
)
AGAINST_ORACLES = {
    "pnorm_adam": (own.pnorm_adam(0.01), partial(pnorm_adam, lr=0.01), VECTOR),
    "pnorm_adam, p = 3": (own.pnorm_adam(0.01, 0.8, 0.9, 3), partial(pnorm_adam, lr=0.01, b1=0.8, b2=0.9, p=3), WIDE),
    "adan": (own.adan(0.01), partial(adan, lr=0.01), VECTOR),
    "adan, other decays": (own.adan(0.01, 0.9, 0.3, 0.95), partial(adan, lr=0.01, b1=0.9, b2=0.3, b3=0.95), TALL),
    "came, vector": (own.came(0.01, weight_decay=0.1), partial(came, lr=0.01, weight_decay=0.1), VECTOR),
    "came, wide": (own.came(0.01, weight_decay=0.1), partial(came, lr=0.01, weight_decay=0.1), WIDE),
    "came, other decays": (own.came(0.01, 0.8, 0.9, 0.95), partial(came, lr=0.01, b1=0.8, b2=0.9, b3=0.95), TALL),
    "came, three axes": (own.came(0.01), partial(came, lr=0.01), CUBE),
    "muon, wide": (own.muon(0.01, optax.identity()), partial(muon, lr=0.01), WIDE),
    "muon, tall": (own.muon(0.01, optax.identity(), 0.8), partial(muon, lr=0.01, b1=0.8), TALL),
    "prodigy": (own.prodigy(), partial(prodigy, lr=1.0), VECTOR),
    "prodigy, others": (
        own.prodigy(0.5, 0.8, 0.9, 1e-2, 1e-3),
        partial(prodigy, lr=0.5, b1=0.8, b2=0.9, eps=1e-2, d0=1e-3),
        WIDE,
    ),
    "galore, wide": (own.galore(0.01, rank=2, every=7), partial(galore, lr=0.01, rank=2, every=7), WIDE),
    "galore, tall": (own.galore(0.01, rank=3, every=1), partial(galore, lr=0.01, rank=3, every=1), TALL),
    "galore, square": (own.galore(0.01, rank=1, every=9), partial(galore, lr=0.01, rank=1, every=9), SQUARE),
}


@pytest.mark.parametrize("name", AGAINST_ORACLES)
def test_sixty_float64_steps_agree_with_the_formulas_to_1e_10(name, x64):
    tx, oracle, (params, grads) = AGAINST_ORACLES[name]
    theirs = oracle(params, grads)
    assert run.relative_error(run.trajectory(tx, params, grads), theirs, params) <= 1e-10


OPTAX_PRODIGY = {"betas": (0.8, 0.9), "eps": 1e-2, "estim_lr0": 1e-3}


def prodigys_debiasing(count):
    """What Optax multiplies the rate by at each step, for those betas."""
    t = count.astype(float) + 1
    return jnp.sqrt(1 - 0.9**t) / (1 - 0.8**t)


AGAINST_OPTAX = {
    # Optax multiplies the change by 1 - b2, which is b2 at one half only, and has an eps_root.
    "adan": (own.adan(0.01, 0.9, 0.5, 0.95), lambda: optax.adan(0.01, 0.9, 0.5, 0.95, eps_root=0.0), VECTOR),
    # Optax's momentum looks ahead debiased, and its eps is 1e-8; here on a matrix, and on a vector for its AdamW.
    "muon": (
        own.muon(0.01, adam_tx.adamw(0.01), debias=True, eps=1e-8),
        lambda: optax.contrib.muon(0.01),
        WIDE,
    ),
    "muon, vector": (
        own.muon(0.01, adam_tx.adamw(0.01, weight_decay=0.0, nesterov=True)),
        lambda: optax.contrib.muon(0.01),
        VECTOR,
    ),
    "prodigy": (
        own.prodigy(prodigys_debiasing, *(0.8, 0.9, 1e-2, 1e-3)),
        lambda: optax.contrib.prodigy(**OPTAX_PRODIGY),
        WIDE,
    ),
}


@pytest.mark.parametrize("name", AGAINST_OPTAX)
def test_sixty_float64_steps_agree_with_optax_to_1e_10(name, x64, standard_promotion):
    ours, theirs, (params, grads) = AGAINST_OPTAX[name]
    theirs = run.trajectory(theirs(), params, grads)
    assert run.relative_error(run.trajectory(ours, params, grads), theirs, params) <= 1e-10


@pytest.mark.parametrize("problem", [VECTOR, WIDE], ids=["vector", "matrix"])
def test_adam_with_the_two_norm_is_adam(problem, x64):
    ours, adam = (run.trajectory(tx, *problem) for tx in (own.pnorm_adam(0.01, p=2.0), adam_tx.adam(0.01)))
    assert run.relative_error(ours, adam, problem[0]) <= 1e-12


def test_muon_gives_its_others_what_is_no_matrix_and_nothing_else():
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3), "cube": jnp.ones((2, 2, 2))}
    txs = own.muon(0.5, adam_tx.adamw(0.01)), adam_tx.adamw(0.01)
    updates, alone = (jax.jit(lambda grads, tx=tx: tx.update(grads, tx.init(params), params)[0])(params) for tx in txs)
    assert not np.allclose(updates["kernel"], alone["kernel"])
    for name in ("bias", "cube"):
        np.testing.assert_array_equal(updates[name], alone[name])


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_five_iterations_bring_singular_values_near_one(shape):
    tx, grad = own.orthogonalize(), jnp.float32(oracles.matrix_problem(steps=1, shape=shape)[1][0])
    updates, _ = jax.jit(tx.update)(grad, tx.init(grad))
    values = np.linalg.svd(updates / max(1, shape[1] / shape[0]) ** 0.5, compute_uv=False)
    assert ((values > 0.3) & (values < 1.3)).all()  # the iteration is made to be fast, not to converge


def test_prodigys_distance_grows_towards_that_of_the_solution_and_waits_for_a_gradient():
    tx, params = own.prodigy(), {"a": jnp.full(3, 4.0), "b": jnp.zeros((2, 2))}
    state = tx.init(params)
    _, waiting = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    assert waiting.growth == 1.0

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(params, state, params)  # the gradient of half the square, whose solution is zero
        return (jax.tree.map(jnp.add, params, updates), state), None

    (params, state), _ = jax.jit(lambda *carry: jax.lax.scan(step, carry, length=300))(params, state)
    assert 1.0 < 1e-6 * state.growth <= 4.0  # a lower bound of the largest distance along an axis, which is 4
    assert np.abs(params["a"]).max() < 0.5


def test_the_moments_of_galore_are_as_small_as_its_rank():
    tx = own.galore(0.01, rank=2)
    params = {"wide": jnp.ones((4, 6)), "tall": jnp.ones((6, 4)), "small": jnp.ones((2, 9)), "bias": jnp.ones(6)}
    mu = tx.init(params)["in_basis"].inner["scale_by_momentum"].mu
    assert jax.tree.map(jnp.shape, mu) == {"wide": (2, 6), "tall": (6, 2), "small": (2, 9), "bias": (6,)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: own.pnorm_adam(0.01, p=0), r"pnorm_adam: p must be in \(0, inf\), got 0"),
        (lambda: own.scale_by_pnorm(p=-1.0), r"scale_by_pnorm: p must be in \(0, inf\), got -1"),
        (lambda: own.adan(0.01, b1=1), r"adan: b1 must be in \[0, 1\), got 1"),
        (lambda: own.came(0.01, weight_decay=-1.0), r"came: weight_decay must be in \[0, inf\), got -1"),
        (lambda: own.muon(-1.0, adam_tx.adamw(0.01)), r"muon: learning_rate must be in \[0, inf\), got -1"),
        (lambda: own.prodigy(d0=0.0), r"prodigy: d0 must be in \(0, inf\), got 0"),
        (lambda: own.galore(0.01, b2=jnp.float32(1.0)), r"galore: b2 must be in \[0, 1\), got 1"),
        (
            lambda: own.clip_to_average_norm(adam_tx.sgd(1.0), 0.0),
            r"clip_to_average_norm: factor must be in \(0, inf\)",
        ),
    ],
)
def test_a_number_out_of_range_is_refused_by_its_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


@pytest.mark.exhaustive
def test_hypergradients_at_a_zero_gradient_are_finite(make):
    """First and second derivative of two updates of leaves of two dtypes with respect to their gradient."""
    tx = make()

    def moved(grad):
        params = {"kernel": jnp.full((2, 3), 0.5), "bias": jnp.full(2, 0.5, jnp.bfloat16)}
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(jax.tree.map(lambda p: jnp.full_like(p, grad), params), state, params)
            params = jax.tree.map(jnp.add, params, updates)
        return jnp.sum(params["kernel"]) + jnp.sum(params["bias"].astype(jnp.float32))

    first, second = jax.jit(jax.value_and_grad(jax.grad(moved)))(0.0)
    assert np.isfinite(first)
    assert np.isfinite(second)


def types(tree):
    """All that a compiled function is looked up by: structure, shapes, dtypes and whether these are weak."""
    described = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)
    return jax.tree.structure(tree), jax.tree.leaves(described)


@pytest.mark.parametrize("dtype", DTYPES)
def test_update_changes_no_type_of_the_state_and_moments_are_float32_or_wider(make, dtype, x64, standard_promotion):
    tx, params = make(), {"kernel": jnp.ones((2, 3), dtype), "bias": jnp.ones(2, dtype), "none": None}
    state = jax.eval_shape(tx.init, params)
    updates, new_state = jax.eval_shape(tx.update, params, state, params)
    assert types(state) == types(new_state)
    assert types(updates) == types(params)
    assert all(leaf.dtype.itemsize >= 4 for leaf in jax.tree.leaves(state))


def test_leaves_of_odd_shapes_and_empty_trees_are_updated_too(make):
    tx, odd = make(), {str(shape): jnp.ones(shape) for shape in ((), (0,), (0, 3), (3, 0), (1, 1), (2, 3))}
    for params in (odd, {}):
        updates, state = jax.jit(lambda params: tx.update(params, tx.init(params), params))(params)
        assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((updates, state)))


HYPERPARAMETERS = {
    "pnorm_adam": (own.pnorm_adam, {"learning_rate": 0.01, "b1": 0.9, "b2": 0.99, "p": 1.5}, {}),
    "adan": (own.adan, {"learning_rate": 0.01, "b1": 0.9, "b2": 0.8, "b3": 0.99}, {}),
    "came": (own.came, {"learning_rate": 0.01, "b1": 0.9, "b2": 0.99, "b3": 0.99, "weight_decay": 0.1}, {}),
    "muon": (own.muon, {"learning_rate": 0.01, "b1": 0.9}, {"others": adam_tx.adamw(0.01)}),
    "prodigy": (own.prodigy, {"learning_rate": 1.0, "b1": 0.9, "b2": 0.99, "eps": 1e-8, "d0": 1e-3}, {}),
    "galore": (own.galore, {"learning_rate": 0.01, "b1": 0.9, "b2": 0.99}, {"rank": 1, "every": 2}),
    "clipped adam": (own.clip_to_average_norm, {"factor": 1.1, "decay": 0.5}, {"inner": adam_tx.adam(0.01)}),
}


def constant(value):
    return lambda count: jnp.full_like(count, value, dtype=jnp.float32)


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_every_hyperparameter_may_be_a_schedule_or_an_injected_array(name):
    make, numbers, static = HYPERPARAMETERS[name]
    params, grads = (jnp.float32(x) for x in oracles.matrix_problem(steps=5, shape=(2, 3)))
    expected = run.trajectory(make(**numbers, **static), params, grads)
    schedules = {name: constant(value) for name, value in numbers.items()}
    np.testing.assert_allclose(run.trajectory(make(**schedules, **static), params, grads), expected, rtol=2e-5)
    injected = optax.inject_hyperparams(make, static_args=tuple(static))(**numbers, **static)
    assert set(injected.init(params).hyperparams) >= set(numbers)
    np.testing.assert_allclose(run.trajectory(injected, params, grads), expected, rtol=2e-5)


@pytest.mark.parametrize(("make", "values"), [(partial(own.pnorm_adam, 0.01, 0.9, 0.999), (1.0, 2.0))])
def test_a_population_of_one_hyperparameter_trains_in_one_call(make, values):
    grads = jnp.float32(WIDE[1][:5])

    def train(value):
        tx = make(value)
        return jax.lax.scan(lambda state, grad: tx.update(grad, state)[::-1], tx.init(grads[0]), grads)[1]

    population = jax.jit(jax.vmap(train))(jnp.array(values))
    for member, value in zip(population, values, strict=True):
        np.testing.assert_allclose(member, train(value), rtol=1e-5)


@pytest.mark.parametrize("name", own.OWN)
def test_each_is_written_in_at_most_twenty_lines(name):
    assert own.code_lines(own.OWN[name].written) <= 20


def test_lines_are_counted_without_docstrings_and_empty_lines():
    assert own.code_lines([own.pnorm_adam]) == 8
    assert own.code_lines([own.scale_by_pnorm, own.pnorm_adam]) == 14


@pytest.mark.parametrize("name", own.OWN)
def test_a_config_and_a_pickle_give_the_same_optimizer(name):
    tx = own.OWN[name].tx
    remade = adam_tx.from_config(json.loads(json.dumps(adam_tx.get_config(tx))), allow=["own_links"])
    for again in (remade, pickle.loads(pickle.dumps(tx))):
        assert repr(again) == repr(tx)
        assert adam_tx.get_config(again) == adam_tx.get_config(tx)


def test_a_summary_names_the_links_their_hyperparameters_and_what_they_keep():
    summary = str(adam_tx.summary(own.pnorm_adam(0.01, p=3.0), {"kernel": jnp.ones((2, 3))}))
    for part in ("scale_by_pnorm", "p=3", "|g|^p", "nu"):
        assert part in summary


def test_the_example_trains_and_prints_what_came_of_it(capsys, monkeypatch):
    chosen = ("adam", "pnorm_adam")  # to compile all would take long
    monkeypatch.setattr(own, "OWN", {name: own.OWN[name] for name in chosen})
    own.main(["--steps", "20"])
    printed = capsys.readouterr().out
    rows = {words[0]: words[-4:] for line in printed.splitlines() if (words := line.split()) and words[0] in own.OWN}
    params, _ = own.problem(0)
    for name in own.OWN:
        lines, before, after, size = rows[name]
        assert lines in ("adam_tx", str(own.code_lines(own.OWN[name].written)))
        assert float(after) < float(before)
        assert float(size) == pytest.approx(own.bytes_per_parameter(own.OWN[name].tx, params), abs=0.05)
    assert "pnorm_adam(0.03)" in printed
    assert "own_links:pnorm_adam" in printed


def test_the_state_of_each_is_exported_and_imported_to_the_last_bit_without_a_line_more(make):
    params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
    tx = make()
    state = jax.tree.map(lambda x: x + jnp.asarray(0.5 if x.dtype.kind == "f" else 1, x.dtype), tx.init(params))
    again = adam_tx.import_state(tx, params, adam_tx.export_state(state, params, tx))
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, again, state)
