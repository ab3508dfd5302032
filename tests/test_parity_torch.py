"""`interop.torch.from_param_group` is PyTorch's optimizer, also where only its record is at hand."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import run
from catalogue import costly

from adam_tx import interop

GOLDENS = pathlib.Path(__file__).with_name("goldens")
RECORDS = json.loads((GOLDENS / "torch.json").read_text())["records"]


ADAMS = [record for record in RECORDS if record["optimizer"] in ("Adam", "AdamW")]
FLAGS = (
    *("amsgrad", "maximize", "weight_decay", "decoupled_weight_decay"),
    *("momentum_decay", "eps", "lr"),
    *("centered", "momentum", "dampening", "nesterov", "lr_decay", "initial_accumulator_value"),
)


def name(record):
    return " ".join([record["optimizer"], *(flag for flag in FLAGS if record["group"].get(flag))])


PROBLEMS = {1: oracles.problem, 2: oracles.matrix_problem}


# of each class, and of either problem, the one with all of its flags
EVERY_RUN = {(record["optimizer"], np.ndim(record["params"])): k for k, record in enumerate(RECORDS)}.values()


@pytest.fixture(scope="module")
def ends(request):
    """Where ours end, by the number of the record."""
    found, numbers = {}, run.asked_for(request, "number")
    with jax.enable_x64(True):
        for ndim, problem in PROBLEMS.items():
            records = {k: RECORDS[k] for k in numbers if np.ndim(RECORDS[k]["params"]) == ndim}
            found |= run.ends({k: lambda r=r: from_record(r) for k, r in records.items()}, *problem())
    return found


def from_record(record):
    return interop.torch.from_param_group(record["group"], record["optimizer"])


@pytest.mark.parametrize("number", costly(range(len(RECORDS)), EVERY_RUN), ids=lambda k: name(RECORDS[k]))
def test_a_hundred_float64_steps_agree_with_torch_to_1e_12(number, ends):
    end = np.array(RECORDS[number]["params"])
    params, _ = PROBLEMS[end.ndim]()
    assert run.relative_error(ends[number], end, params) <= 1e-12


@pytest.mark.parametrize("record", ADAMS, ids=name)
def test_the_oracle_agrees_with_torch_to_1e_12(record):
    params, grads = oracles.problem()
    theirs = oracle(record, params, grads)[-1]
    assert run.relative_error(theirs, np.array(record["params"]), params) <= 1e-12


@pytest.mark.parametrize("record", ADAMS, ids=name)
def test_the_first_float32_update_is_within_4_ulp(record, usual_compiler):
    params, grads = (x.astype(np.float32) for x in oracles.problem(steps=1, size=10_000))
    tx = interop.torch.from_param_group(record["group"], record["optimizer"])
    updates, _ = jax.jit(tx.update)(jnp.asarray(grads[0]), tx.init(params), jnp.asarray(params))
    exact = oracle(record, params, grads)[0] - params
    assert (np.abs(updates - exact) <= 4 * 2.0**-23 * magnitude(record, params, grads[0])).all()


@pytest.mark.parametrize("decoupled_key", [True, False])
def test_implementation_flags_and_bookkeeping_make_no_difference(decoupled_key):
    group = RECORDS[0]["group"] | {"fused": True, "foreach": False, "param_names": ["w"]}
    if not decoupled_key:
        group = {key: value for key, value in group.items() if key != "decoupled_weight_decay"}
    interop.torch.from_param_group(group, "Adam")


@pytest.mark.torch
def test_the_recorded_trajectories_are_what_torch_does_today():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    recorder = run.load_script(GOLDENS / "record_torch.py")
    for fresh, recorded in zip(recorder.record(), RECORDS, strict=True):
        assert json.loads(json.dumps(fresh["group"])) == recorded["group"]
        np.testing.assert_allclose(fresh["params"], recorded["params"], rtol=1e-14)


def oracle(record, params, grads):
    group, decoupled = record["group"], record["optimizer"] == "AdamW"
    decay = {"weight_decay" if decoupled else "l2": group["weight_decay"]}
    flags = {flag: group[flag] for flag in ("amsgrad", "maximize")}
    return oracles.adam(params, grads, group["lr"], *group["betas"], group["eps"], **flags, **decay)


def magnitude(record, params, grad):
    """The size of the first update before weight decay can cancel a part of it: what an ulp is counted in."""
    group = record["group"]
    grad = (-grad if group["maximize"] else grad).astype(np.float64)
    decay = group["weight_decay"] * params.astype(np.float64)
    if record["optimizer"] == "AdamW":
        return group["lr"] * (np.abs(grad) / (np.abs(grad) + group["eps"]) + np.abs(decay))
    return group["lr"] * (np.abs(grad) + np.abs(decay)) / (np.abs(grad + decay) + group["eps"])


@pytest.mark.torch
def test_several_groups_and_their_flags_agree_with_torch_to_1e_12(x64):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(0)
    shapes = {"embed.weight": (5, 3), "dense.weight": (3, 3), "dense.bias": (3,), "norm.weight": (3,)}
    start = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    grads = [{name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(30)]
    theirs = {name: torch.tensor(value, requires_grad=True) for name, value in start.items()}
    groups = [
        {"params": [("dense.weight", theirs["dense.weight"])]},
        {"params": [(n, theirs[n]) for n in ("dense.bias", "norm.weight")], "weight_decay": 0.0, "amsgrad": True},
        {"params": [("embed.weight", theirs["embed.weight"])], "lr": 1e-3, "betas": (0.8, 0.99)},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1)
    described = optimizer.state_dict()["param_groups"]
    nested = {"embed": {"weight": 0}, "dense": {"weight": 0, "bias": 0}, "norm": {"weight": 0}}

    def tree(values):
        return {
            module: {leaf: jnp.asarray(values[f"{module}.{leaf}"]) for leaf in part} for module, part in nested.items()
        }

    by_name = interop.torch.from_param_groups(described, "AdamW")
    by_pattern = interop.torch.from_param_groups(described, "AdamW", patterns=["", "*/bias|norm/*", "embed/*"])
    for tx in (by_name, by_pattern):
        ends = run.end_of_trees(tx, tree(start), [tree(grad) for grad in grads])
        for grad in grads if tx is by_name else []:
            for name, weight in theirs.items():
                weight.grad = torch.tensor(grad[name])
            optimizer.step()
        for name, weight in theirs.items():
            module, leaf = name.split(".")
            end = weight.detach().numpy()
            assert run.relative_error(np.asarray(ends[module][leaf]), end, start[name]) <= 1e-12


def test_groups_without_a_name_or_a_pattern_are_refused():
    group = RECORDS[0]["group"]
    with pytest.raises(ValueError, match=r"groups\[0\] has no param_names to go by.*patterns="):
        interop.torch.from_param_groups([group])
    with pytest.raises(ValueError, match="patterns needs one for each of the 2 groups, got 1"):
        interop.torch.from_param_groups([group, group], patterns=["*"])
    with pytest.raises(TypeError, match="use from_param_group"):
        interop.torch.from_param_groups(group)
    with pytest.raises(ValueError, match="patterns has '' for 2 groups"):
        interop.torch.from_param_groups([group, group], patterns=["", ""])


COARSE = 3.4445**4 * 2.0**-9
"""What a rounding to bfloat16 in the first of five steps may become: each of the others multiplies it by 3.4445."""
MUON = next(record["group"] for record in RECORDS if record["optimizer"] == "Muon")


def test_muon_takes_kernels_as_flax_has_them_and_products_as_pytorch_makes_them():
    grad = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    theirs, of_flax, coarse = (
        interop.torch.from_param_group(MUON | own, "Muon") for own in ({}, {"axes": (0, 1)}, {"dtype": jnp.bfloat16})
    )
    first, turned, rounded = (
        np.asarray(tx.update(g, tx.init(g), g)[0]) for tx, g in ((theirs, grad), (of_flax, grad.T), (coarse, grad))
    )
    np.testing.assert_allclose(turned.T, first, rtol=1e-5)
    assert 0 < np.abs(rounded - first).max() < COARSE * np.abs(first).max()


def test_an_adjustment_of_muon_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="adjust_lr_fn='mine' cannot be honoured: it must be one of"):
        interop.torch.from_param_group(MUON | {"adjust_lr_fn": "mine"}, "Muon")


@pytest.mark.torch
def test_muon_of_torch_itself_in_bfloat16_is_as_near_as_bfloat16_is():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(0)
    start, grads = rng.standard_normal((8, 5)).astype(np.float32), rng.standard_normal((20, 8, 5)).astype(np.float32)
    weights = torch.tensor(start, requires_grad=True)
    optimizer = torch.optim.Muon([weights], lr=0.01)
    for grad in grads:
        weights.grad = torch.tensor(grad)
        optimizer.step()
    (group,) = optimizer.state_dict()["param_groups"]
    ours = run.trajectory(interop.torch.from_param_group(group, "Muon"), start, grads)[-1]
    assert run.relative_error(ours, weights.detach().numpy(), start) < COARSE
