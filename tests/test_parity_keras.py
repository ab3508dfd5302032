"""`interop.keras.from_config(optimizer.get_config())` trains the notebook's MLP as Keras itself does."""

import contextlib
import itertools
from unittest import mock

import catalogue
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import oracles
import pytest
import run
from keras.optimizers import Adam, AdamW, schedules

from adam_tx import interop

pytestmark = pytest.mark.usefixtures("standard_promotion")

STEPS = 100

CONFIGS = {
    "default": lambda: Adam(),
    "adamw": lambda: AdamW(),
    "amsgrad": lambda: Adam(amsgrad=True),
    "clipnorm": lambda: Adam(clipnorm=0.1),
    "global_clipnorm": lambda: Adam(global_clipnorm=0.1),
    "clipvalue": lambda: Adam(clipvalue=0.02),
    "adam with decay": lambda: Adam(weight_decay=0.1),
    "adamw with decay": lambda: AdamW(weight_decay=0.1, learning_rate=0.01),
    "accumulation": lambda: Adam(gradient_accumulation_steps=3),
    "accumulation and clip": lambda: Adam(gradient_accumulation_steps=4, global_clipnorm=0.1),
    "ema": lambda: Adam(use_ema=True, ema_momentum=0.9),
    "ema overwrites": lambda: Adam(use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=7),
    "ema overwrites, accumulation": lambda: Adam(
        use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=3, gradient_accumulation_steps=2
    ),
    "loss scale": lambda: Adam(loss_scale_factor=128.0),
    "betas and epsilon": lambda: Adam(learning_rate=0.003, beta_1=0.8, beta_2=0.95, epsilon=1e-2),
    "amsgrad, epsilon": lambda: AdamW(amsgrad=True, epsilon=1e-2, beta_2=0.9),
    "exponential": lambda: Adam(schedules.ExponentialDecay(0.002, 20, 0.5)),
    "exponential staircase": lambda: Adam(schedules.ExponentialDecay(0.003, 20, 0.5, staircase=True)),
    "inverse time": lambda: Adam(schedules.InverseTimeDecay(0.003, 20, 0.5)),
    "piecewise": lambda: Adam(schedules.PiecewiseConstantDecay([10, 30], [0.003, 0.0003, 0.001])),
    "polynomial": lambda: Adam(schedules.PolynomialDecay(0.003, 60, 0.0003, power=2.0)),
    "polynomial cycle": lambda: Adam(schedules.PolynomialDecay(0.003, 30, 0.0003, cycle=True)),
    "cosine": lambda: Adam(schedules.CosineDecay(0.003, 80, alpha=0.1)),
    "cosine warm-up": lambda: Adam(schedules.CosineDecay(0.0, 60, warmup_target=0.003, warmup_steps=20)),
    "cosine restarts": lambda: Adam(schedules.CosineDecayRestarts(0.003, 17, t_mul=1.5, m_mul=0.9, alpha=0.1)),
    "cosine restarts, equal": lambda: Adam(schedules.CosineDecayRestarts(0.003, 17, t_mul=1.0)),
    "schedule, accumulation": lambda: Adam(schedules.ExponentialDecay(0.003, 20, 0.5), gradient_accumulation_steps=5),
}


def notebook_model():
    inputs = keras.layers.Input((10, 10))
    hidden = keras.layers.Dense(10, "relu")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, "softmax")(hidden))
    rng = np.random.default_rng(0)  # Glorot's range, the same float32 numbers in any dtype
    kernels = [rng.uniform(-1, 1, shape) * np.sqrt(6 / sum(shape)) for shape in [(10, 10), (10, 2)]]
    model.set_weights([w.astype(np.float32) for kernel in kernels for w in (kernel, np.zeros(kernel.shape[1]))])
    return model


def data(dtype):
    """Float32 numbers in any dtype, because Keras's trainer rounds what it is given."""
    rng = np.random.default_rng(5)
    return tuple(rng.standard_normal((2, 10, n)).astype(np.float32).astype(dtype) for n in (10, 2))


def train_keras(optimizer, dtype):
    """Weights before, weights after, and what the optimizer averaged them to."""
    model = notebook_model()
    before = [np.asarray(w) for w in model.get_weights()]
    model.compile(optimizer=optimizer, loss="categorical_crossentropy")
    x, y = data(dtype)
    for _ in range(STEPS):
        model.train_on_batch(x, y)
    average = optimizer._model_variables_moving_average if optimizer.use_ema else []
    return before, [np.asarray(w) for w in model.get_weights()], [np.asarray(a) for a in average]


