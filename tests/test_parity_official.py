"""The research optimizers are what their authors' code does, whose float64 trajectories `goldens` has recorded."""

import json
import pathlib

import jax
import numpy as np
import optax
import oracles
import pytest
import run

import adam_tx
from adam_tx import schedules

RECORDS = json.loads(pathlib.Path(__file__).with_name("goldens").joinpath("official.json").read_text())["records"]


def direction(o):
    """Adam's links before the learning rate, epsilon where that code has it."""
    if o["epsilon_hat"]:
        rms, correction = adam_tx.scale_by_rms(o["b2"], o["eps"]), adam_tx.bias_correction(o["b1"], o["b2"])
    else:
        rms, correction = adam_tx.scale_by_rms(o["b2"], o["eps"], debias=True), adam_tx.bias_correction(o["b1"])
    return adam_tx.scale_by_momentum(o["b1"]), rms, correction


def cautious(o):
    decay = adam_tx.add_decayed_weights(o["weight_decay"])
    rate = adam_tx.scale_by_learning_rate(o["lr"])
    return adam_tx.chain(*direction(o), adam_tx.scale_by_caution(o["mean_min"]), decay, rate)


def radam(o):
    return adam_tx.chain(
        adam_tx.scale_by_momentum(o["b1"]),
        adam_tx.scale_by_rectified_rms(o["b2"], o["eps"], degenerate=o["degenerated_to_sgd"]),
        adam_tx.bias_correction(o["b1"]),
        adam_tx.scale_by_learning_rate(o["lr"]),
    )


def ademamix(o):
    b3 = o["b3"]
    if o["b3_warmup"]:
        rising = schedules.half_life_decay(o["b1"] + 1e-8, b3 + 1e-8, o["b3_warmup"])  # their guard of the logarithm
        b3 = optax.join_schedules([rising, optax.constant_schedule(b3)], [o["b3_warmup"] - 1])
    alpha = schedules.warmup(o["alpha"], o["alpha_warmup"]) if o["alpha_warmup"] else o["alpha"]
    return adam_tx.ademamix(o["lr"], o["b1"], o["b2"], b3, alpha, o["eps"], weight_decay=o["weight_decay"])


def common(o):
    return o["lr"], o["b1"], o["b2"], o["eps"], o["weight_decay"]


MEMBERS = {
    "soap": lambda o: adam_tx.soap(*common(o), every=o["precondition_frequency"]),
    "mars_adamw": lambda o: adam_tx.mars_adamw(*common(o), gamma=o["gamma"]),
    "cautious": cautious,
    "cautious hat": cautious,
    "adam_mini": lambda o: adam_tx.adam_mini(*common(o), block=lambda _, __: o["block"]),
    "stable_adamw": lambda o: adam_tx.stable_adamw(*common(o)),
    "adam_atan2": lambda o: adam_tx.adam_atan2(o["lr"], o["b1"], o["b2"], weight_decay=o["weight_decay"]),
    "radam": radam,
    "laprop": lambda o: adam_tx.laprop(o["lr"], o["b1"], o["b2"], o["eps"]),
    "ademamix": ademamix,
}


def name(record):
    options = record["options"].items()
    shown = (f"{k}={v}" for k, v in options if k in ("weight_decay", "name", "grad_scale", "precondition_frequency"))
    return " ".join([record["member"], record["problem"], *shown])


def problem(record):
    """What tells the problem of a record from others, and its parameters and gradients."""
    shape, scale = np.shape(record["params"]), record["options"].get("grad_scale", 1.0)
    params, grads = oracles.matrix_problem(shape=shape) if record["problem"] == "matrix" else oracles.problem()
    return (record["problem"], shape, scale), params, scale * grads


@pytest.fixture(scope="module")
def ends():
    """Where ours end, by the number of the record; a program for each problem."""
    found, problems = {}, {problem(record)[0]: problem(record)[1:] for record in RECORDS}
    with jax.enable_x64(True):
        for key, (params, grads) in problems.items():
            records = {k: record for k, record in enumerate(RECORDS) if problem(record)[0] == key}
            makers = {k: lambda r=r: MEMBERS[r["member"]](r["options"]) for k, r in records.items()}
            found |= run.ends(makers, params, grads)
    return found


@pytest.mark.parametrize("number", range(len(RECORDS)), ids=lambda k: name(RECORDS[k]))
def test_a_hundred_float64_steps_agree_with_the_official_code_to_1e_10(number, ends):
    _, params, _ = problem(RECORDS[number])
    assert run.relative_error(ends[number], np.array(RECORDS[number]["params"]), params) <= 1e-10
