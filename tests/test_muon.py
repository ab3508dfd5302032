"""Muon and its relatives: which leaf gets what, what is refused, and the same steps as the real ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import run
from catalogue import costly
from optax.contrib import MuonDimensionNumbers
from optax.contrib import muon as optax_muon

import adam_tx

OTHERS = adam_tx.adamw(1e-3)
MAKERS = {
    "muon": lambda **options: adam_tx.muon(0.02, others=OTHERS, **options),
    "normuon": lambda **options: adam_tx.normuon(0.02, OTHERS, **options),
    "adamh": lambda **options: adam_tx.adamh(0.02, OTHERS, **options),
    "muonh": lambda **options: adam_tx.muonh(0.02, OTHERS, **options),
}
MODEL = {
    "embed": {"embedding": (40, 8)},
    "blocks": {
        "attention": {"query": {"kernel": (8, 2, 4)}},
        "mlp": {"kernel": (8, 32), "bias": (32,)},
        "norm": {"scale": (8,)},
    },
    "conv": {"kernel": (3, 3, 2, 8)},
    "lm_head": {"kernel": (8, 40)},
}
HEADS = {"*/query/kernel": (0, 2), "conv/kernel": ((0, 1, 2), 3)}


def shapes(tree):
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    return jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), tree, is_leaf=is_shape)


def matrices(tx, model=MODEL):
    """The paths of the leaves that are treated as matrices: those that have a momentum there."""
    kept = jax.eval_shape(tx.init, shapes(model))["matrices"]
    return sorted(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in momenta(kept))


def momenta(kept):
    tree = kept["scale_by_momentum"].mu if "scale_by_momentum" in kept else kept["scale_by_heavy_ball"].trace
    return jax.tree_util.tree_leaves_with_path(tree)


def axes_of(name):
    return "muon_weight_dimension_numbers" if name == "muon" else "axes"


def test_what_is_not_clearly_a_hidden_matrix_is_refused_by_its_path_shape_and_reason():
    with pytest.raises(ValueError, match=r"^muon: these leaves may be hidden matrices or not: ") as refused:
        matrices(adam_tx.muon(0.02))
    for leaf in (
        "blocks/attention/query/kernel (8, 2, 4) has 3 axes",
        "conv/kernel (3, 3, 2, 8) has 4 axes",
        "embed/embedding (40, 8) is called as an embedding, a head or a vector is",
        "lm_head/kernel (8, 40) is called as an embedding",
    ):
        assert leaf in str(refused.value)
    assert "mlp" not in str(refused.value)


def test_the_pattern_that_the_error_proposes_settles_it():
    with pytest.raises(ValueError, match="may be hidden matrices") as refused:
        matrices(adam_tx.muon(0.02))
    proposed = str(refused.value).partition("matrices='")[2].partition("'")[0]
    assert matrices(adam_tx.muon(0.02, matrices=proposed)) == ["blocks/mlp/kernel"]


SETTLED = {
    "a pattern takes what it names": (
        {"matrices": "blocks/mlp/*|lm_head/*"},
        ["blocks/mlp/kernel", "lm_head/kernel"],
    ),
    "axes take what has more of them": (
        {"matrices": "blocks/*", "axes": HEADS},
        ["blocks/attention/query/kernel", "blocks/mlp/kernel", "conv/kernel"],
    ),
    "axes of None say that it is none": (
        {"axes": {"blocks/attention/*|conv/*|embed/*|lm_head/*": None}},
        ["blocks/mlp/kernel"],
    ),
    "axes settle a head, too": (
        {"axes": {"blocks/attention/*|conv/*|embed/*": None, "lm_head/*": (0, 1)}},
        ["blocks/mlp/kernel", "lm_head/kernel"],
    ),
    "a function may say it": (
        {"matrices": lambda path, shape: len(shape) == 2 and "mlp" in path},
        ["blocks/mlp/kernel"],
    ),
}


@pytest.mark.parametrize("case", SETTLED)
def test_the_user_settles_which_leaves_are_matrices(case):
    options, expected = SETTLED[case]
    for name, make in MAKERS.items():
        given = {axes_of(name) if key == "axes" else key: value for key, value in options.items()}
        assert matrices(make(**given)) == expected, name


AMBIGUOUS = {
    "an embedding by its name": {"tok_emb": (8, 8)},
    "GPT-2's": {"wte": (8, 8)},
    "a head by its name": {"head": {"kernel": (8, 8)}},
    "a numbered head": {"Head_0": {"kernel": (8, 8)}},
    "an embedding by its shape": {"Embed_of_another_name"[9:]: (1000, 8)},
    "a classifier by its shape": {"Dense_3": {"kernel": (512, 10)}},
    "a single output": {"Dense_3": {"kernel": (64, 1)}},
    "biases that a scan has stacked": {"layers": {"dense": {"bias": (12, 8)}}},
    "gains that a scan has stacked": {"layers": {"LayerNorm_0": {"scale": (12, 8)}}},
    "gains of another name": {"layers": {"ln_1": {"g": (12, 8)}}},
    "kernels that a scan has stacked": {"layers": {"dense": {"kernel": (12, 8, 8)}}},
}
CLEAR = {
    "a kernel of a wide layer": {"mlp": {"kernel": (8, 128)}},
    "attention of Flax, two axes": {"MultiHeadDotProductAttention_0": {"out": {"kernel": (8, 8)}}},
    "attention of Keras": {"multi_head_attention": {"out": {"kernel": (8, 8)}}},
    "a list": [(8, 8), (8, 8)],
    "the array itself": (8, 8),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_other_libraries_take_for_a_matrix_in_silence_is_refused(case):
    with pytest.raises(ValueError, match="may be hidden matrices or not"):
        adam_tx.muon(0.02).init(shapes(AMBIGUOUS[case]))


@pytest.mark.parametrize("case", CLEAR)
def test_what_is_clear_is_taken(case):
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    assert len(matrices(adam_tx.muon(0.02), CLEAR[case])) == len(jax.tree.leaves(CLEAR[case], is_leaf=is_shape))


def test_it_is_refused_at_an_update_too_and_by_every_relative():
    grads = {"embed": jnp.ones((4, 4))}
    for name, make in MAKERS.items():
        state = make(matrices="embed").init(grads)
        with pytest.raises(ValueError, match=rf"^{name}: these leaves .*embed \(4, 4\) is called as an embedding"):
            make().update(grads, state, grads)


def test_patterns_of_axes_that_match_nothing_or_the_same_leaf_are_refused():
    for axes, error in (({"nothing": (0, 1)}, "matches no leaf"), ({"w": (0, 1), "*w": (1, 0)}, "two|claimed")):
        with pytest.raises(ValueError, match=error):
            adam_tx.muonh(0.1, OTHERS, axes=axes).init({"w": jnp.ones((2, 2))})


def test_adam_s_own_arguments_beside_another_optimizer_are_refused():
    with pytest.raises(ValueError, match=r"adam_\* are arguments of the AdamW that others="):
        adam_tx.muon(0.02, others=OTHERS, adam_b1=0.8)


def test_summary_shows_who_gets_what():
    model = {"lm_head": (8, 40), "mlp": {"kernel": (8, 8)}}
    shown = adam_tx.summary(adam_tx.muon(0.02, matrices="mlp/*", others=adam_tx.lion(1e-4)), shapes(model))
    rows = [" ".join(line.split()) for line in shown.splitlines()]
    assert any(row.startswith("default: lion lm_head") for row in rows)
    assert any(row.startswith("matrices: chain mlp/kernel") for row in rows)


def test_the_others_are_stepped_by_their_optimizer_to_the_last_bit(as_written):
    params = {"w": jnp.ones((3, 2)), "b": jnp.array([1.0, -2.0])}
    tx = MAKERS["adamh"]()
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    alone, _ = jax.jit(OTHERS.update)(params["b"], OTHERS.init(params["b"]), params["b"])
    np.testing.assert_array_equal(updates["b"], alone)


OPTAX = {
    "default": ({}, {}),
    "dion": ({"ns_coeffs": "dion", "weight_decay": 0.1, "consistent_rms": 0.2}, {}),
    "adaptive": ({"adaptive": True, "nesterov": False, "preconditioning": "schatten", "beta": 0.8}, {}),
    "others": ({"adam_b1": 0.8, "adam_b2": 0.9, "adam_weight_decay": 0.1, "adam_learning_rate": 0.003}, {}),
    "heads": (
        {},
        {
            "ours": {"muon_weight_dimension_numbers": {"k": (0, (1, 2))}},
            "theirs": {
                "muon_weight_dimension_numbers": {
                    "w": MuonDimensionNumbers(),
                    "k": MuonDimensionNumbers(0, (1, 2)),
                    "b": None,
                }
            },
        },
    ),
}
PARAMS, GRADS = oracles.matrix_problem(steps=100, shape=(5, 6))


def as_tree(x, *, deep):
    """A matrix, a vector and, if it is deep, a kernel (model, heads, head), of one array (…, 5, 6)."""
    leaves = {"w": x[..., :3], "b": x[..., 0]}
    return leaves | {"k": x.reshape(*x.shape[:-1], 3, 2)} if deep else leaves


@pytest.fixture(scope="module")
def muon_ends(request):
    """Where ours and Optax's end, in one program."""

    def end(tx, *, deep):
        params, grads = (jax.tree.map(jnp.asarray, as_tree(x, deep=deep)) for x in (PARAMS, GRADS))

        def step(carry, grad):
            params, state = carry
            updates, state = tx.update(grad, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), grads)[0][0]

    def both(name):
        options, own = OPTAX[name]
        ours = adam_tx.muon(0.01, **options, **own.get("ours", {}))
        theirs = optax_muon(0.01, **options, **own.get("theirs", {}))
        return [end(tx, deep=name == "heads") for tx in (ours, theirs)]

    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        return jax.jit(lambda: {name: both(name) for name in run.asked_for(request)})()


