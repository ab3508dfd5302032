"""The state of a Keras optimizer goes on here, and there again; also from files."""

import shutil
import zipfile
from unittest import mock

import h5py
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
import run
from catalogue import costly
from keras import optimizers
from keras.optimizers import OptimizerMap
from test_parity_keras import keras_dtype

import adam_tx
from adam_tx.interop.keras import from_config, from_variables, read_file, to_variables, write_file

pytestmark = pytest.mark.usefixtures("standard_promotion")

RATE = 0.01
CASES = {
    "Adam": lambda: optimizers.Adam(RATE),
    "AdamW": lambda: optimizers.AdamW(RATE, weight_decay=0.1, amsgrad=True),
    "AdamW, all": lambda: optimizers.AdamW(
        RATE, weight_decay=0.1, amsgrad=True, use_ema=True, ema_overwrite_frequency=7, gradient_accumulation_steps=3
    ),
    "Nadam": lambda: optimizers.Nadam(RATE, gradient_accumulation_steps=4),
    "Adamax": lambda: optimizers.Adamax(RATE, use_ema=True),
    "RMSprop": lambda: optimizers.RMSprop(RATE),
    "RMSprop, momentum": lambda: optimizers.RMSprop(RATE, momentum=0.9),
    "RMSprop, all": lambda: optimizers.RMSprop(
        optimizers.schedules.ExponentialDecay(RATE, 20, 0.5), momentum=0.9, centered=True
    ),
    "Adagrad": lambda: optimizers.Adagrad(RATE, clipnorm=1.0),
    "Lamb": lambda: optimizers.Lamb(RATE),
    "Lion": lambda: optimizers.Lion(RATE, loss_scale_factor=8.0),
    "SGD": lambda: optimizers.SGD(RATE, momentum=0.9, loss_scale_factor=128.0, gradient_accumulation_steps=3),
    "Adafactor": lambda: optimizers.Adafactor(RATE),
    "Muon": lambda: optimizers.Muon(RATE),
    "ScheduleFreeAdamW": lambda: optimizers.ScheduleFreeAdamW(RATE, weight_decay=0.1, warmup_steps=70),
}
EVERY_RUN = ("AdamW, all", "Nadam", "RMSprop, all", "Lion")
LIMITS = {
    ("Muon", "float64"): 1e-10,  # its iteration multiplies a rounding by 3.4 five times a step
    ("ScheduleFreeAdamW", "float32"): 3 * 50 * 2.0**-24,  # an average that is got from y and z rounds at each step
}
NAMES = ["dense/kernel", "dense/bias"]
SHAPES = [(4, 3), (3,)]
STEPS = 50


def problem(dtype):
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]
    return weights, [rng.standard_normal((3 * STEPS, *shape)).astype(dtype) for shape in SHAPES]


def tree(weights):
    return {"dense": {"kernel": weights[0], "bias": weights[1]}}


def built(name, dtype):
    optimizer = CASES[name]()
    optimizer.build([keras.Variable(np.zeros(shape), dtype=dtype) for shape in SHAPES])
    return optimizer


def kerass(optimizer, weights, kept, grads):
    """Keras's weights and variables after these gradients, as a part of a program."""

    def step(carry, grad):
        return optimizer.stateless_apply(carry[1], grad, carry[0]), None

    return jax.lax.scan(step, (weights, kept), [jnp.asarray(g) for g in grads])[0]


def ours(tx, params, state, grads):
    def step(carry, grad):
        params, state = carry
        updates, state = tx.update(tree(grad), state, params)
        return (jax.tree.map(run.apply_updates, params, updates), state), None

    return jax.lax.scan(step, (params, state), [jnp.asarray(g) for g in grads])[0]


def carried(names, dtype):
    """By name: variables half way, those that came back, and the weights of 50 + 50 + 50 steps and of 150 of Keras."""
    weights, grads = problem(dtype)
    first, second, third = ([g[k : k + STEPS] for g in grads] for k in (0, STEPS, 2 * STEPS))
    made = {name: built(name, dtype) for name in names}
    start = {name: [jnp.asarray(v.value) for v in optimizer.variables] for name, optimizer in made.items()}
    there = jax.jit(lambda: {n: kerass(o, weights, start[n], first) for n, o in made.items()})()
    whole = jax.jit(lambda: {n: kerass(o, weights, start[n], grads)[0] for n, o in made.items()})()
    begun, back = {}, {}
    for name, optimizer in made.items():
        config, params = optimizer.get_config(), tree(there[name][0])
        tx, read = from_config(config), from_variables(there[name][1], config, params, NAMES)
        begun[name] = (tx, params, adam_tx.import_state(tx, params, read))
        exported = adam_tx.export_state(begun[name][2], params, tx)
        back[name] = to_variables(exported, config, params, NAMES)
    here = jax.jit(lambda: {name: ours(*case, second) for name, case in begun.items()})()
    again = {}
    for name, (params, state) in here.items():
        config = made[name].get_config()
        exported = adam_tx.export_state(state, params, begun[name][0])
        kept = to_variables(exported, config, params, NAMES)
        assigned = [jnp.asarray(new, old.dtype) for new, old in zip(kept, start[name], strict=True)]
        again[name] = [params["dense"]["kernel"], params["dense"]["bias"]], assigned
    ends = jax.jit(lambda: {n: kerass(made[n], *case, third)[0] for n, case in again.items()})()
    return {name: (there[name][1], back[name], ends[name], whole[name]) for name in names}


