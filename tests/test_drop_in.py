"""Every optimizer goes where Optax's goes: the same arguments, and the same numbers in every framework's loop."""

import inspect
import pathlib
import subprocess
import sys

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import costly
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import PartitionSpec as P
from optax import contrib

import adam_tx

OPTIMIZERS = {name: getattr(adam_tx, name) for name in adam_tx.optimizers.__all__}
ARGUMENTS = {"cautious": (adam_tx.adam(1e-2),)}
OTHERS = {name: {"others": adam_tx.adamw(1e-2)} for name in ("adamh", "muonh", "normuon")}
OPTIONS = {
    "adamc": {"max_learning_rate": 1e-2},
    "adafactor": {"min_dim_size_to_factor": 2},
    "soap": {"every": 4},
    **OTHERS,
}
STEPS = 15
KERNEL, BIAS = jnp.linspace(-1.0, 1.0, 6).reshape(3, 2), jnp.array([0.5, -0.5])
X = jnp.asarray(np.random.default_rng(0).standard_normal((8, 3)), jnp.float32)


def make(name):
    return OPTIMIZERS[name](*ARGUMENTS.get(name, (1e-2,)), **OPTIONS.get(name, {}))


def shared_with_optax():
    peers = {name: getattr(optax, name, None) or getattr(contrib, name, None) for name in OPTIMIZERS}
    return {name: peer for name, peer in peers.items() if peer is not None}


@pytest.mark.parametrize("name", shared_with_optax())
def test_an_optimizer_takes_all_arguments_of_its_namesake_in_optax_in_order_with_their_defaults(name):
    ours, theirs = (inspect.signature(f).parameters for f in (OPTIMIZERS[name], shared_with_optax()[name]))
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    positional = [p.name for p in theirs.values() if p.kind is kinds[0]]
    assert list(ours)[: len(positional)] == positional
    for parameter in theirs.values():
        default = ours[parameter.name].default
        if inspect.isfunction(parameter.default):  # ADOPT's bound
            np.testing.assert_allclose(default(7), parameter.default(7), rtol=1e-6)
        else:
            assert default == parameter.default


NESTEROV = {"adam", "adamw", "nadam", "nadamw", "adabelief", "radam", "adopt"}
OPTION_PAIRS = [
    *[(name, {"nesterov": on}) for name in sorted(NESTEROV) for on in (True, False)],
    ("rmsprop", {"initial_scale": 0.5}),
    ("rmsprop", {"bias_correction": True}),
    ("rmsprop", {"bias_correction": True, "centered": True, "eps_in_sqrt": False, "initial_scale": 0.1}),
    ("sgd", {"momentum": 0.9, "accumulator_dtype": jnp.float32}),
    ("amsgrad", {"bias_correction_mu": False}),
    ("amsgrad", {"bias_correction_nu": False}),
    ("adopt", {"use_clipping": False}),
    ("adopt", {"clip_value_fn": lambda count: 0.5 * count**0.5}),
    ("adafactor", {"decay_offset": -3, "momentum": 0.9, "dtype_momentum": jnp.float32}),
    ("adafactor", {"factored": False, "min_dim_size_to_factor": 2}),
    ("adafactor", {"clipping_threshold": None, "weight_decay_rate": 1e-3, "multiply_by_parameter_scale": False}),
]


def after_steps(tx, steps=6):
    params = {"kernel": KERNEL, "bias": BIAS}

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), length=steps)[0][0]


def loss(params):
    return jnp.mean((X @ params["kernel"] + params["bias"]) ** 4)


@pytest.mark.exhaustive
def test_every_option_of_optax_does_what_it_does_there(standard_promotion):
    def both(name, options):
        return [after_steps(f(1e-2, **options)) for f in (OPTIMIZERS[name], shared_with_optax()[name])]

    for ours, theirs in jax.jit(lambda: [both(*pair) for pair in OPTION_PAIRS])():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), ours, theirs)


