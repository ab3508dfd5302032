"""The averages of weights of PyTorch and Keras go on here, and there again."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import oracles
import pytest
from test_parity_keras import keras_dtype

import adam_tx
from adam_tx.interop import keras as from_keras
from adam_tx.interop import torch as from_torch

GOLDENS = pathlib.Path(__file__).with_name("goldens")
RECORDS = json.loads((GOLDENS / "torch_averages.json").read_text())["cases"]
SETTINGS = {"ema": 0.9, "ema, late and seldom": 0.5, "swa": "uniform"}
OURS = {"weight": "dense/kernel", "bias": "dense/bias"}
AXES = from_torch.flax_axes


def tree(record):
    """Recorded weights as Flax has them."""
    return {"dense": {"kernel": jnp.asarray(record["weight"]).T, "bias": jnp.asarray(record["bias"])}}


def state_dict_of(record):
    return {name: np.asarray(value) for name, value in record["averaged"].items()}


def torch_grads():
    (_, of_weight), (_, of_bias) = oracles.matrix_problem(60, (8, 4)), oracles.problem(60, size=8)
    return {"dense": {"kernel": jnp.asarray(of_weight).transpose(0, 2, 1), "bias": jnp.asarray(of_bias)}}


def scanned(tx, params, state, grads):
    def step(carry, grad):
        updates, state = tx.update(grad, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    return jax.lax.scan(step, (params, state), grads)[0]


def assert_close(ours, theirs, rtol):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=rtol, atol=rtol)


def torch_case(name):
    """The optimizer that PyTorch's is, with its average, and the state of both half way."""
    record = RECORDS[name]
    group = record["half"]["param_groups"][0]
    inner = from_torch.from_param_group(group, "Adam")
    tx = adam_tx.average_weights(inner, SETTINGS[name], start=record["start"], every=record["every"])
    slots = {int(k): {s: np.asarray(x) for s, x in of.items()} for k, of in record["half"]["state"].items()}
    params = tree(record["half"]["params"])
    given = {"state": slots, "param_groups": [group]}
    read = from_torch.from_state_dict(given, params, names=OURS, axes=AXES) | from_torch.from_averaged_model(
        state_dict_of(record["half"]), params, names=OURS, axes=AXES, uniform=SETTINGS[name] == "uniform"
    )
    return tx, params, adam_tx.import_state(tx, params, read)


@pytest.mark.parametrize("name", SETTINGS)
def test_thirty_steps_of_torch_and_thirty_here_average_the_weights_as_torch_does_to_1e_12(name, x64):
    tx, params, state = torch_case(name)
    half = jax.tree.map(lambda x: x[30:], torch_grads())
    params, state = scanned(tx, params, state, half)
    end = RECORDS[name]["end"]
    kept = end["averaged"]
    expected = tree({of: kept[f"module.{of}"] for of in OURS})
    assert_close(params, tree(end["params"]), 1e-12)
    assert_close(adam_tx.averaged_weights(params, state), expected, 1e-12)
    if name == "swa":
        assert int(state.averaged) == kept["n_averaged"] == 11


@pytest.mark.parametrize("name", SETTINGS)
def test_what_torch_averaged_comes_back_to_the_last_bit(name, x64):
    given = state_dict_of(RECORDS[name]["half"])
    tx, params, state = torch_case(name)
    exported = adam_tx.export_state(state, params, tx)
    back = from_torch.to_averaged_model(exported, given, params, names=OURS, axes=AXES)
    assert back.keys() == given.keys()
    for key in ["module.weight", "module.bias", *(["n_averaged"] if name == "swa" else [])]:
        np.testing.assert_array_equal(back[key], given[key])
    assert back["n_averaged"] >= 1


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_torch_loads_what_is_written_for_it():
    import torch

    layer = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    averaged = torch.optim.swa_utils.AveragedModel(layer)
    averaged.update_parameters(layer)
    names = {"0.weight": "dense/kernel", "0.bias": "dense/bias", "1.weight": "norm/scale", "1.bias": "norm/bias"}
    params = {
        "dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
        "norm": {"scale": jnp.ones(3), "bias": jnp.ones(3)},
    }
    tx = adam_tx.average_weights(adam_tx.sgd(0.1), "uniform", start=1)
    with pytest.raises(ValueError, match="is no parameter: 1.running_mean, 1.running_var, 1.num_batches_tracked"):
        from_torch.from_averaged_model(averaged.state_dict(), params, names=names, axes=AXES)
    settings = {"names": names, "axes": AXES}
    read = from_torch.from_averaged_model(averaged.state_dict(), params, uniform=True, drop="1.*", **settings)
    state = adam_tx.import_state(tx, params, read | {"count": 1})
    back = from_torch.to_averaged_model(
        adam_tx.export_state(state, params, tx), averaged.state_dict(), params, tensor=torch.from_numpy, **settings
    )
    averaged.load_state_dict(back)
    torch.testing.assert_close(averaged.module[0].weight, layer[0].weight, rtol=0, atol=0)
    assert int(averaged.n_averaged) == 1


def test_what_is_no_averaged_model_is_refused():
    given, params = state_dict_of(RECORDS["swa"]["half"]), tree(RECORDS["swa"]["half"]["params"])
    for wrong, message in (
        ({}, "state_dict must be what its state_dict.. gives, with n_averaged"),
        (given | {"n_averaged": np.int64(0)}, "n_averaged must be a whole number of at least 1, got 0. If nothing"),
        ({k: x for k, x in given.items() if k != "module.bias"}, "is not there: dense/bias. Mend names"),
        (given | {"module.bias": np.ones(3)}, "bias of dense/bias has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            from_torch.from_averaged_model(wrong, params, names=OURS, axes=AXES)


# Keras


@pytest.mark.usefixtures("standard_promotion")
def test_fifty_steps_of_keras_and_fifty_here_average_the_weights_as_keras_does(x64):
    """Of `use_ema`, to 1e-10: Keras's learning rate is a float32, and so are its powers of beta."""
    rng = np.random.default_rng(0)
    first, grads = rng.standard_normal(5), rng.standard_normal((100, 5))
    with keras_dtype("float64"):
        optimizer = keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9)
        weights = keras.Variable(first, dtype="float64")
        optimizer.build([weights])
        config = optimizer.get_config()

        def theirs(carry, grad):
            return optimizer.stateless_apply(carry[1], [grad], carry[0]), None

        begin = [jnp.asarray(first)], [v.value for v in optimizer.variables]
        half = jax.lax.scan(theirs, begin, jnp.asarray(grads[:50]))[0]
        after, kept = jax.lax.scan(theirs, half, jnp.asarray(grads[50:]))[0]
    params = {"w": half[0][0]}
    tx = adam_tx.average_weights(from_keras.from_config({**config, "use_ema": False}), config["ema_momentum"], start=1)
    read = from_keras.from_variables(half[1], config, params, ["w"])
    params, state = scanned(tx, params, adam_tx.import_state(tx, params, read), {"w": jnp.asarray(grads[50:])})
    assert_close(params["w"], after[0], 1e-10)
    values = from_keras.to_variables(adam_tx.export_state(state, params, tx), config, params, ["w"])
    assert_close(values[2], kept[2], 1e-10)  # behind iteration and learning rate
    assert_close(adam_tx.averaged_weights(params, state)["w"], kept[2], 1e-10)
    whole = from_keras.from_config(config)
    state = adam_tx.migrate(state, tx, whole, params, report=None)
    assert_close(adam_tx.averaged_weights(params, state)["w"], kept[2], 1e-10)