def train(optimizers, before, dtype):
    """The same weights and data through JAX loops with transformations and scales of the loss, in one program."""
    model, weights = notebook_model(), [jnp.asarray(w, dtype) for w in before]
    x, y = data(dtype)

    def end(tx, loss_scale):
        def loss(weights):
            prediction, _ = model.stateless_call(weights, [], x)
            return loss_scale * jnp.mean(keras.losses.categorical_crossentropy(y, prediction))

        def step(carry, _):
            weights, state = carry
            updates, state = tx.update(jax.grad(loss)(weights), state, weights)
            return (optax.apply_updates(weights, updates), state), None

        return jax.lax.scan(step, (weights, tx.init(weights)), length=STEPS)[0]

    ends = jax.jit(lambda: {name: end(*optimizer) for name, optimizer in optimizers.items()})()
    return {name: ([np.asarray(w) for w in weights], state) for name, (weights, state) in ends.items()}


def largest(a, b):
    return max(float(np.abs(x.astype(np.float64) - y.astype(np.float64)).max()) for x, y in zip(a, b, strict=True))


@contextlib.contextmanager
def keras_dtype(dtype):
    """Keras and JAX in float64 or float32."""
    with jax.enable_x64(dtype == "float64"):
        keras.config.set_floatx(dtype)
        keras.config.set_dtype_policy(dtype)
        yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


# float64 holds every rule to Keras's; float32 has one rounding more, which does not ask which rule it is
FLOAT32 = ("default", "adamw with decay", "amsgrad", "clipnorm", "accumulation", "ema overwrites", "cosine warm-up")


@pytest.fixture(scope="module")
def trained(request):
    """Our weights and states after a hundred steps, by dtype and name; a program for each dtype."""
    found = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for dtype, names in {"float64": CONFIGS, "float32": FLOAT32}.items():
            with keras_dtype(dtype):
                optimizers = {name: CONFIGS[name]() for name in run.asked_for(request) if name in names}
                # Keras's trainer multiplies the loss by the scale
                ours = {
                    n: (interop.keras.from_config(o.get_config()), o.loss_scale_factor or 1.0)
                    for n, o in optimizers.items()
                }
                found[dtype] = train(ours, notebook_model().get_weights(), dtype)
    return found


def run_both(name, dtype, trained):
    """Weights before and after a hundred steps of Keras, and after ours, with the averages where there are any."""
    with keras_dtype(dtype):
        before, keras_after, keras_average = train_keras(CONFIGS[name](), dtype)
    after, state = trained[dtype][name]
    average = optax.tree.get(state, "average", []) if keras_average else []
    return before, keras_after + keras_average, after + [np.asarray(a) for a in average]


@pytest.mark.parametrize("name", catalogue.costly(CONFIGS, every_run=("default", "adamw with decay", "ema overwrites")))
def test_training_in_float64_agrees_with_keras_to_1e_10(name, trained):
    before, theirs, ours = run_both(name, "float64", trained)
    # keras.ops.cos answers in float32 even to float64
    limit = 1e-7 if "cosine" in name else 1e-10
    assert largest(ours, theirs) / largest(before, theirs[: len(before)]) <= limit


@pytest.mark.parametrize("name", catalogue.costly(FLOAT32, every_run=("default", "ema overwrites")))
def test_training_in_float32_agrees_with_keras_to_1e_5_of_the_distance(name, trained):
    before, theirs, ours = run_both(name, "float32", trained)
    rounding = 8 * np.spacing(max(np.abs(w).max() for w in theirs))  # both round the weights a hundred times
    assert largest(ours, theirs) <= 1e-5 * largest(before, theirs[: len(before)]) + rounding


@pytest.mark.parametrize("name", ["default"])
def test_in_float32_keras_is_further_from_its_own_float64_than_we_are(name, trained):
    _, theirs, ours = run_both(name, "float32", trained)
    _, truth, _ = run_both(name, "float64", trained)
    assert 2 * largest(ours, truth) < largest(theirs, truth)


def test_optax_adam_is_not_keras_adam_where_epsilon_matters():
    with keras_dtype("float32"):
        optimizer = Adam(epsilon=1e-2)
        before, theirs, _ = train_keras(optimizer, "float32")
        pair = {
            "ours": (interop.keras.from_config(optimizer.get_config()), 1.0),
            "optax": (optax.adam(optimizer.get_config()["learning_rate"], eps=1e-2), 1.0),
        }
        after = train(pair, before, "float32")
    (ours, _), (optax_adam, _) = after["ours"], after["optax"]
    assert largest(optax_adam, theirs) > 1000 * largest(ours, theirs)