@pytest.fixture(scope="module")
def found(request):
    cases = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for dtype in ("float32", "float64"):
            # Keras's own norm answers in float32 even to float64
            with keras_dtype(dtype), mock.patch("keras.src.ops.norm", jnp.linalg.norm):
                cases |= {(name, dtype): case for name, case in carried(run.asked_for(request), dtype).items()}
    return cases


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", costly(CASES, EVERY_RUN))
def test_every_variable_that_keras_kept_comes_back_to_the_last_bit(name, dtype, found):
    given, back, _, _ = found[name, dtype]
    for mine, theirs in zip(back, given, strict=True):
        # Adafactor's last matrix is the product of its rows and columns, which Keras makes anew in every step
        made = name == "Adafactor" and np.shape(theirs) == SHAPES[0]
        np.testing.assert_allclose(mine, np.asarray(theirs), rtol=1e-6 if made else 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", costly(CASES, EVERY_RUN))
def test_fifty_steps_there_fifty_here_and_fifty_there_are_150_there(name, dtype, found):
    _, _, ends, whole = found[name, dtype]
    mine, theirs = (np.concatenate([np.asarray(w).ravel() for w in weights]) for weights in (ends, whole))
    error = np.linalg.norm(mine - theirs) / np.linalg.norm(theirs)
    # keras.ops.mean answers in float32 precision even to float64
    assert error <= (LIMITS.get((name, dtype), 1e-6 if dtype == "float32" or name == "Adafactor" else 1e-12)), error


def saved(tmp_path, optimizer):
    """A model that was trained and saved, as `.keras` and as weights alone."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense")])
    model.compile(optimizer, "mse")
    model.fit(np.ones((8, 4)), np.ones((8, 3)), epochs=11, verbose=0)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("keras")
    inner = optimizers.AdamW(RATE, amsgrad=True, use_ema=True, gradient_accumulation_steps=2)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return saved(place, optimizers.LossScaleOptimizer(inner)), place


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_an_optimizer_in_a_file_goes_through_ours_and_back_into_a_file_to_the_last_bit(name, trained, tmp_path):
    model, place = trained
    config, variables = read_file(place / name)
    assert len(variables) == 16  # more than ten: in the order of text, 10 would stand before 2
    for read, kept in zip(variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(read, np.asarray(kept))
    assert config is None or config["class_name"] == "LossScaleOptimizer"
    config = config or keras.optimizers.serialize(model.optimizer)
    params = tree([jnp.asarray(w) for w in model.get_weights()])
    tx = from_config(config)
    state = adam_tx.import_state(tx, params, from_variables(variables, config, params, NAMES))
    back = to_variables(adam_tx.export_state(state, params, tx), config, params, NAMES)
    write_file(tmp_path / name, back, like=place / name)
    _, again = read_file(tmp_path / name)
    for mine, theirs in zip(again, variables, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    if name.endswith(".keras"):
        loaded = keras.models.load_model(tmp_path / name).optimizer.variables
        for mine, theirs in zip(loaded, variables, strict=True):
            np.testing.assert_array_equal(np.asarray(mine), theirs)


def test_an_optimizer_without_another_around_it_goes_into_a_file_too(tmp_path):
    model = saved(tmp_path, optimizers.Adam(RATE))
    _, variables = read_file(tmp_path / "model.keras")
    write_file(tmp_path / "other.keras", [v + 1 for v in variables], like=tmp_path / "model.keras")
    for mine, theirs in zip(read_file(tmp_path / "other.keras")[1], model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(mine, np.asarray(theirs) + 1)
    with pytest.raises(ValueError, match="give what to_variables made for the same model"):
        write_file(tmp_path / "other.keras", variables[:3], like=tmp_path / "model.keras")


def test_bfloat16_variables_in_a_file_are_read_as_the_numbers_they_are(tmp_path):
    with h5py.File(tmp_path / "some.weights.h5", "w") as file:
        values = np.asarray(jnp.array([1.5, -3.0], jnp.bfloat16))
        dataset = file.create_dataset("optimizer/vars/0", data=values.view("V2"))
        dataset.attrs["dtype"] = "bfloat16"
    np.testing.assert_array_equal(read_file(tmp_path / "some.weights.h5")[1][0], [1.5, -3.0])


def test_damaged_and_foreign_files_are_refused_by_what_is_wrong_with_them(trained, tmp_path):
    _, place = trained
    whole = (place / "model.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.weights.h5").write_bytes((place / "model.weights.h5").read_bytes()[:3000])
    shutil.copy(place / "model.keras", tmp_path / "model.h5")
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    shutil.copy(place / "model.weights.h5", tmp_path / "gap.weights.h5")
    shutil.copy(place / "model.weights.h5", tmp_path / "none.weights.h5")
    with h5py.File(tmp_path / "gap.weights.h5", "r+") as file:
        del file["optimizer/vars/3"]
    with h5py.File(tmp_path / "none.weights.h5", "r+") as file:
        del file["optimizer"]
    for name, reason in {
        "cut.keras": "damaged",
        "cut.weights.h5": "damaged",
        "other.keras": "damaged",
        "gap.weights.h5": "damaged, .*: of the optimizer's variables it has",
        "none.weights.h5": "saved without its optimizer",
        "model.h5": "must end with .keras or .weights.h5",
        "no.keras": "no such file",
    }.items():
        with pytest.raises(ValueError, match=f"{name}.*{reason}"):
            read_file(tmp_path / name)


def test_variables_of_another_class_order_or_setting_are_refused():
    adam, rmsprop = built("Adam", "float32"), built("RMSprop", "float32")
    config, params = adam.get_config(), tree([np.zeros(shape, np.float32) for shape in SHAPES])
    with pytest.raises(ValueError, match=r"velocity stands where …_momentum is expected. It may be of another class"):
        from_variables([*rmsprop.variables, *rmsprop.variables[2:]], config, params, NAMES)
    with pytest.raises(ValueError, match="has 8 variables for 2 parameters, but 6 came"):
        from_variables(adam.variables, config | {"amsgrad": True}, params, NAMES)
    with pytest.raises(ValueError, match=r"momentum of dense/bias has shape \(4, 3\), but \(3,\) is expected"):
        from_variables([np.asarray(v.value) for v in adam.variables], config, params, NAMES[::-1])
    with pytest.raises(ValueError, match="has 4 variables for 1 parameters, but 6 came.* names for all"):
        from_variables(adam.variables, config, params, NAMES[:1])
    exported = from_variables(adam.variables, config, params, NAMES)
    with pytest.raises(ValueError, match="it needs nu_max/dense/kernel"):
        to_variables(exported, config | {"amsgrad": True}, params, NAMES)
    with pytest.raises(ValueError, match=r"weight_nu is 0.5, but after 0 steps it debiases by"):
        to_variables(exported | {"weight_nu": np.array([0.5, 0.0])}, config, params, NAMES)
    with pytest.raises(ValueError, match="has no place for nu/dense/kernel, nu/dense/bias"):
        to_variables(exported, built("Lion", "float32").get_config(), params, NAMES)


@pytest.fixture
def mixed_float16():
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy("float32")


def test_a_model_compiled_under_mixed_float16_is_read_from_its_own_file_with_its_loss_scale(tmp_path, mixed_float16):
    model = saved(tmp_path, "adam")
    config, variables = read_file(tmp_path / "model.keras")
    theirs = model.optimizer.get_config()
    assert config["config"] == {key: value for key, value in theirs.items() if key != "name"}
    params = tree([jnp.asarray(w) for w in model.get_weights()])
    tx = from_config(config)
    state = adam_tx.import_state(tx, params, from_variables(variables, config, params, NAMES))
    scale, made = model.optimizer.dynamic_scale, model.optimizer.inner_optimizer.iterations
    assert (state.scale, optax.tree.get(state.inner, "count")) == (np.asarray(scale), np.asarray(made))
    back = to_variables(adam_tx.export_state(state, params, tx), config, params, NAMES)
    write_file(tmp_path / "model.keras", back, like=tmp_path / "model.keras")
    for mine, kept in zip(
        keras.models.load_model(tmp_path / "model.keras").optimizer.variables, variables, strict=True
    ):
        np.testing.assert_array_equal(np.asarray(mine), kept)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "Lamb", "Adamax", "Nadam"])
def test_moments_are_debiased_by_the_decays_that_made_them(name):
    """The gradient is the same in every step, so what is debiased is that gradient, under any decays."""
    keras_optimizer = getattr(optimizers, name)(RATE, beta_1=0.8, beta_2=0.99)
    variable = keras.Variable(np.zeros(3, np.float32))
    keras_optimizer.build([variable])
    for _ in range(20):
        keras_optimizer.apply([np.full(3, 0.1, np.float32)])
    params, config = {"w": jnp.zeros(3)}, keras_optimizer.get_config()
    read = from_variables(keras_optimizer.variables, config, params, ["w"])
    assert read["mu.decay"] == 0.8
    for moment, decay, power in (("mu", 0.8, 1), ("nu", 0.99, 2)):
        if f"{moment}/w" in read:
            assert read[f"{moment}.decay"] == decay
            np.testing.assert_allclose(read[f"{moment}/w"] / (1 - decay**20), 0.1**power, rtol=1e-5)
    if name in ("Adam", "AdamW"):
        tx = adam_tx.adam(1e-3, 0.5, 0.999)
        updates, _ = tx.update({"w": jnp.full(3, 0.1)}, adam_tx.import_state(tx, params, read), params)
        np.testing.assert_allclose(updates["w"], -1e-3, rtol=1e-5)


def test_what_keras_does_not_train_is_in_no_variable_and_goes_into_a_frozen_group():
    adam = built("Adam", "float32")
    params = tree([jnp.zeros(shape) for shape in SHAPES]) | {"frozen": jnp.zeros(2)}
    config = adam.get_config()
    read = from_variables(adam.variables, config, params, NAMES)
    assert not any("frozen" in key for key in read)
    tx = adam_tx.groups({"frozen": "freeze"}, default=from_config(config))
    exported = adam_tx.export_state(adam_tx.import_state(tx, params, read), params, tx)
    for mine, theirs in zip(to_variables(exported, config, params, NAMES), adam.variables, strict=True):
        np.testing.assert_array_equal(mine, np.asarray(theirs))
    live = from_config(config)
    with pytest.raises(ValueError, match="mu/frozen is missing"):
        adam_tx.import_state(live, params, read)
    with pytest.raises(ValueError, match="no place for mu/frozen, nu/frozen"):
        to_variables(adam_tx.export_state(live.init(params), params, live), config, params, NAMES)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"beta_2": 1.5}, "beta_2=1.5 cannot be honoured"),
        ({"beta_1": None}, "beta_1=None cannot be honoured"),
        ({"gradient_accumulation_steps": "x"}, "gradient_accumulation_steps='x' cannot be honoured"),
    ],
)
def test_a_configuration_with_settings_that_are_no_numbers_is_refused(change, problem):
    adam, params = built("Adam", "float32"), tree([np.zeros(shape, np.float32) for shape in SHAPES])
    with pytest.raises(ValueError, match=problem):
        from_variables(adam.variables, adam.get_config() | change, params, NAMES)


@pytest.mark.parametrize("config", [{}, {"class_name": "Adam"}, {"class_name": "Adam", "config": 5}, {"class_name": 5}])
@pytest.mark.parametrize("inside", [False, True])
def test_a_configuration_that_is_not_whole_is_refused(config, inside):
    params = tree([np.zeros(shape, np.float32) for shape in SHAPES])
    settings = {"inner_optimizer": config, "initial_scale": 1.0, "dynamic_growth_steps": 1}
    config = {"class_name": "LossScaleOptimizer", "config": settings} if inside else config
    for make in (from_config, lambda config: from_variables([0] * 4, config, params, NAMES)):
        with pytest.raises(ValueError, match=r"^keras.optimizers."):
            make(config)
    adam = built("Adam", "float32")
    partial = {key: value for key, value in adam.get_config().items() if not key.startswith("beta")}
    with pytest.raises(ValueError, match=r"config has no \['beta_1', 'beta_2'\]"):
        from_variables(adam.variables, partial, params, NAMES)


def test_the_variables_of_a_multi_optimizer_are_taken_one_optimizer_at_a_time():
    optimizer = optimizers.MultiOptimizer(OptimizerMap(optimizers.Adam(), {"dense/kernel": optimizers.SGD(0.1)}))
    with pytest.raises(ValueError, match=r"MultiOptimizer: .* those of each of optimizer\.optimizers"):
        from_variables([], optimizer.get_config(), tree([np.zeros(s) for s in SHAPES]), NAMES, "MultiOptimizer")


def test_an_average_in_which_iterates_count_otherwise_than_in_keras_is_refused():
    config, params = CASES["ScheduleFreeAdamW"]().get_config(), tree([jnp.ones(s) for s in SHAPES])
    tx = adam_tx.schedule_free_adamw(RATE)  # weighted by the square of the rate
    _, state = tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match="the weights of the average sum to 0.0001 after 1 updates, but each is 1"):
        to_variables(adam_tx.export_state(state, params, tx), config, params, NAMES)
