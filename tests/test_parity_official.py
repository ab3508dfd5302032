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


def normuon(o):
    """The weights of a layer are (outputs, inputs) there."""
    options = {"weight_decay": o["weight_decay"], "axes": {"*": (1, 0)}}
    return adam_tx.normuon(o["lr"], optax.identity(), o["b1"], o["b2"], **options)


def averaging(o):
    names = ("warmup_steps", "r", "weight_lr_power", "weight_decay", "eps", "b1", "b2")
    return {name: o[name] for name in names if name in o}


MEMBERS = {
    "normuon": normuon,
    "schedule_free_adamw": lambda o: adam_tx.schedule_free_adamw(o["lr"], **averaging(o)),
    "schedule_free_sgd": lambda o: adam_tx.schedule_free_sgd(o["lr"], **averaging(o)),
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
    shown = (
        f"{k}={v}" for k, v in options if k in ("weight_decay", "name", "grad_scale", "precondition_frequency", "r")
    )
    return " ".join([record["member"], record["problem"], *shown])


def problem(record):
    """What tells the problem of a record from others, and its parameters and gradients."""
    shape, scale = np.shape(record["params"]), record["options"].get("grad_scale", 1.0)
    steps = record["options"].get("steps", 100)
    matrix = record["problem"] == "matrix"
    params, grads = oracles.matrix_problem(steps, shape) if matrix else oracles.problem(steps)
    return (record["problem"], shape, scale, steps), params, scale * grads


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


def test_the_average_of_schedule_free_learning_is_that_of_its_authors_to_1e_10(x64):
    record = next(r for r in RECORDS if r["member"] == "schedule_free_adamw" and r["options"].get("r"))
    tx = MEMBERS["schedule_free_adamw"](record["options"])
    _, params, grads = problem(record)

    def step(carry, grad):
        updates, state = tx.update(grad, carry[1], carry[0])
        return (carry[0] + updates, state), None

    end = jax.jit(lambda p, g: jax.lax.scan(step, (p, tx.init(p)), g)[0])(params, grads)
    average = np.asarray(adam_tx.schedule_free_weights(*end))
    assert run.relative_error(average, np.array(record["average"]), params) <= 1e-10
    assert run.relative_error(np.asarray(end[0]), average, params) > 1e-3
