"""A PyTorch run with a scheduler goes on under the schedule that it had, and is not frozen at its last rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import run

import adam_tx
from adam_tx.interop.torch import from_param_group, from_param_groups, from_state_dict

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
    tx = from_param_groups([group | schedule(group) for group in given["param_groups"]], optimizer)
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


def test_what_a_scheduler_has_set_is_refused_until_a_schedule_stands_in_its_place():
    adam = {"lr": 0.003, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False, "maximize": False}
    sgd = {"lr": 0.003, "momentum": 0.9, "dampening": 0, "nesterov": False, "weight_decay": 0.0, "maximize": False}
    cycle = {"initial_lr": 4e-4, "max_lr": 0.01, "min_lr": 4e-8}
    schedule = optax.constant_schedule(0.003)
    for marks in ({"initial_lr": 0.01}, cycle, {"swa_lr": 0.05}):
        with pytest.raises(
            ValueError, match=r"lr=0.003 .* group \| \{'lr': schedule\}.*constant_schedule\(0.003\) keeps"
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
