"""The state of a PyTorch optimizer goes on here, and there again."""

import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import run

import adam_tx
from adam_tx.interop.torch import flax_axes, from_param_group, from_state_dict, to_state_dict

RECORDS = json.loads(pathlib.Path(__file__).with_name("goldens").joinpath("torch.json").read_text())["records"]
HALVES = [record for record in RECORDS if "half" in record]
LAST = list({record["optimizer"]: record for record in HALVES}.values())  # of each class, with all of its flags
some_and_all = pytest.mark.parametrize(
    "records", [pytest.param(LAST, id="flags"), pytest.param(HALVES, id="all", marks=pytest.mark.exhaustive)]
)


def state_dict_of(record):
    slots = {slot: np.array(value) for slot, value in record["half"]["state"].items()}
    return {"state": {0: slots}, "param_groups": [record["group"]]}


@some_and_all
def test_a_hundred_steps_of_which_torch_made_the_first_fifty_agree_with_torch_to_1e_12(records, x64):
    start, grads = oracles.problem()
    half = jnp.asarray(grads[50:])
    begun = []
    for record in records:
        tx, params = from_param_group(record["group"], record["optimizer"]), jnp.asarray(record["half"]["params"])
        read = from_state_dict(state_dict_of(record), params, record["optimizer"], names=[""])
        begun.append((tx, params, adam_tx.import_state(tx, params, read)))
    for record, end in zip(records, jax.jit(lambda: ends(begun, half))(), strict=True):
        error = run.relative_error(np.asarray(end[0]), np.array(record["params"]), start)
        assert error <= 1e-12, (record["optimizer"], record["group"], error)


def ends(begun, grads):
    """Parameters and states after these gradients, of transformations, parameters and states."""

    def end(tx, params, state):
        def step(carry, grad):
            params, state = carry
            updates, state = tx.update(grad, state, params)
            return (jax.tree.map(run.apply_updates, params, updates), state), None

        return jax.lax.scan(step, (params, state), grads)[0]

    return [end(*case) for case in begun]


@some_and_all
def test_every_slot_that_torch_kept_comes_back_to_the_last_bit(records, x64):
    for record in records:
        params, given = jnp.asarray(record["half"]["params"]), state_dict_of(record)
        tx, optimizer = from_param_group(record["group"], record["optimizer"]), record["optimizer"]
        state = adam_tx.import_state(tx, params, from_state_dict(given, params, optimizer, names=[""]))
        exported = adam_tx.export_state(state, params, tx)
        back = to_state_dict(exported, given, params, optimizer, names=[""])["state"][0]
        assert list(back) == list(given["state"][0]), optimizer
        for slot, value in given["state"][0].items():
            np.testing.assert_array_equal(back[slot], value, err_msg=f"{optimizer} {slot}")


SHAPES = {"conv/kernel": (4, 2, 3, 3), "dense/kernel": (3, 5), "dense/bias": (3,), "embed": (6, 2)}
FLAGS = {"maximize": [False, True], "weight_decay": [0.0, 0.1]}
CASES = {
    "Adam": FLAGS | {"amsgrad": [False, True]},
    "AdamW": FLAGS | {"amsgrad": [False, True]},
    "NAdam": FLAGS | {"decoupled_weight_decay": [False, True]},
    "RAdam": FLAGS | {"decoupled_weight_decay": [False, True]},
    "Adamax": FLAGS,
    "RMSprop": FLAGS | {"centered": [False, True], "momentum": [0, 0.9]},
    "Adagrad": FLAGS | {"lr_decay": [0, 0.1], "initial_accumulator_value": [0, 0.5]},
}


def tree(arrays, convert=jnp.asarray):
    """The arrays under their paths, as Flax has them: a tree, with the axes of kernels turned."""
    made = {}
    for path, array in arrays.items():
        *above, name = path.split("/")
        order = flax_axes(path, array.shape)
        turned = convert(array if order is None else np.transpose(array, order))
        (made.setdefault(above[0], {}) if above else made)[name] = turned
    return made


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", CASES)
def test_fifty_steps_there_fifty_here_and_fifty_there_are_150_there(optimizer, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(0)
    start = {path: rng.standard_normal(shape).astype(dtype) for path, shape in SHAPES.items()}
    grads = [{path: rng.standard_normal(shape).astype(dtype) for path, shape in SHAPES.items()} for _ in range(150)]
    grid = CASES[optimizer]
    settings = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]

    def make(setting, params):
        weights = {path: torch.tensor(np.array(value), requires_grad=True) for path, value in params.items()}
        return weights, getattr(torch.optim, optimizer)(weights.values(), **({"lr": 0.01} | setting))

    def steps(weights, made, some):
        for grad in some:
            for path, weight in weights.items():
                weight.grad = torch.tensor(grad[path])
            made.step()

    def values(weights):
        return {path: weight.detach().numpy().copy() for path, weight in weights.items()}

    names, there = list(SHAPES), {"names": list(SHAPES), "axes": flax_axes}
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with jax.enable_x64(dtype == "float64"):
            begun, dicts = [], []
            for setting in settings:
                weights, made = make(setting, start)
                steps(weights, made, grads[:50])
                dicts.append(made.state_dict())
                tx, params = from_param_group(dicts[-1]["param_groups"][0], optimizer), tree(values(weights))
                read = from_state_dict(dicts[-1], params, optimizer, **there)
                begun.append((tx, params, adam_tx.import_state(tx, params, read)))
            middle = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(tree, grads[50:100]))
            after = jax.jit(lambda: ends(begun, middle), compiler_options=run.AS_FOR_USERS)()
            for setting, (tx, _, _), (params, state), like in zip(settings, begun, after, dicts, strict=True):
                exported = adam_tx.export_state(state, params, tx)
                flat = {
                    path: np.asarray(leaf) for path, leaf in zip(sorted(names), jax.tree.leaves(params), strict=True)
                }
                orders = {path: flax_axes(path, shape) for path, shape in SHAPES.items()}
                back = {p: x if orders[p] is None else np.transpose(x, np.argsort(orders[p])) for p, x in flat.items()}
                weights, made = make(setting, {path: back[path] for path in names})
                made.load_state_dict(to_state_dict(exported, like, params, optimizer, **there, tensor=torch.from_numpy))
                steps(weights, made, grads[100:])
                alone, whole = make(setting, start)
                steps(alone, whole, grads)
                ours, theirs = (np.concatenate([x.ravel() for x in values(w).values()]) for w in (weights, alone))
                error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
                assert error <= (1e-6 if dtype == "float32" else 1e-12), (setting, error)
    finally:
        torch.set_default_dtype(torch.float32)
