"""The state of a PyTorch optimizer goes on here, and there again."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
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


def read_of(record, params):
    """What it kept half way; SGD and Muon keep no step."""
    read = from_state_dict(state_dict_of(record), params, record["optimizer"], names=[""])
    return read | {"count": 50} if record["optimizer"] in ("SGD", "Muon") else read


@some_and_all
def test_a_hundred_steps_of_which_torch_made_the_first_fifty_agree_with_torch_to_1e_12(records, x64):
    begun, problems = [], {1: oracles.problem(), 2: oracles.matrix_problem()}
    halves = {ndim: jnp.asarray(grads[50:]) for ndim, (_, grads) in problems.items()}
    for record in records:
        tx, params = from_param_group(record["group"], record["optimizer"]), jnp.asarray(record["half"]["params"])
        begun.append((tx, params, adam_tx.import_state(tx, params, read_of(record, params))))
    found = jax.jit(lambda: [ends([case], halves[case[1].ndim])[0] for case in begun])()
    for record, end in zip(records, found, strict=True):
        start, _ = problems[end[0].ndim]
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
        state = adam_tx.import_state(tx, params, read_of(record, params))
        exported = adam_tx.export_state(state, params, tx)
        back = to_state_dict(exported, given, params, optimizer, names=[""])["state"][0]
        assert list(back) == list(given["state"][0]), optimizer
        for slot, value in given["state"][0].items():
            np.testing.assert_array_equal(back[slot], value, err_msg=f"{optimizer} {slot}")


SHAPES = {"conv/kernel": (4, 2, 3, 3), "dense/kernel": (3, 5), "dense/bias": (3,), "embed": (6, 2)}
FLAGS = {"maximize": True, "weight_decay": 0.1}
CASES = {
    "Adam": FLAGS | {"amsgrad": True},
    "AdamW": FLAGS | {"amsgrad": True},
    "NAdam": FLAGS | {"decoupled_weight_decay": True},
    "RAdam": FLAGS | {"decoupled_weight_decay": True},
    "Adamax": FLAGS,
    "RMSprop": FLAGS | {"centered": True, "momentum": 0.9},
    "Adagrad": FLAGS | {"lr_decay": 0.1, "initial_accumulator_value": 0.5},
    "SGD": FLAGS | {"dampening": 0.5},
}
ALWAYS = {"SGD": {"lr": 0.01, "momentum": 0.9}}  # without momentum it keeps nothing


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
    flags = CASES[optimizer]
    settings = [{}, *({flag: value} for flag, value in flags.items()), flags]  # none, each alone, and all

    def make(setting, params):
        weights = {path: torch.tensor(np.array(value), requires_grad=True) for path, value in params.items()}
        return weights, getattr(torch.optim, optimizer)(
            weights.values(), **(ALWAYS.get(optimizer, {"lr": 0.01}) | setting)
        )

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
                read |= {"count": 50} if optimizer == "SGD" else {}
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


TWO = {"a": {"kernel": np.zeros((2, 3), np.float32)}, "b": np.zeros(3, np.float32)}


def two_entries(steps=(5, 5), **extra):
    """A state_dict of two parameters, a Linear and a bias, that have made these steps."""
    rng = np.random.default_rng(0)
    entries = {
        i: {
            "step": np.float32(step),
            **{slot: rng.uniform(0.1, 1, shape).astype(np.float32) for slot in ("exp_avg", "exp_avg_sq")},
        }
        for i, (step, shape) in enumerate(zip(steps, [(3, 2), (3,)], strict=True))
    }
    group = {"params": [0, 1], "betas": (0.9, 0.999), "amsgrad": False, "param_names": ["a.kernel", "b"]}
    return {"state": entries, "param_groups": [group | extra]}


def test_names_come_from_the_groups_or_from_the_caller():
    given, axes = two_entries(), {"*/kernel": (1, 0)}
    by_group = from_state_dict(given, TWO, axes=axes)
    np.testing.assert_array_equal(by_group["mu/a/kernel"], given["state"][0]["exp_avg"].T)
    renamed = two_entries(param_names=["layer.0.weight", "b"])
    for names in ({"layer.0.weight": "a/kernel"}, ["a/kernel", "b"]):
        again = from_state_dict(renamed, TWO, names=names, axes=axes)
        assert again.keys() == by_group.keys()
        np.testing.assert_array_equal(again["mu/a/kernel"], by_group["mu/a/kernel"])


def test_parameters_that_made_different_steps_need_counts_of_their_own_and_go_on_with_them():
    late = from_state_dict(two_entries(steps=(5, 2)), TWO, axes=flax_axes)
    assert (int(late["count/a/kernel"]), int(late["count/b"])) == (5, 2)
    adam = adam_tx.adam(1e-3)
    with pytest.raises(ValueError, match=r"count is one for all parameters .* a/kernel 5, b 2; .* optax.partition"):
        adam_tx.import_state(adam, TWO, late)
    apart = optax.partition({"early": adam, "late": adam}, {"a": {"kernel": "early"}, "b": "late"})
    state = adam_tx.import_state(apart, TWO, late)
    updates, _ = apart.update(jax.tree.map(jnp.ones_like, TWO), state, TWO)
    for path, update, steps in (("a/kernel", updates["a"]["kernel"], 6), ("b", updates["b"], 3)):
        mu, nu = 0.9 * late[f"mu/{path}"] + 0.1, 0.999 * late[f"nu/{path}"] + 0.001
        exact = -1e-3 * mu / (1 - 0.9**steps) / (np.sqrt(nu / (1 - 0.999**steps)) + 1e-8)
        np.testing.assert_allclose(update, exact, rtol=1e-6)


def test_a_parameter_without_a_step_has_no_entry_on_either_side():
    given = two_entries(steps=(4, 0))
    del given["state"][1]
    read = from_state_dict(given, TWO, axes=flax_axes)
    assert sorted(read) == ["count", "mu.decay", "mu/a/kernel", "nu.decay", "nu/a/kernel"]
    assert list(to_state_dict(read, given, TWO, axes=flax_axes)["state"]) == [0]
    with pytest.raises(ValueError, match="mu/b is missing"):
        adam_tx.import_state(adam_tx.adam(1e-3), TWO, read)
    told = []
    adam_tx.import_state(adam_tx.adam(1e-3), TWO, read, fresh="*/b", report=told.append)
    assert "note: mu of b starts from zero, but is debiased by weight_mu like that of older parameters" in told[0]
    state = two_entries(steps=(4, 3))["state"]
    with pytest.raises(ValueError, match="needs exp_avg of b, but exported has no mu/b"):
        to_state_dict(read, given | {"state": state}, TWO, axes=flax_axes)
    with pytest.raises(ValueError, match="exported has nothing of any parameter"):
        to_state_dict({"count": 4}, given | {"state": {}}, TWO, axes=flax_axes)


def test_eight_bit_states_of_bitsandbytes_are_decoded():
    rng, n = np.random.default_rng(0), 600
    qmap, codes = np.linspace(-1, 1, 256, dtype=np.float32), rng.integers(0, 256, n).astype(np.uint8)
    largest = np.array([1.0, 2.0, 4.0], np.float32)
    groups = [{"params": [0], "betas": (0.9, 0.999)}]
    quantised = {f"{key}{k}": v for k in (1, 2) for key, v in (("state", codes), ("qmap", qmap), ("absmax", largest))}
    given = {"state": {0: {"step": 7, "__bnb_optimizer_quant_state__": quantised}}, "param_groups": groups}
    read = from_state_dict(given, np.zeros(n, np.float32), names=[""])
    np.testing.assert_array_equal(read["mu"], qmap[codes] * np.repeat(largest, 256)[:n])
    assert int(read["count"]) == 7
    whole = {"state": {0: {"step": 7, "state1": np.ones(3), "state2": np.ones(3)}}, "param_groups": groups}
    assert from_state_dict(whole, np.zeros(3, np.float32), names=[""])["nu"].tolist() == [1, 1, 1]


def test_foreign_damaged_and_misnamed_state_dicts_are_refused_by_what_is_wrong_with_them():
    good = {"axes": flax_axes}
    for change, options, reason in (
        (lambda d: d.pop("state"), good, "state_dict must be what optimizer.state_dict"),
        (lambda d: d["state"].clear(), good, "its state is empty"),
        (lambda d: d["state"][0].pop("exp_avg"), good, r"state of a/kernel has .*\['exp_avg'\] missing"),
        (lambda d: d["state"][0].update(square_avg=1), good, r"\['square_avg'\] too many"),
        (lambda d: d["state"][0].update(step=2.5), good, "the step of a/kernel is 2.5"),
        (lambda d: d["state"][0].update(step=np.nan), good, "the step of a/kernel is nan"),
        (lambda d: d["state"][1].update(exp_avg=np.ones(4)), good, r"exp_avg of b has shape \(4,\)"),
        (lambda d: None, {}, r"exp_avg of a/kernel has shape \(3, 2\), .* Are its axes in another order"),
        (lambda d: None, {"names": ["b", "a/kernel"]}, r"exp_avg of b has shape \(3, 2\)"),
        (lambda d: None, {"names": ["b", "c"]}, "no parameter: c"),
        (lambda d: None, {"names": ["b", "b"]}, "twice: b"),
        (lambda d: None, {"names": ["b"]}, "names has 1 paths, but there are 2 parameters"),
        (lambda d: d["param_groups"][0].pop("param_names"), good, "its groups have no param_names"),
        (lambda d: None, {"axes": {"b": (1, 0)}}, r"axes gives \(1, 0\) for b, but must give each of its 1 axes once"),
        (lambda d: None, {"optimizer": "RMSprop"}, r"too many .* such as Adam; say which"),
        (lambda d: None, {"optimizer": "Lion"}, "optimizer must be one of"),
        (lambda d: None, good | {"optimizer": "RAdam"}, r"a group with \['amsgrad'\] is of another class"),
        (lambda d: d["state"][0].update(mu_product=0.5), good, r"\['mu_product'\] too many"),
        (lambda d: d["state"][0].pop("step"), good, r"\['step'\] missing"),
        (lambda d: d["state"].update({"0": d["state"].pop(0)}), good, r"entries for \['0'\], but the parameters"),
        (lambda d: d["state"].update({0: {"momentum_buffer": np.ones((3, 2))}}), good, "momentum_buffer.*too many"),
    ):
        given = two_entries()
        change(given)
        with pytest.raises(ValueError, match=reason):
            from_state_dict(given, TWO, **options)


def test_what_torch_needs_or_cannot_hold_is_an_error_on_the_way_out():
    like, read = two_entries(), from_state_dict(two_entries(), TWO, axes=flax_axes)
    with pytest.raises(ValueError, match="needs max_exp_avg_sq of a/kernel, but exported has no nu_max/a/kernel"):
        to_state_dict(read, two_entries(amsgrad=True), TWO, axes=flax_axes)
    with pytest.raises(ValueError, match=r"exp_avg of b has shape \(4,\), but the parameter has \(3,\)"):
        to_state_dict(read | {"mu/b": np.ones(4)}, like, TWO, axes=flax_axes)
    one = {"count": np.int32(1), "mu": np.ones(2), "nu": np.ones(2), "nu_max_of_debiased": np.ones(2)}
    with pytest.raises(ValueError, match="has no place for nu_max_of_debiased"):
        to_state_dict(one, {"state": {}, "param_groups": [{"params": [0]}]}, np.ones(2), names=[""])
    with pytest.raises(ValueError, match="exported has no count"):
        to_state_dict({key: v for key, v in read.items() if key != "count"}, like, TWO, axes=flax_axes)
    with pytest.raises(ValueError, match=r"has no place for trace/b. If that may be lost, say so: drop='trace'"):
        to_state_dict(read | {"trace/b": np.ones(3)}, like, TWO, axes=flax_axes)
    assert to_state_dict(read | {"trace/b": np.ones(3)}, like, TWO, axes=flax_axes, drop="trace")["state"]
    with pytest.raises(ValueError, match=r"weight_nu is 0.5, but after 5 steps it debiases by 1 - 0.999\^5"):
        to_state_dict(read | {"weight_nu": np.array([0.5, 0.0])}, like, TWO, axes=flax_axes)


def test_sgd_keeps_no_step_and_without_momentum_nothing():
    group = {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.9, "dampening": 0.0, "nesterov": False, "params": [0]}
    params, there = {"w": jnp.ones(2)}, {"names": ["w"]}
    given = {"state": {0: {"momentum_buffer": np.ones(2)}}, "param_groups": [group]}
    read, tx = from_state_dict(given, params, "SGD", **there), from_param_group(group, "SGD")
    assert list(read) == ["trace/w"]
    with pytest.raises(ValueError, match="count is missing"):
        adam_tx.import_state(tx, params, read)
    state = adam_tx.import_state(tx, params, read | {"count": 7})
    back = to_state_dict(adam_tx.export_state(state, params, tx), given, params, "SGD", **there)
    assert back["state"][0]["momentum_buffer"].tolist() == [1.0, 1.0]
    plain = {"state": {}, "param_groups": [group | {"momentum": 0}]}
    with pytest.raises(ValueError, match="it has made no step, or keeps nothing"):
        from_state_dict(plain, params, "SGD", **there)
    tx = from_param_group(plain["param_groups"][0], "SGD")
    exported = adam_tx.export_state(tx.init(params), params, tx)
    assert to_state_dict(exported, plain, params, "SGD", **there)["state"] == {}


def case_of_100_steps(betas):
    """Moments of a constant gradient after a hundred steps, as PyTorch has them, and the parameters."""
    grad = np.float32(0.1)
    slots = {"exp_avg": grad * (1 - betas[0] ** 100), "exp_avg_sq": grad**2 * (1 - betas[1] ** 100)}
    return {"step": np.float32(100), **{slot: np.full(3, value, np.float32) for slot, value in slots.items()}}


@pytest.mark.parametrize("to", [{"b2": 0.95}, {"b2": 0.9999}, {"b1": 0.5}, {"b1": 0.99, "b2": 0.99}])
@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", "RAdam"])
def test_moments_are_debiased_by_the_decays_that_made_them(optimizer, to):
    """The gradient is the same in every step, so every step has the length of the learning rate."""
    groups = [{"params": [0], "betas": (0.9, 0.999)}, {"params": [1], "betas": (0.8, 0.99)}]
    params = {"a": jnp.zeros(3), "b": jnp.zeros(3)}
    entries = {i: case_of_100_steps(group["betas"]) for i, group in enumerate(groups)}
    read = from_state_dict({"state": entries, "param_groups": groups}, params, optimizer, names=["a", "b"])
    for path in params:
        alone = {key: value for key, value in read.items() if key.endswith(f"/{path}") or key == "count"}
        tx = adam_tx.adam(1e-3, **to)
        state = adam_tx.import_state(tx, {path: params[path]}, alone)
        updates, _ = tx.update({path: jnp.full(3, 0.1)}, state, {path: params[path]})
        np.testing.assert_allclose(updates[path] / -1e-3, 1.0, rtol=1e-5)


def test_moments_of_any_class_come_into_adam_with_the_decays_that_made_them():
    """Where the class itself does not debias them, too; NAdam and RMSprop have other weights or none."""
    rms = {"alpha": 0.9, "momentum": 0, "centered": False}
    for optimizer, group in (("NAdam", {"betas": (0.8, 0.9)}), ("RMSprop", rms)):
        nu = {"exp_avg_sq" if optimizer == "NAdam" else "square_avg": np.full(3, 0.01 * (1 - 0.9**10))}
        mu = {"exp_avg": np.full(3, 0.1 * (1 - 0.8**10)), "mu_product": 0.5} if optimizer == "NAdam" else {}
        given = {"state": {0: {"step": 10, **nu, **mu}}, "param_groups": [{"params": [0], **group}]}
        params, tx = {"w": jnp.zeros(3)}, adam_tx.adam(1.0, b1=0.5, b2=0.99)
        read = from_state_dict(given, params, optimizer, names=["w"])
        state = adam_tx.import_state(tx, params, read, fresh="mu", drop="weight_mu_read", report=None)
        np.testing.assert_allclose(adam_tx.export_state(state, params, tx)["weight_nu"].sum(), 1 - 0.9**10, rtol=1e-6)


def test_decays_that_are_missing_or_that_a_scheduler_has_varied_are_refused():
    for betas in (None, 0.9, (0.9,), (0.9, 1.5), (np.nan, 0.999)):
        with pytest.raises(ValueError, match="betas"):
            from_state_dict(two_entries(betas=betas), TWO, axes=flax_axes)
    cycled = two_entries(max_momentum=0.95, base_momentum=0.85)
    with pytest.raises(
        ValueError, match=r"betas=\(0.9, 0.999\) .*\['max_momentum', 'base_momentum'\] .*\(schedule, 0.9"
    ):
        from_state_dict(cycled, TWO, axes=flax_axes)
    cycled["param_groups"][0]["betas"] = (lambda count: jnp.where(count < 3, 0.5, 0.8), 0.999)
    tx = adam_tx.adam(1e-3, b1=0.3)
    state = adam_tx.import_state(tx, TWO, from_state_dict(cycled, TWO, axes=flax_axes))
    weight = adam_tx.export_state(state, TWO, tx)["weight_mu"]
    np.testing.assert_allclose(weight.sum(), 1 - 0.5**3 * 0.8**2, rtol=1e-6)


def test_a_sign_that_torch_puts_before_the_gradient_is_known_on_both_sides():
    given = two_entries(maximize=True)
    read = from_state_dict(given, TWO, axes=flax_axes)
    plain, turned = adam_tx.adam(1e-3), adam_tx.chain(("maximize", optax.scale(-1.0)), ("adam", adam_tx.adam(1e-3)))
    same = adam_tx.import_state(turned, TWO, read)
    np.testing.assert_array_equal(optax.tree.get(same, "mu")["b"], given["state"][1]["exp_avg"])
    other = adam_tx.import_state(plain, TWO, read, report=None)
    np.testing.assert_array_equal(optax.tree.get(other, "mu")["b"], -given["state"][1]["exp_avg"])
    np.testing.assert_array_equal(optax.tree.get(other, "nu")["b"], given["state"][1]["exp_avg_sq"])
    back = to_state_dict(adam_tx.export_state(other, TWO, plain), given, TWO, axes=flax_axes)
    np.testing.assert_array_equal(back["state"][1]["exp_avg"], given["state"][1]["exp_avg"])


@pytest.mark.torch
def test_bfloat16_tensors_become_float32_and_come_back_to_the_last_bit():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    weight = torch.nn.Parameter(torch.arange(6.0, dtype=torch.bfloat16).reshape(3, 2))
    made = torch.optim.AdamW([weight])
    weight.grad = torch.ones_like(weight) / 3
    made.step()
    given, params = made.state_dict(), {"kernel": np.zeros((2, 3), np.float32)}
    there = {"names": ["kernel"], "axes": flax_axes}
    read = from_state_dict(given, params, "AdamW", **there)
    assert read["mu/kernel"].dtype == np.float32
    back = to_state_dict(read, given, params, "AdamW", **there, tensor=torch.from_numpy)
    again = torch.optim.AdamW([weight])
    again.load_state_dict(back)
    for slot, value in given["state"][0].items():
        assert torch.equal(again.state[weight][slot], value)
        assert again.state[weight][slot].dtype == value.dtype


@pytest.mark.torch
@pytest.mark.parametrize("how", ["no gradient", "in no group"])
def test_frozen_parameters_of_torch_come_into_a_frozen_group_and_go_back(how):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    head = torch.nn.Parameter(torch.ones(3))
    base = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    named = [("head", head)] if how == "in no group" else [("base", base), ("head", head)]
    made = torch.optim.AdamW(named)
    for _ in range(3):
        made.zero_grad()
        (head * 2).sum().backward()
        made.step()
    given, params = made.state_dict(), {"base": jnp.ones(3), "head": jnp.ones(3)}
    read = from_state_dict(given, params, "AdamW")
    assert sorted(read) == ["count", "mu.decay", "mu/head", "nu.decay", "nu/head"]
    live = from_param_group(given["param_groups"][0], "AdamW")
    tx = adam_tx.groups({"base": "freeze"}, default=live)
    state = adam_tx.import_state(tx, params, read)
    updates, state = tx.update({"base": jnp.ones(3), "head": jnp.full(3, 2.0)}, state, params)
    assert not np.any(updates["base"])
    exported = adam_tx.export_state(state, params, tx)
    back = to_state_dict(exported, given, params, "AdamW", tensor=torch.from_numpy)
    made.load_state_dict(back)
    assert [float(entry["step"]) for entry in made.state.values()] == [4.0]
    with pytest.raises(ValueError, match="mu/base is missing"):
        adam_tx.import_state(live, params, read)
    if how == "in no group":
        state = live.init(params)
        with pytest.raises(ValueError, match="has no place for mu/base, nu/base"):
            to_state_dict(adam_tx.export_state(state, params, live), given, params, "AdamW")


@pytest.mark.torch
@pytest.mark.parametrize("transpose_kernel", [False, True])
def test_a_transposed_convolution_is_turned_as_flax_reads_it(transpose_kernel):
    torch, flax = pytest.importorskip("torch", reason="PyTorch is not installed"), pytest.importorskip("flax.linen")
    rng = np.random.default_rng(0)
    kernel, x = rng.standard_normal((4, 4, 3, 2), dtype=np.float32), rng.standard_normal((1, 5, 6, 4), dtype=np.float32)
    entry = {"step": 1.0, "exp_avg": kernel, "exp_avg_sq": kernel**2}
    given = {"state": {0: entry}, "param_groups": [{"params": [0], "betas": (0.9, 0.999), "amsgrad": False}]}
    params, there = {"ConvTranspose_0": {"kernel": np.zeros((3, 2, 4, 4))}}, {"names": ["ConvTranspose_0/kernel"]}
    with pytest.raises(ValueError, match=r'axes=\{"ConvTranspose_0/kernel": \(~2, ~3, 0, 1\), "\*": flax_axes\}'):
        from_state_dict(given, params, **there, axes=flax_axes)
    order = (2, 3, 1, 0) if transpose_kernel else (~2, ~3, 0, 1)
    there |= {"axes": {"*/ConvTranspose_*/kernel": order, "*": flax_axes}}
    read = from_state_dict(given, params, **there)
    layer = flax.ConvTranspose(
        4, (3, 2), (2, 2), padding="VALID", use_bias=False, transpose_kernel=transpose_kernel, precision="highest"
    )
    ours = layer.apply({"params": {"kernel": read["mu/ConvTranspose_0/kernel"]}}, x)
    theirs = torch.nn.functional.conv_transpose2d(torch.tensor(x).movedim(-1, 1), torch.tensor(kernel), stride=2)
    np.testing.assert_allclose(ours, theirs.movedim(1, -1), rtol=0, atol=1e-5)
    back = to_state_dict(read, given, params, **there)["state"][0]
    np.testing.assert_array_equal(back["exp_avg"], kernel)
    np.testing.assert_array_equal(back["exp_avg_sq"], kernel**2)