OTHERS = {
    "Nadam": lambda **o: keras.optimizers.Nadam(epsilon=1e-2, **o),
    "Lamb": lambda **o: keras.optimizers.Lamb(epsilon=1e-2, **o),
    "Adafactor": lambda **o: keras.optimizers.Adafactor(clip_threshold=0.3, **o),
    "Adamax": lambda **o: keras.optimizers.Adamax(epsilon=1e-2, **o),
    "RMSprop": lambda **o: keras.optimizers.RMSprop(epsilon=1e-2, **o),
    "RMSprop momentum": lambda **o: keras.optimizers.RMSprop(epsilon=1e-2, momentum=0.9, **o),
    "RMSprop centered": lambda **o: keras.optimizers.RMSprop(epsilon=1e-2, centered=True, **o),
    "Adagrad": lambda **o: keras.optimizers.Adagrad(epsilon=1e-2, **o),
    "Lion": lambda **o: keras.optimizers.Lion(**o),
    "Muon": lambda **o: keras.optimizers.Muon(epsilon=1e-2, adam_lr_ratio=0.5, **o),
    "Muon plain": lambda **o: keras.optimizers.Muon(nesterov=False, rms_rate=None, adam_weight_decay=0.0, **o),
    "ScheduleFreeAdamW": lambda **o: keras.optimizers.ScheduleFreeAdamW(epsilon=1e-2, warmup_steps=30, **o),
    "SGD": lambda **o: keras.optimizers.SGD(**o),
    "SGD momentum": lambda **o: keras.optimizers.SGD(momentum=0.9, **o),
    "SGD nesterov": lambda **o: keras.optimizers.SGD(momentum=0.9, nesterov=True, **o),
}


ITERATED = ("Muon", "Muon plain", "ScheduleFreeAdamW")
"""A rounding grows in the iteration of each step, and where the average is got from y and z."""
PROBLEMS = {"vector": oracles.problem, "matrix": oracles.matrix_problem}
OPTIONS = {"plain": {}, "decay": {"weight_decay": 0.1}, "decay and clip": {"weight_decay": 0.1, "clipnorm": 1.0}}
CASES = list(itertools.product(OTHERS, OPTIONS, (False, True), PROBLEMS))
EVERY_RUN = [(name, "decay and clip", True, "matrix") for name in OTHERS]


def optimizer_of(name, options, scheduled):
    rate = schedules.ExponentialDecay(0.01, 20, 0.5) if scheduled else 0.01
    return OTHERS[name](learning_rate=rate, **OPTIONS[options])


def kerass_end(optimizer, params, grads):
    """Where Keras's optimizer ends, which is a part of a program."""
    variable = keras.Variable(params, dtype="float64")
    optimizer.build([variable])

    def step(carry, grad):
        weights, state = carry
        return optimizer.stateless_apply(state, [grad], weights), None

    start = [variable.value], [v.value for v in optimizer.variables]
    return jax.lax.scan(step, start, jnp.asarray(grads))[0][0][0]


@pytest.fixture(scope="module")
def ends(request):
    """Where ours and Keras's end, for each problem in one program each."""
    cases = run.asked_for(request, "name", "options", "scheduled", "problem")
    with keras_dtype("float64"), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = {}
        for problem, start in PROBLEMS.items():
            of = [case for case in cases if case[-1] == problem]
            makers = {repr(c): lambda c=c: interop.keras.from_config(optimizer_of(*c[:-1]).get_config()) for c in of}
            with mock.patch("keras.src.ops.norm", jnp.linalg.norm):  # Keras's answers in float32 even to float64
                theirs = jax.jit(lambda of=of, start=start: [kerass_end(optimizer_of(*c[:-1]), *start()) for c in of])()
            ours = run.ends(makers, *start())
            found |= {case: (ours[repr(case)], np.asarray(end)) for case, end in zip(of, theirs, strict=True)}
    return found


@pytest.mark.parametrize(("name", "options", "scheduled", "problem"), catalogue.costly(CASES, EVERY_RUN))
def test_a_hundred_float64_updates_of_the_other_classes_agree_with_keras_to_1e_12(
    name, options, scheduled, problem, ends
):
    params, _ = PROBLEMS[problem]()
    ours, theirs = ends[name, options, scheduled, problem]
    # keras.ops.mean answers in float32 precision even to float64
    limit = 1e-6 if name == "Adafactor" else 1e-10 if name in ITERATED else 1e-12
    assert run.relative_error(ours, theirs, params) <= limit


