"""A PyTorch run with a scheduler goes on under the schedule that it had, and is not frozen at its last rate."""

import json
import pathlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import run
from catalogue import costly

import adam_tx
from adam_tx.interop.torch import from_param_group, from_param_groups, from_state_dict, with_schedules

GOLDENS = pathlib.Path(__file__).parent / "goldens"
RECORDED = json.loads((GOLDENS / "torch_schedulers.json").read_text())
RECORDING = run.load_script(GOLDENS / "record_torch_schedulers.py")
TOLD = {"LambdaLR": {"scheduler_class": "LambdaLR", "lr_lambda": RECORDING.shrinking}}
"""What has to be said of a scheduler beside its state."""
EVERY_RUN = "CosineAnnealingLR", "OneCycleLR", "SequentialLR of many"

SCHEDULED = {"a.kernel": (3, 2), "b": (3,)}


def cosine(rate):
    return optax.cosine_decay_schedule(rate, 60)


def one_cycle(first, top, last, after=0.3, total=60):
    """What OneCycleLR gives at each step, which has no closed form in Optax, as a function of the count."""
    up = after * total - 1

    def at(count):
        rising = jnp.clip(count / up, 0, 1)
        falling = jnp.clip((count - up) / (total - 1 - up), 0, 1)

        def anneal(begin, end, part):
            return end + (begin - end) / 2 * (1 + jnp.cos(jnp.pi * part))

        return jnp.where(count <= up, anneal(first, top, rising), anneal(top, last, falling))

    return at


SCHEDULERS = {
    "cosine": (
        "AdamW",
        lambda torch, made: torch.optim.lr_scheduler.CosineAnnealingLR(made, 60),
        lambda group: {"lr": cosine(group["initial_lr"])},
    ),
    "an epoch of seven steps": (
        "Adam",
        lambda torch, made: torch.optim.lr_scheduler.StepLR(made, 7, 0.5),
        lambda group: {"lr": lambda count: group["initial_lr"] * 0.5 ** (count // 7)},
    ),
    "one cycle": (
        "AdamW",
        lambda torch, made: torch.optim.lr_scheduler.OneCycleLR(made, 0.02, 60, cycle_momentum=False),
        lambda group: {"lr": one_cycle(group["initial_lr"], group["max_lr"], group["min_lr"])},
    ),
    "one cycle, of momentum too": (
        "SGD",
        lambda torch, made: torch.optim.lr_scheduler.OneCycleLR(made, 0.02, 60),
        lambda group: {
            "lr": one_cycle(group["initial_lr"], group["max_lr"], group["min_lr"]),
            "momentum": one_cycle(group["max_momentum"], group["base_momentum"], group["max_momentum"]),
        },
    ),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", SCHEDULERS)
def test_thirty_steps_under_a_scheduler_there_and_twenty_here_are_fifty_there(name, x64, standard_promotion):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    optimizer, scheduler, schedule = SCHEDULERS[name]
    rng = np.random.default_rng(0)
    start = {path: rng.standard_normal(shape) for path, shape in SCHEDULED.items()}
    grads = [{path: rng.standard_normal(shape) for path, shape in SCHEDULED.items()} for _ in range(50)]
    weights = {path: torch.tensor(value, requires_grad=True) for path, value in start.items()}
    of_class = {"momentum": (0.9, 0.9)} if optimizer == "SGD" else {"betas": ((0.9, 0.999), (0.8, 0.95))}
    groups = [
        {"params": [(path, weight)], "lr": 0.01 / (1 + k), **{key: values[k] for key, values in of_class.items()}}
        for k, (path, weight) in enumerate(weights.items())
    ]
    made = getattr(torch.optim, optimizer)(groups)
    scheduled = scheduler(torch, made)

    def steps(some):
        for grad in some:
            for path, weight in weights.items():
                weight.grad = torch.tensor(grad[path])
            made.step()
            scheduled.step()
        return {path: jnp.asarray(weight.detach().numpy().copy()) for path, weight in weights.items()}

    def tree(values):
        return {"a": {"kernel": jnp.asarray(values["a.kernel"])}, "b": jnp.asarray(values["b"])}

    params, given = tree(steps(grads[:30])), made.state_dict()
    with pytest.raises(ValueError, match=r"lr=.* cannot be honoured: a scheduler, which left \['initial_lr'"):
        from_param_groups(given["param_groups"], optimizer)
    by_hand = from_param_groups([group | schedule(group) for group in given["param_groups"]], optimizer)
    tx = from_param_groups(given["param_groups"], optimizer, scheduler=scheduled.state_dict())
    for by, hand in zip(jax.tree.leaves(tx.init(params)), jax.tree.leaves(by_hand.init(params)), strict=True):
        assert by.shape == hand.shape
    read = from_state_dict(given, params, optimizer) | ({"count": 30} if optimizer == "SGD" else {})
    state = adam_tx.import_state(tx, params, read)

    def stepped(carry, grad):
        updates, state = tx.update(grad, carry[1], carry[0])
        return (jax.tree.map(run.apply_updates, carry[0], updates), state), None

    ends, _ = jax.lax.scan(
        stepped,
        (params, state),
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(tree, grads[30:])),
    )[0]
    theirs = tree(steps(grads[30:]))
    for mine, their in zip(jax.tree.leaves(ends), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, their, rtol=1e-12)


def rates(schedule, epochs):
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.asarray(epochs, jnp.int32)))


