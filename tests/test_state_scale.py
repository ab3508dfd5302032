"""What it takes to read a state grows as the number of its arrays does, and not faster."""

import sys

import jax
import numpy as np
import optax
import pytest
from catalogue import costly

import adam_tx
from adam_tx import export_state, import_state, migrate, state_sharding

pytestmark = pytest.mark.usefixtures("standard_promotion")

RATE = 1e-3


def parameters(leaves):
    """As many small arrays, two in each part of the tree."""
    return {f"layer_{i:04d}": {"kernel": np.ones((2, 2), "f"), "bias": np.ones(2, "f")} for i in range(leaves // 2)}


def calls(run):
    """The number of calls of Python functions."""
    made = 0

    def count(frame, event, argument):
        nonlocal made
        made += event == "call"

    run()  # what is compiled or cached once is not counted
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(before)
    return made


TRANSFORMATIONS = {
    "adam_tx": lambda: adam_tx.adamw(RATE),
    "optax": lambda: optax.adamw(RATE),
    "groups": lambda: adam_tx.groups(
        {"*/bias": {"weight_decay": 0.0}}, {}, optimizer=adam_tx.adamw, learning_rate=RATE
    ),
    "frozen": lambda: adam_tx.guard(adam_tx.groups({"*/bias": "freeze"}, adam_tx.adam(RATE))),
    "partition": lambda: optax.partition(
        {"a": adam_tx.adamw(RATE), "b": optax.adam(RATE)},
        lambda params: {key: "ab"[k % 2] for k, key in enumerate(params)},
    ),
    "unknown": lambda: optax.contrib.dadapt_adamw(RATE),
    "unlike the parameters": lambda: optax.GradientTransformation(
        lambda params: {"own": {f"{k}": [np.zeros(1), np.ones(2)] for k, _ in enumerate(jax.tree.leaves(params))}},
        lambda updates, state, params=None: (updates, state),
    ),
    "of another tree": lambda: optax.lookahead(optax.adam(RATE), 5, 0.5),
}


@pytest.mark.parametrize("leaves", [40, pytest.param(100, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", costly(TRANSFORMATIONS, every_run=("unknown",)))
def test_ten_times_as_many_parameters_take_ten_times_as_many_calls(name, leaves):
    tx = TRANSFORMATIONS[name]()

    def counted(leaves):
        params = parameters(leaves)
        given = optax.LookaheadParams(params, params) if name == "of another tree" else params
        state = jax.tree.map(np.asarray, tx.init(given))
        exported, mesh = export_state(state, params, tx), jax.sharding.AbstractMesh((1,), ("d",))
        runs = {"export": lambda: export_state(state, params, tx)}
        if name in ("adam_tx", "optax", "groups", "frozen", "partition"):
            runs |= {
                "import": lambda: import_state(tx, params, exported, report=None),
                "migrate": lambda: migrate(state, tx, adam_tx.adamw(RATE), params, report=str),
                "layout": lambda: state_sharding(tx, params, mesh=mesh),
            }
        return {key: calls(run) for key, run in runs.items()}

    few, many = counted(leaves), counted(10 * leaves)
    for key in few:
        assert many[key] <= 10.5 * few[key], (key, few[key], many[key])
