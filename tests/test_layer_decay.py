"""Layer decay: the factors of timm and of BEiT, exactly; the steps of AdamW with them; what it costs."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import run
from cost import compiled_cost

import adam_tx
from adam_tx import layer_decay, times

TIMM = json.loads((pathlib.Path(__file__).parent / "goldens" / "timm.json").read_text())["records"]
EMBEDDINGS = "cls_token|pos_embed|patch_embed/*"


def nested(by_name):
    """The tree of parameters that PyTorch calls so."""
    tree = {}
    for name, value in by_name.items():
        *parents, leaf = name.split(".")
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[leaf] = value
    return tree


def by_name(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in jax.tree.leaves_with_path(tree)}


def undecayed(path, shape):
    return len(shape) <= 1 or path in ("cls_token", "pos_embed")


def settings_of(record):
    """Our groups for one of timm's models."""
    decay = record["decay"]
    shapes = nested({name: jax.ShapeDtypeStruct(of[0], jnp.float64) for name, of in record["params"].items()})
    # in timm the last norm belongs to the last block
    norm = {"norm/*": {"learning_rate": times(decay)}}
    no_decay = {undecayed: {"weight_decay": 0.0}}
    return layer_decay(decay, [EMBEDDINGS, "blocks/{n}/*", "head/*"], shapes) | norm | no_decay


@adam_tx.optimizer
def told(learning_rate: adam_tx.NonNegative, weight_decay: adam_tx.NonNegative):
    """Emits the learning rate and the decay that a leaf gets, as a complex number."""
    return adam_tx.chain(
        ("told", optax.stateless(lambda u, _: jax.tree.map(lambda x: 0 * x + complex(learning_rate, weight_decay), u)))
    )


@pytest.mark.parametrize("record", TIMM, ids=lambda record: f"depth {record['depth']}")
def test_each_parameter_gets_the_factor_and_the_decay_that_timm_gives_it_to_the_last_bit(record, x64):
    tx = adam_tx.groups(settings_of(record), {}, optimizer=told, overlap="merge", learning_rate=1.0, weight_decay=0.05)
    weights = nested({name: np.zeros(of[0], np.complex128) for name, of in record["params"].items()})
    found = by_name(tx.update(weights, tx.init(weights))[0])
    assert {name: [x.flat[0].real, x.flat[0].imag] for name, x in jax.tree.map(np.asarray, found).items()} == {
        name: of[1:] for name, of in record["params"].items()
    }


def beit_layer(name, layers):
    """The number of a parameter's layer in BEiT's `optim_factory.py`."""
    if name in ("cls_token", "mask_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks") else layers - 1


def test_the_factors_of_beit_have_the_last_norm_with_the_head():
    record = TIMM[0]
    layers = record["depth"] + 2
    names = nested(record["params"])
    found = layer_decay(0.9, [EMBEDDINGS, "blocks/{n}/*", "norm/*|head/*"], names)
    assert len(found) == layers
    patterns = {
        pattern: adam_tx.matching(pattern)({name.replace(".", "/"): 0 for name in record["params"]})
        for pattern in found
    }
    for name in record["params"]:
        (factor,) = (
            found[pattern]["learning_rate"].factor
            for pattern, marks in patterns.items()
            if marks[name.replace(".", "/")]
        )
        assert factor == 0.9 ** (layers - 1 - beit_layer(name, layers))


def problem(record, steps=20):
    rng = np.random.default_rng(0)
    small = {name: [min(size, 3) for size in of[0]] for name, of in record["params"].items()}
    start = {name: rng.normal(size=shape) for name, shape in small.items()}
    return start, {name: rng.normal(size=(steps, *shape)) for name, shape in small.items()}


def trained(tx, start, grads):
    def step(carry, grad):
        weights, state = carry
        updates, state = tx.update(grad, state, weights)
        return (optax.apply_updates(weights, updates), state), None

    weights = jax.tree.map(jnp.asarray, nested(start))
    return jax.jit(lambda w, g: jax.lax.scan(step, (w, tx.init(w)), g)[0])(
        weights, jax.tree.map(jnp.asarray, nested(grads))
    )


def ours(record):
    return adam_tx.groups(
        settings_of(record), {}, optimizer=adam_tx.adamw, overlap="merge", learning_rate=1e-2, weight_decay=0.05
    )


def test_twenty_steps_are_those_of_adamw_with_timms_rates_and_decays_to_1e_12(x64):
    record = TIMM[1]
    start, grads = problem(record)
    ends = by_name(trained(ours(record), start, grads)[0])
    for name, (_, scale, decay) in record["params"].items():
        exact = oracles.adam(start[name], grads[name], 1e-2 * scale, weight_decay=decay)[-1]
        assert run.relative_error(np.asarray(ends[name]), exact, start[name]) <= 1e-12