@pytest.mark.parametrize("case", costly(list(RECORDED), EVERY_RUN))
def test_a_scheduler_goes_on_as_pytorch_was_recorded(case, x64, standard_promotion):
    """PyTorch computes most rates from the one before, over two hundred steps: some 1e-15 from the closed form."""
    recorded = RECORDED[case]
    groups = with_schedules(recorded["groups"], recorded["state"], **TOLD.get(case, {}))
    epochs = recorded["epochs"]
    theirs = np.asarray(recorded["rates"])
    for position, group in enumerate(groups):
        np.testing.assert_allclose(rates(group["lr"], epochs), theirs[:, position], 1e-12, 1e-13 * theirs.max())
    b1 = groups[0]["betas"][0]
    if callable(b1):
        np.testing.assert_allclose(rates(b1, epochs), recorded["momenta"], 1e-12)
    assert callable(b1) == (case == "OneCycleLR")


@pytest.mark.torch
@pytest.mark.parametrize("case", costly(list(RECORDED), EVERY_RUN))
def test_a_scheduler_goes_on_as_pytorch_does_from_its_start_and_from_the_middle(case, x64, standard_promotion):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    found, states = RECORDING.run(case, [0, 1, 61, 150])
    theirs = np.asarray(found)
    for groups, state in states.values():
        for position, group in enumerate(with_schedules(groups, state, **TOLD.get(case, {}))):
            mine = rates(group["lr"], range(len(found)))
            np.testing.assert_allclose(mine, theirs[:, position, 0], 1e-12, 1e-13 * theirs[..., 0].max())


@pytest.mark.torch
def test_a_scheduler_may_be_given_itself_and_then_its_class_is_known():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    made = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler
    warm = scheduler.LambdaLR(made, lambda epoch: (epoch + 1) / 5)
    whole = scheduler.SequentialLR(made, [warm, scheduler.CosineAnnealingLR(made, 20)], [4])
    groups = made.state_dict()["param_groups"]
    (group,) = with_schedules(groups, whole, lr_lambda=lambda epoch: (epoch + 1) / 5)
    named = {"scheduler_class": ["LambdaLR", None], "lr_lambda": lambda epoch: (epoch + 1) / 5}
    (said,) = with_schedules(groups, whole.state_dict(), **named)
    for schedule in (group["lr"], said["lr"]):
        np.testing.assert_allclose(rates(schedule, [0, 3, 4, 14]), [0.02, 0.08, 0.1, 0.05], 1e-6)
    with pytest.raises(ValueError, match=r"\['lr_lambdas'\] may be that of LambdaLR or MultiplicativeLR; say which"):
        with_schedules(groups, whole.state_dict(), lr_lambda=lambda epoch: 1.0)


ADAM = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False, "maximize": False}
HALVED = {"gamma": 0.5, "step_size": 1, "base_lrs": [0.4, 0.8], "last_epoch": 2, "_last_lr": [0.1, 0.2]}
GROUPS = [{"lr": lr, "initial_lr": 4 * lr, **ADAM} for lr in (0.1, 0.2)]


def test_an_epoch_may_have_several_updates_and_a_fresh_state_counts_from_the_scheduler_on():
    def found(counts, **told):
        groups = with_schedules(GROUPS, HALVED, **told)
        return [[float(group["lr"](jnp.int32(count))) for count in counts] for group in groups]

    once, twice = np.float32([0.4, 0.2, 0.1, 0.05]).tolist(), np.float32([0.8, 0.4, 0.2, 0.1]).tolist()
    assert found([0, 1, 2, 3]) == [once, twice]
    assert found([9, 19, 29, 30], steps_per_epoch=10) == [once, twice]
    assert found([0, 1], updates_before=0) == [once[2:], twice[2:]]
    assert (
        found([24, 25, 34, 35], steps_per_epoch=10, updates_before=25)[0] == np.float32([0.2, 0.1, 0.1, 0.05]).tolist()
    )


def test_groups_under_a_scheduler_are_data_and_make_their_steps():
    groups = json.loads(json.dumps(GROUPS))
    tx = from_param_groups(groups, "AdamW", patterns=["", "b"], scheduler=HALVED)
    again = adam_tx.from_config(json.loads(json.dumps(adam_tx.get_config(tx))))
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    for made in (tx, again, pickle.loads(pickle.dumps(tx))):
        state = made.init(params)
        updates, _ = made.update(params, state, params)
        np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [-0.4, -0.8], 1e-6)