@pytest.mark.parametrize("name", costly(OPTAX, ()))
def test_a_hundred_float64_steps_are_those_of_optax(name, muon_ends):
    for leaf, ours in muon_ends[name][0].items():
        start = as_tree(PARAMS, deep=name == "heads")[leaf]
        assert run.relative_error(np.asarray(ours), np.asarray(muon_ends[name][1][leaf]), start) <= 1e-10, leaf


def adamh_direction(grads, b1=0.9, b2=0.95, eps=1e-8):
    m = v = 0.0
    for t, g in enumerate(grads, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        yield m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)


def muonh_direction(grads, b1=0.95):
    trace = 0.0
    for g in grads:
        trace = b1 * trace + g
        yield oracles.newton_schulz(b1 * trace + g, (oracles.JORDAN,) * 5, eps=1e-8)


HYPERBALL = {"adamh": (adam_tx.adamh, adamh_direction), "muonh": (adam_tx.muonh, muonh_direction)}


@pytest.mark.parametrize("name", costly(HYPERBALL, ["adamh"]))
def test_a_hundred_float64_steps_on_the_hyperball_are_those_that_its_authors_write_to_1e_10(name, x64):
    make, direction = HYPERBALL[name]
    start, grads = oracles.matrix_problem(steps=100)
    p, radius = start, np.linalg.norm(start)
    for u in direction(grads):
        beyond = p - 0.02 * radius * u / np.linalg.norm(u)
        p = beyond / np.linalg.norm(beyond) * radius
    ours = run.trajectory(make(0.02, OTHERS), start, grads)[-1]
    assert run.relative_error(ours, p, start) <= 1e-10