@pytest.fixture(scope="module")
def plain():
    """Kernels and biases after a plain loop with each optimizer."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        results = jax.jit(lambda: {name: after_steps(make(name), STEPS) for name in OPTIMIZERS})()
    return jax.tree.map(np.asarray, results)


def assert_as_plain(results, plain):
    for name, params in results.items():
        for part in ("kernel", "bias"):
            # one program or fifteen: XLA fuses them differently, and SOAP's eigenvectors answer to rounding
            np.testing.assert_allclose(params[part], plain[name][part], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.exhaustive
def test_every_optimizer_trains_in_flax_nnx_as_in_a_plain_loop(plain, standard_promotion):
    models = {name: nnx.Linear(3, 2, rngs=nnx.Rngs(0)) for name in OPTIMIZERS}
    for model in models.values():
        model.kernel[...], model.bias[...] = KERNEL, BIAS
    optimizers = {name: nnx.Optimizer(models[name], make(name), wrt=nnx.Param) for name in OPTIMIZERS}

    @nnx.jit
    def step(models, optimizers):
        for name, model in models.items():
            optimizers[name].update(model, nnx.grad(lambda model: jnp.mean(model(X) ** 4))(model))

    for _ in range(STEPS):
        step(models, optimizers)
    assert_as_plain({n: {"kernel": m.kernel[...], "bias": m.bias[...]} for n, m in models.items()}, plain)


def test_every_optimizer_trains_in_a_flax_train_state_as_in_a_plain_loop(plain, standard_promotion):
    params = {"kernel": KERNEL, "bias": BIAS}
    states = {name: TrainState.create(apply_fn=None, params=params, tx=make(name)) for name in OPTIMIZERS}

    @jax.jit
    def step(states):
        return {name: s.apply_gradients(grads=jax.grad(loss)(s.params)) for name, s in states.items()}

    for _ in range(STEPS):
        states = step(states)
    assert_as_plain({name: state.params for name, state in states.items()}, plain)


class Affine(eqx.Module):
    """An Equinox module laid out as Flax lays out its own, with something in it that is no parameter."""

    kernel: jax.Array
    bias: jax.Array
    name: str = "affine"

    def __call__(self, x):
        return x @ self.kernel + self.bias


def test_every_optimizer_trains_an_equinox_module_as_in_a_plain_loop(plain, standard_promotion):
    linear = Affine(KERNEL, BIAS)
    models, optimizers = dict.fromkeys(OPTIMIZERS, linear), {name: make(name) for name in OPTIMIZERS}
    states = {name: tx.init(eqx.filter(linear, eqx.is_inexact_array)) for name, tx in optimizers.items()}

    @eqx.filter_jit
    def step(models, states, optimizers):
        new = {}
        for name, tx in optimizers.items():
            grads = eqx.filter_grad(lambda m: jnp.mean(m(X) ** 4))(models[name])
            arrays = eqx.filter(models[name], eqx.is_inexact_array)
            updates, state = tx.update(grads, states[name], arrays)
            new[name] = eqx.apply_updates(models[name], updates), state
        return {name: model for name, (model, _) in new.items()}, {name: state for name, (_, state) in new.items()}

    for _ in range(STEPS):
        models, states = step(models, states, optimizers)
    assert_as_plain({name: {"kernel": m.kernel, "bias": m.bias} for name, m in models.items()}, plain)


@pytest.mark.exhaustive
def test_every_optimizer_runs_under_an_explicit_mesh():
    mesh = jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    params = {"w": np.linspace(-1, 1, 48, dtype=np.float32).reshape(8, 6), "b": np.ones(8, np.float32)}
    specs = {"w": P("rows", "columns"), "b": P("rows")}

    def two_steps(params, names):
        results = {}
        for name in names:
            tx, p = make(name), params
            state = tx.init(p)
            for _ in range(2):
                updates, state = tx.update(jax.tree.map(jnp.sin, p), state, p)
                assert jax.tree.map(jax.typeof, updates) == jax.tree.map(jax.typeof, p)
                p = optax.apply_updates(p, updates)
            results[name] = p
        return results

    names = ("adamw", "soap", "adafactor", "lamb")  # of the others tracing shows whether their shardings are known
    with jax.set_mesh(mesh):
        placed = {name: jax.device_put(params[name], specs[name]) for name in params}
        jax.eval_shape(lambda params: two_steps(params, OPTIMIZERS), placed)
        sharded = jax.jit(lambda params: two_steps(params, names))(placed)
    alone = jax.jit(lambda params: two_steps(params, names))(jax.tree.map(jnp.asarray, params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), sharded, alone)


EXPORTED = """
import sys
import adam_tx, jax, jax.export
from flax import serialization  # noqa
rebuilt, _ = (jax.export.deserialize(open(path, "rb").read()) for path in sys.argv[1:])
params = {"kernel": jax.numpy.ones((3, 2))}
state = adam_tx.adamw(1e-2).init(params)
print(float(rebuilt.call(params, state, params)[0]["kernel"][0, 0]))
"""


WRAPPERS = [
    adam_tx.guard(adam_tx.sgd(1.0), deviations=3.0),
    adam_tx.monitor(adam_tx.sgd(1.0)),
    adam_tx.soap(1.0),
    adam_tx.parallel(adam_tx.scale_by_momentum()),
    adam_tx.groups({}, adam_tx.adam(1.0)),
    adam_tx.on_decayed_weights(adam_tx.adam(1.0), 0.1),
    adam_tx.with_gradient(adam_tx.scale_by_rms(), lambda grad, updates: grad),
    adam_tx.with_gradient(adam_tx.scale_by_rms(), adam_tx.scale_by_momentum()),
]


def test_an_exported_step_runs_in_an_interpreter_that_only_imports_adam_tx(tmp_path):
    tx, params = adam_tx.adamw(1e-2), {"kernel": jnp.ones((3, 2))}
    exported = jax.export.export(jax.jit(tx.update))(params, tx.init(params), params)
    steps, states = tmp_path / "step", tmp_path / "states"
    steps.write_bytes(exported.serialize())
    of_wrappers = [
        of.init(params) for of in (member for around in WRAPPERS for member in (around, adam_tx.chain(around)))
    ]
    states.write_bytes(jax.export.export(jax.jit(lambda states: states))(of_wrappers).serialize())
    code = EXPORTED.replace("from flax import serialization  # noqa\n", "")
    command = [sys.executable, "-c", code, str(steps), str(states)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=pathlib.Path(__file__).parents[1])
    assert float(out.stdout) == pytest.approx(-0.010001, rel=1e-5)


def test_every_state_can_be_exported():
    params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    makers = {name: make(name) for name in OPTIMIZERS if name not in ("adafactor", "lion")}
    states = {name: tx.init(params) for name, tx in makers.items()}
    blob = jax.export.export(jax.jit(lambda states: states))(states).serialize()
    assert jax.tree.structure(jax.export.deserialize(blob).call(states)) == jax.tree.structure(states)


INJECTED = [name for name in OPTIMIZERS if name not in ("cautious", "adamc")]
STATIC = {"adafactor": ("min_dim_size_to_factor", "dtype_momentum"), "soap": ("every", "axes"), "adam_mini": ("block",)}
STATIC |= {"muon": ("ns_coeffs", "ns_steps"), "muonh": ("steps",), "normuon": ("steps",)}


@pytest.mark.parametrize("name", costly(INJECTED))
def test_an_injected_optimizer_has_the_state_of_the_plain_one(name):
    """Compared as Optax compares its own: relative to each number, and to nothing else."""
    params = {"kernel": KERNEL, "bias": BIAS}
    injected = optax.inject_hyperparams(OPTIMIZERS[name], static_args=STATIC.get(name, ()))(
        1e-2, **OTHERS.get(name, {})
    )
    options = (
        OTHERS.get(name, {}) if name != "ademamix" else {"b3": float(np.float32(0.9999))}
    )  # 1 - b3 has four digits in float32
    tx = OPTIMIZERS[name](1e-2, **options)
    states = injected.init(params), tx.init(params)
    for _ in range(2):
        (_, one), (_, other) = (t.update(params, s, params) for t, s in zip((injected, tx), states, strict=True))
        states = one, other
    assert jax.tree.structure(states[0].inner_state) == jax.tree.structure(states[1])
    if name == "soap":  # its moments are zero but for rounding, in the eigenbasis of the only gradient
        return
    for ours, theirs in zip(*map(jax.tree.leaves, (states[0].inner_state, states[1])), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_adafactor_is_injected_as_optax_injects_its_own():
    tx = optax.inject_hyperparams(adam_tx.adafactor, static_args=("min_dim_size_to_factor",))(1e-2)
    params = {"kernel": KERNEL}
    state = tx.init(params)
    state.hyperparams["clipping_threshold"] = jnp.float32(0.5)
    updates, _ = tx.update(params, state, params)
    np.testing.assert_array_less(jnp.sqrt(jnp.mean(updates["kernel"] ** 2)), 0.51e-2)


SCHEDULE_FREE = ("schedule_free_adamw", "schedule_free_sgd")
MOMENTS = {
    "mu_dtype": [n for n in OPTIMIZERS if n not in ("sgd", "adagrad", "adafactor", "cautious", *SCHEDULE_FREE)],
    "nu_dtype": [n for n in OPTIMIZERS if n not in ("sgd", "lion", "cautious", "muon", "muonh", SCHEDULE_FREE[1])],
}


@pytest.mark.parametrize("argument", MOMENTS)
def test_every_optimizer_that_has_the_moment_says_what_it_is_stored_in(argument):
    slot = {"mu_dtype": ("mu", "trace"), "nu_dtype": ("nu", "nu_row")}[argument]
    for name in MOMENTS[argument]:
        options = {"momentum": 0.9} if name == "rmsprop" else {"b2": 0.5} if argument == "nu_dtype" else {}
        options = {
            key: value for key, value in options.items() if key in inspect.signature(OPTIMIZERS[name]).parameters
        }
        if name == "adafactor":
            options["decay_rate"] = 0.8
        tx = OPTIMIZERS[name](1e-2, **OPTIONS.get(name, {}), **options, **{argument: jnp.float64})
        with jax.enable_x64(True):
            state = tx.init({"kernel": jnp.ones((3, 2), jnp.float32)})
        found = [
            leaf for s in slot for _, tree in optax.tree.get_all_with_path(state, s) for leaf in jax.tree.leaves(tree)
        ]
        assert found, name
        assert all(leaf.dtype == jnp.float64 for leaf in found), name