REFUSED = {
    "a class that is not known": (
        {"patience": 10, "best": 1.0, "last_epoch": 2, "_last_lr": [0.1]},
        {},
        r"with \['best', 'patience'\] is not known as that of any scheduler; it must be of one of \['ChainedSch.*Give",
    ),
    "two classes": (HALVED | {"lr_lambdas": [None]}, {}, r"\['gamma', 'lr_lambdas', .* of any scheduler"),
    "no closed form": (
        {"lr_lambdas": [None] * 2, "base_lrs": [0.4, 0.8], "last_epoch": 2},
        {"scheduler_class": "MultiplicativeLR"},
        "MultiplicativeLR: .*has no closed form here. Give the group a schedule",
    ),
    "another class than its keys": (HALVED, {"scheduler_class": "LinearLR"}, "is not known as that of LinearLR"),
    "no function": (
        {"lr_lambdas": [None] * 2, "base_lrs": [0.4, 0.8], "last_epoch": 2},
        {"scheduler_class": "LambdaLR"},
        "LambdaLR: its state does not say what it multiplies by; give lr_lambda=",
    ),
    "another moment": (
        HALVED | {"last_epoch": 1},
        {},
        r"StepLR: groups\[0\]\['lr'\]=0.1 .* at epoch 1 it gives 0.2. Give the state_dict\(\) of optimizer and",
    ),
    "no epoch": ({"gamma": 0.5, "base_lrs": [0.4, 0.8]}, {}, "ExponentialLR: last_epoch=None .* a whole number"),
    "fewer groups": (HALVED | {"base_lrs": [0.4]}, {}, r"base_lrs=\[0.4\] .* one for each group, also for 1"),
    "a number that is out of range": (
        HALVED | {"step_size": 0},
        {},
        "step_size=0 cannot be honoured: it must be a whole",
    ),
    "no state": ([1.0], {}, r"scheduler: it must be scheduler.state_dict\(\), got list"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_gone_on_with_is_refused(case):
    state, told, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=message):
        with_schedules(GROUPS, state, **told)


def test_what_a_scheduler_has_set_is_refused_until_a_schedule_stands_in_its_place():
    adam = {"lr": 0.003, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False, "maximize": False}
    sgd = {"lr": 0.003, "momentum": 0.9, "dampening": 0, "nesterov": False, "weight_decay": 0.0, "maximize": False}
    cycle = {"initial_lr": 4e-4, "max_lr": 0.01, "min_lr": 4e-8}
    schedule = optax.constant_schedule(0.003)
    for marks in ({"initial_lr": 0.01}, cycle, {"swa_lr": 0.05}):
        with pytest.raises(
            ValueError,
            match=r"lr=0.003 .*scheduler=.* \| \{'lr': schedule\}.*constant_schedule\(0.003\) keeps",
        ):
            from_param_group(adam | marks)
        from_param_group(adam | marks | {"lr": schedule})
    momentum = cycle | {"max_momentum": 0.95, "base_momentum": 0.85, "lr": schedule}
    with pytest.raises(ValueError, match=r"betas=\(0.9, 0.999\) .*'max_momentum'.*\{'betas': \(schedule, 0.999\)\}"):
        from_param_group(adam | momentum)
    with pytest.raises(ValueError, match=r"momentum=0.9 cannot .*\{'momentum': schedule\}"):
        from_param_group(sgd | momentum, "SGD")
    from_param_group(adam | momentum | {"betas": (optax.constant_schedule(0.9), 0.999)})
    from_param_group(sgd | momentum | {"momentum": optax.constant_schedule(0.9)}, "SGD")


def test_groups_of_bitsandbytes_and_torchao_are_taken_as_they_are():
    common = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "params": [0]}
    bitsandbytes = {"lr": 1e-3, "alpha": 0.0, "t_alpha": None, "t_beta3": None, **common}
    torchao = {"lr": np.float32(1e-3), "amsgrad": False, **common}
    whole = {"lr": 1e-3, "amsgrad": False, "maximize": False, **common}
    params = jnp.ones(3)
    ends = []
    for group in (whole, bitsandbytes, torchao):
        tx = from_param_group(group, "AdamW")
        ends.append(tx.update(params, tx.init(params), params)[0])
    np.testing.assert_array_equal(ends[1], ends[0])
    np.testing.assert_allclose(ends[2], ends[0], rtol=1e-6)
    with pytest.raises(ValueError, match=r"\['alpha'\] cannot be honoured"):
        from_param_group(bitsandbytes | {"alpha": 5.0}, "AdamW")


def test_names_that_would_mean_something_else_in_a_pattern_are_taken_as_they_are():
    group = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False, "maximize": False}
    groups = [{"lr": 0.1, "param_names": ["!x.w"], **group}, {"lr": 0.01, "param_names": ["x.w", "a|x.w"], **group}]
    tx = adam_tx.interop.torch.from_param_groups(groups, "AdamW")
    params = {"!x": {"w": jnp.ones(1)}, "x": {"w": jnp.ones(1)}, "a|x": {"w": jnp.ones(1)}}
    updates, _ = tx.update(params, tx.init(params), params)
    found = {name: round(float(update["w"][0]), 4) for name, update in updates.items()}
    assert found == {"!x": -0.1, "x": -0.01, "a|x": -0.01}