def test_parameters_excluded_from_weight_decay_agree_with_keras_to_1e_12(standard_promotion):
    with keras_dtype("float64"):
        rng, shapes = np.random.default_rng(0), {"kernel": (3, 2), "bias": (2,), "embeddings": (4, 2)}
        start = {name: rng.normal(size=shape) for name, shape in shapes.items()}
        grads = [{name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(20)]
        optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.1)
        excluded = ["bias", "embed"]
        optimizer.exclude_from_weight_decay(var_names=excluded)
        variables = {name: keras.Variable(value, name=name) for name, value in start.items()}
        optimizer.build(list(variables.values()))
        for grad in grads:
            optimizer.apply([jnp.asarray(grad[name]) for name in variables], list(variables.values()))
        tx = interop.keras.from_config(optimizer.get_config(), exclude_from_weight_decay=excluded)
        ours = run.end_of_trees(tx, jax.tree.map(jnp.asarray, start), [jax.tree.map(jnp.asarray, g) for g in grads])
        for name, variable in variables.items():
            assert run.relative_error(np.asarray(ours[name]), np.asarray(variable.value), start[name]) <= 1e-12
    with pytest.raises(TypeError, match="must be a list of names"):
        interop.keras.from_config(optimizer.get_config(), exclude_from_weight_decay="bias")


def test_a_multi_optimizer_gives_each_path_its_optimizer_and_agrees_with_keras_to_1e_12(standard_promotion):
    shapes = {"dense/kernel": (3, 2), "dense/bias": (2,), "head/kernel": (2, 2)}
    rng = np.random.default_rng(0)
    start = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    grads = [{name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(5)]
    with keras_dtype("float64"):
        chosen = {"head/.*": keras.optimizers.SGD(0.1, momentum=0.9), "dense/bias": keras.optimizers.Lion(0.01)}
        optimizer = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(keras.optimizers.Adam(0.01), chosen))
        variables = {}
        for path, value in start.items():
            layer, _, name = path.partition("/")
            with keras.name_scope(layer):
                variables[path] = keras.Variable(value, name=name)
        assert [variable.path for variable in variables.values()] == list(start)
        optimizer.build(list(variables.values()))
        for grad in grads:
            optimizer.apply([jnp.asarray(grad[path]) for path in variables], list(variables.values()))

        tree = {path: jnp.asarray(value) for path, value in start.items()}
        tx = interop.keras.from_config(optimizer.get_config(), "MultiOptimizer")
        ours = run.end_of_trees(tx, tree, [jax.tree.map(jnp.asarray, grad) for grad in grads])
        for path, variable in variables.items():
            assert run.relative_error(np.asarray(ours[path]), np.asarray(variable.value), start[path]) <= 1e-12


def test_a_multi_optimizer_that_a_function_makes_is_refused():
    described = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(keras.optimizers.Adam())).get_config()
    with pytest.raises(ValueError, match="it must be a serialised OptimizerMap; of a function no configuration says"):
        interop.keras.from_config(described | {"optimizer_map": {"class_name": "function"}}, "MultiOptimizer")


@pytest.mark.exhaustive
def test_a_loss_scale_optimizer_agrees_with_keras_in_weights_and_scale(standard_promotion):
    """Float16 gradients of which some overflow, with a scale that grows every three steps."""
    inner = keras.optimizers.Adam(0.01)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**12, dynamic_growth_steps=3)
    start, rng = np.linspace(-1, 1, 6, dtype=np.float32), np.random.default_rng(0)
    variable = keras.Variable(start)
    optimizer.build([variable])
    for described in (optimizer.get_config(), keras.optimizers.serialize(optimizer)):
        tx = interop.keras.from_config(described)
    weights, kept = [variable.value], [v.value for v in optimizer.variables]
    scale = next(k for k, v in enumerate(optimizer.variables) if v is optimizer.dynamic_scale)
    params, state, scales = jnp.asarray(start), tx.init(jnp.asarray(start)), []
    for step in range(20):
        grad = rng.normal(size=6).astype(np.float32)
        scaled = (grad * float(state.scale)).astype(np.float16).astype(np.float32)
        scaled = np.where(step in (4, 5, 11), np.inf, scaled)
        weights, kept = optimizer.stateless_apply(kept, [jnp.asarray(scaled)], weights)
        updates, state = tx.update(jnp.asarray(scaled), state, params)
        params = optax.apply_updates(params, updates)
        scales.append(float(state.scale))
        assert scales[-1] == float(kept[scale])
    assert len(set(scales)) == 3
    np.testing.assert_allclose(params, weights[0], rtol=0, atol=2e-6)