@pytest.mark.torch
def test_torch_with_timms_groups_makes_the_same_steps_and_its_groups_come_over(x64):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    record = TIMM[1]
    start, grads = problem(record)
    theirs = {name: torch.tensor(value, requires_grad=True) for name, value in start.items()}
    kinds = sorted({tuple(of[1:]) for of in record["params"].values()})
    groups = [
        {
            "params": [(name, theirs[name]) for name, of in record["params"].items() if tuple(of[1:]) == kind],
            "lr": 1e-2 * kind[0],
            "weight_decay": kind[1],
        }
        for kind in kinds
    ]
    optimizer = torch.optim.AdamW(groups)
    for t in range(20):
        for name, weight in theirs.items():
            weight.grad = torch.tensor(grads[name][t])
        optimizer.step()
    read = adam_tx.interop.torch.from_param_groups(optimizer.state_dict()["param_groups"], "AdamW")
    weights, state = trained(ours(record), start, grads)
    for name, end in by_name(weights).items():
        assert run.relative_error(np.asarray(end), theirs[name].detach().numpy(), start[name]) <= 1e-12
    # a step of each from the same state, which migrates both ways
    moved = adam_tx.migrate(state, ours(record), read, weights)
    gradient = jax.tree.map(jnp.sin, weights)
    one, _ = ours(record).update(gradient, state, weights)
    other, after = read.update(gradient, moved, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-12), one, other)
    back = adam_tx.migrate(after, read, ours(record), weights)
    assert jax.tree.structure(back) == jax.tree.structure(state)


@adam_tx.link
def scale_by_layer(layer_decay: adam_tx.Positive = 1.0):
    """Multiplies what is emitted for layer l of L in front, which `jax.lax.scan` goes through, by decay^(L - l)."""

    def rule(now, updates):
        to_output = jnp.arange(len(updates), 0, -1).astype(updates.dtype)
        factors = jnp.asarray(now.layer_decay, updates.dtype) ** to_output
        return updates * factors.reshape(-1, *[1] * (updates.ndim - 1))

    return adam_tx.Rule(rule, elementwise=False)


@adam_tx.optimizer
def adamw_of_layers(learning_rate: adam_tx.NonNegative, weight_decay: adam_tx.NonNegative, layer_decay=None):
    adamw = adam_tx.adamw(learning_rate, weight_decay=weight_decay)
    return adamw if layer_decay is None else adam_tx.chain(adamw, scale_by_layer(layer_decay))


@pytest.mark.exhaustive
def test_stacked_layers_get_the_rates_of_layers_by_themselves_from_a_link_of_a_few_lines():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    apart = {"blocks": [{"w": draw(2, 3), "bias": draw(3)} for _ in range(3)], "embed": draw(4), "head": draw(4)}
    together = apart | {"blocks": jax.tree.map(lambda *of: jnp.stack(of), *apart["blocks"])}
    settings = {"optimizer": adamw_of_layers, "overlap": "merge", "learning_rate": 0.1, "weight_decay": 0.5}
    no_decay = {"*/bias": {"weight_decay": 0.0}}
    order = ["embed", "blocks/{n}/*", "head"]
    layered = adam_tx.groups(layer_decay(0.5, order, apart) | no_decay, **settings)
    stacked = adam_tx.groups(
        {"embed": {"learning_rate": times(0.0625)}, "blocks/*": {"layer_decay": 0.5}} | no_decay, {}, **settings
    )
    updates, _ = layered.update(apart, layered.init(apart), apart)
    theirs = updates | {"blocks": jax.tree.map(lambda *of: jnp.stack(of), *updates["blocks"])}
    ours, _ = stacked.update(together, stacked.init(together), together)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-6), ours, theirs)


@pytest.mark.exhaustive
def test_layers_of_a_schedule_cost_no_kernel_and_no_byte_more_than_one_rate(usual_compiler, standard_promotion):
    shapes = {f"{n}/{leaf}": (64, 64) for n in range(3) for leaf in ("w", "v")} | {"0/bias": (64,)}
    schedule = optax.cosine_decay_schedule(1e-2, 100)
    settings = layer_decay(0.75, ["{n}/*"], dict.fromkeys(shapes, 0)) | {"*/bias": {"weight_decay": 0.0}}
    tx = adam_tx.groups(settings, optimizer=adam_tx.adamw, overlap="merge", learning_rate=schedule, weight_decay=0.1)
    layered, plain = compiled_cost(tx, shapes), compiled_cost(adam_tx.adamw(schedule, weight_decay=0.1), shapes)
    assert layered.bytes_accessed <= plain.bytes_accessed
    assert layered.fusions <= plain.fusions


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layer_decay(0.0, ["a"]), r"layer_decay: decay must be in \(0, inf\), got 0"),
        (lambda: layer_decay(0.5, ["a", "b", "a"]), "layer_decay: the pattern 'a' is twice in order"),
        (
            lambda: layer_decay(0.5, ["b/{n}/*"]),
            "'b/{n}/.*' in order; no params came to find its numbers in.*give params",
        ),
        (
            lambda: layer_decay(0.5, ["b/{n}/*"], {"blocks": [1]}),
            "no number .*there are, for example, blocks/0. Mend it",
        ),
    ],
)
def test_an_order_that_is_not_clear_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
