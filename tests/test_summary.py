"""A summary has a row for each link and adds up to the bytes of the state, in any wrapper, and computes nothing."""

import re
import threading

import jax
import jax.numpy as jnp
import optax
import pytest
from catalogue import OPTIMIZERS, PER_TENSOR, SMALL_STATE

import adam_tx

pytestmark = pytest.mark.usefixtures("standard_promotion")  # Optax's wrappers promote the parameters' dtypes

CATALOGUE = OPTIMIZERS | PER_TENSOR | SMALL_STATE
PARAMS = {"a": jnp.zeros((3, 4)), "b": jnp.zeros(4, jnp.bfloat16)}
ADAM = ["adam", "  scale_by_momentum", "  scale_by_rms", "  bias_correction", "  scale_by_learning_rate"]
FOOTER = ["state", "parameters", "gradients"]


def rows(table):
    """Label, with its indentation -> the lines of its row; two of the same label are one."""
    lines, found, label = table.splitlines(), {}, ""
    width = lines[0].index("formula")
    for line in lines[1:]:
        if line.startswith("-"):
            continue
        label = line[:width].rstrip() or label
        found.setdefault(label, []).append(line[width:])
    return found


def row_bytes(lines):
    """The numbers in the last column of some lines."""
    return [int(found[1]) for line in lines if (found := re.search(r"(?:^|  )(\d+)$", line))]


def added_up(table):
    """The bytes of the rows of links, and of the state as it is said at the end."""
    _, links, _ = re.split(r"\n-+\n", table)
    return row_bytes(links.splitlines()), row_bytes(rows(table)["state"])[0]


def bytes_of(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_a_summary_has_a_row_for_each_link_in_the_order_they_act():
    table = rows(adam_tx.summary(adam_tx.adam(1e-3), PARAMS))
    assert list(table) == [*ADAM, *FOOTER]
    momentum = "\n".join(table["  scale_by_momentum"])
    for text in ("decay=0.9", "mu float32[3,4] float32[4]", "mu += (1 - decay)(u - mu)"):
        assert text in momentum
    assert "learning_rate=0.001" in table["adam"][0]
    assert "count int32[]" in table["adam"][0]


def test_it_ends_with_the_bytes_of_state_parameters_and_gradients():
    table = rows(adam_tx.summary(adam_tx.scale_by_momentum(0.9), PARAMS))
    assert table["state"][0].split() == ["4.25", "bytes", "per", "parameter", "68"]  # the count, and float32 for each
    assert table["parameters"][0].split() == ["16", "numbers", "56"]
    assert table["gradients"][0].split()[-1] == "56"


WRAPPERS = {
    "alone": lambda tx: tx,
    "masked": lambda tx: optax.masked(tx, {"a": True, "b": False}),
    "MultiSteps": lambda tx: optax.MultiSteps(optax.apply_if_finite(tx, 3), 2),
    "in a chain of ours": lambda tx: adam_tx.chain(
        adam_tx.scale_by_momentum(), ("half", optax.masked(tx, {"a": False, "b": True})), optax.trace(0.9)
    ),
    "partition": lambda tx: optax.chain(
        optax.partition({"it": tx, "frozen": optax.set_to_zero()}, {"a": "it", "b": "frozen"}), optax.ema(0.9)
    ),
    "what hides it": lambda tx: optax.chain(Hiding(tx).pair(), optax.scale(1.0)),
}


class Hiding:
    """A wrapper of the user's, with a state of its own."""

    def __init__(self, tx):
        self.inner = tx

    def init(self, params):
        """The state of the inner one, and a number."""
        return {"seen": jnp.zeros(()), "of_inner": self.inner.init(params)}

    def update(self, updates, state, params=None):
        """The updates as they are."""
        del params
        return updates, state

    def pair(self):
        """As Optax has it."""
        return optax.GradientTransformation(self.init, self.update)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_rows_add_up_to_the_bytes_of_the_state(wrapper):
    for name, make in CATALOGUE.items():
        if wrapper == "in a chain of ours" and adam_tx.as_link(make()).implementation.facts.is_step:
            continue  # a chain refuses a link behind it
        tx = WRAPPERS[wrapper](make())
        each, total = added_up(adam_tx.summary(tx, PARAMS))
        assert min(each) > 0, name
        assert sum(each) == total == bytes_of(jax.eval_shape(tx.init, PARAMS)), name


def labels(tx, params=PARAMS):
    return list(rows(adam_tx.summary(tx, params)))[: -len(FOOTER)]


def indented(names, depth=1):
    return ["  " * depth + name for name in names]


def test_members_of_wrappers_are_indented_under_the_rows_of_the_wrapper():
    table = rows(adam_tx.summary(adam_tx.soap(1e-3), PARAMS))
    assert list(table)[:6] == [
        "soap",
        "  in_eigenbasis",
        "    inner: chain",
        "      scale_by_momentum",
        "      scale_by_rms",
        "      bias_correction",
    ]
    basis = "\n".join(table["  in_eigenbasis"])
    assert "memory float32[3,3] float32[4,4]" in basis
    assert "every=10" in basis
    assert "count int32[]" in table["    inner: chain"][0]


def test_a_key_of_the_users_stands_before_the_name_and_a_second_of_a_name_is_numbered():
    tx = adam_tx.chain(
        adam_tx.parallel(("fast", adam_tx.scale_by_momentum(0.9)), ("slow", optax.scale(2.0)), weights=(1.0, 0.5)),
        optax.trace(0.9),
        optax.trace(0.8),
        ("decayed", adam_tx.on_decayed_weights(adam_tx.scale_by_learning_rate(0.1), 0.1)),
    )
    assert labels(tx) == [
        "chain",
        *indented(["parallel", "  fast: scale_by_momentum", "  slow: optax.scale", "optax.trace", "trace_2"]),
        *indented(["decayed: on_decayed_weights", "  member: scale_by_learning_rate"]),
    ]


def test_a_link_that_sees_another_gradient_stands_beside_the_link_that_makes_it():
    tx = adam_tx.with_gradient(adam_tx.scale_by_rms(0.9), adam_tx.gradient_difference())
    assert labels(tx) == ["with_gradient", "  member: scale_by_rms", "  gradient: gradient_difference"]


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [
        (lambda tx: optax.chain(optax.clip(1.0), tx), ["optax.chain", "  optax.clip", *indented(ADAM)]),
        (lambda tx: optax.named_chain(("x", tx)), ["optax.named_chain", "  x: adam", *indented(ADAM[1:])]),
        (lambda tx: optax.masked(tx, {"a": True, "b": False}), ["optax.masked", *indented(ADAM)]),
        (lambda tx: optax.apply_if_finite(tx, 3), ["optax.apply_if_finite", *indented(ADAM)]),
        (lambda tx: optax.MultiSteps(tx, 2), ["optax.MultiSteps", *indented(ADAM)]),
        (lambda tx: optax.flatten(tx), ["optax.flatten", *indented(ADAM)]),
        (lambda tx: optax.contrib.schedule_free(tx, 0.1), ["optax.schedule_free", *indented(ADAM)]),
        (lambda _: optax.inject_hyperparams(adam_tx.adam)(1e-3), ["optax.inject_hyperparams", *indented(ADAM)]),
        (
            lambda tx: optax.partition({"x": tx, "y": optax.sgd(0.1)}, {"a": "x", "b": "y"}),
            ["optax.partition", "  x: adam", *indented(ADAM[1:]), "  y: optax.chain", *indented(["optax.identity"], 2)],
        ),
    ],
)
def test_wrappers_of_optax_are_looked_into(wrap, expected):
    found = labels(wrap(adam_tx.adam(1e-3)))
    assert found[: len(expected)] == expected


def test_an_injected_hyperparameter_is_shown_as_it_was_given():
    tx = optax.inject_hyperparams(adam_tx.adam)(optax.linear_schedule(0.1, 0.0, 10), b1=0.8)
    table = rows(adam_tx.summary(tx, {"a": jnp.zeros(3)}))
    shown = "\n".join(table["optax.inject_hyperparams"])
    assert "learning_rate=linear_schedule" in shown
    assert "b1=0.8" in shown
    assert "hyperparams 5×float32[]" in shown


def test_the_groups_of_a_partition_have_the_state_of_their_own_leaves():
    tx = optax.partition({"x": adam_tx.adam(1e-3), "y": adam_tx.lion(1e-3)}, {"a": "x", "b": "y"})
    text = adam_tx.summary(tx, PARAMS)
    assert "param_labels={'a': 'x', 'b': 'y'}" in text
    assert rows(text)["  y: lion"]
    momenta = rows(text)["    scale_by_lion_momentum"]
    assert "mu float32[4] " in momenta[0]


def test_what_a_wrapper_of_the_users_hides_is_one_opaque_row_with_its_bytes():
    tx = optax.chain(Hiding(adam_tx.adam(1e-3)).pair(), adam_tx.scale_by_momentum())
    table = rows(adam_tx.summary(tx, PARAMS))
    assert list(table)[:4] == ["optax.chain", "  Hiding", "    opaque", "  scale_by_momentum"]
    expected = bytes_of(Hiding(adam_tx.adam(1e-3)).init(PARAMS))
    assert row_bytes(table["    opaque"]) == [expected]


def test_a_wrapper_of_optax_whose_state_has_other_parts_is_opaque(monkeypatch):
    monkeypatch.setattr(optax.ApplyIfFiniteState, "_asdict", lambda _: {})
    table = rows(adam_tx.summary(optax.apply_if_finite(adam_tx.adam(1e-3), 3), PARAMS))
    assert list(table) == ["optax.apply_if_finite", "  opaque", *FOOTER]


def test_a_link_with_a_formula_of_the_users_shows_it_and_what_is_inside():
    tx = adam_tx.as_link(optax.chain(optax.scale_by_sign(), optax.ema(0.9)), name="signs", formula="mean of sign(u)")
    table = rows(adam_tx.summary(adam_tx.chain(tx), PARAMS))
    assert list(table)[:4] == ["chain", "  signs: optax.chain", "    optax.scale_by_sign", "    optax.ema"]
    assert "mean of sign(u)" in table["  signs: optax.chain"][0]


def test_a_summary_lists_the_links_of_its_own_optimizer_only():
    other = threading.Thread(target=lambda: adam_tx.adamw(1e-3).init(PARAMS))

    def init(params):
        other.start()
        other.join()
        return ()

    slow = optax.GradientTransformation(init, optax.identity().update)
    assert not any("add_decayed_weights" in label for label in labels(optax.chain(adam_tx.scale_by_momentum(), slow)))


def test_masked_parameters_count_their_state_only():
    table = rows(adam_tx.summary(optax.masked(adam_tx.adam(1e-3), {"a": True, "b": False}), PARAMS))
    assert "mu float32[3,4] " in table["    scale_by_momentum"][0]
    table = rows(adam_tx.summary(adam_tx.adam(1e-3), {"a": PARAMS["a"], "b": optax.MaskedNode(), "c": None}))
    assert "mu float32[3,4] " in table["  scale_by_momentum"][0]
    assert table["parameters"][0].split() == ["12", "numbers", "48"]


def test_a_summary_computes_nothing():
    huge = jax.ShapeDtypeStruct((10**8, 10**8, 10**4), jnp.float32)
    table = rows(adam_tx.summary(adam_tx.adam(1e-3), huge))
    assert "8 bytes per parameter" in table["state"][0]
    assert row_bytes(table["parameters"]) == [4 * 10**20]


def test_hyperparameters_that_are_no_numbers_are_short():
    tx = adam_tx.adamw(
        optax.cosine_decay_schedule(0.1, 10), b1=jnp.float32(0.5), mask=lambda params: params, mu_dtype=jnp.float32
    )
    text = adam_tx.summary(adam_tx.chain(tx, adam_tx.decay_weights(0.1, {"a": True, "b": False})), PARAMS)
    for shown in ("learning_rate=cosine_decay_schedule", "b1=0.5", "mask=<lambda>", "dtype=float32", "{'a': True, "):
        assert shown in text


def test_no_parameters_have_a_summary_too():
    table = rows(adam_tx.summary(adam_tx.adam(1e-3), {}))
    assert "no parameters" in table["state"][0]
    assert row_bytes(table["parameters"]) == [0]


def test_what_is_no_transformation_has_no_summary():
    with pytest.raises(TypeError, match=r"tx must be a transformation.*got dict"):
        adam_tx.summary(adam_tx.adam(1e-3).init(PARAMS), PARAMS)


LAYERS = {f"blocks_{n}": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)} for n in range(2)} | {"head": jnp.zeros(2)}


def by_leaf(tx, params):
    """The rows of the leaves: path, shape, group, settings and bytes; and the footer."""
    head, _, *lines = adam_tx.summary(tx, params, by="leaf").splitlines()
    starts = [head.index(name) for name in ("leaf", "shape", "group", "settings")]
    cut = [slice(a, b) for a, b in zip(starts, [*starts[1:], None], strict=True)]
    cells = [[" ".join(line[of].split()) for of in cut] for line in lines if not line.startswith("-")]
    return cells[:-2], cells[-2:]


def test_by_leaf_it_says_which_leaf_gets_what():
    tx = adam_tx.groups(
        {"blocks_0/*": {"learning_rate": adam_tx.times(0.5)}, "*/bias": {"weight_decay": 0.0}, "head": "freeze"},
        {},
        optimizer=adam_tx.adamw,
        overlap="merge",
        learning_rate=optax.linear_schedule(0.1, 0.0, 5),
        weight_decay=0.5,
    )
    leaves, footer = by_leaf(optax.chain(optax.clip_by_global_norm(1.0), adam_tx.guard(tx)), LAYERS)
    whole = "learning_rate=linear_schedule, "
    half = "learning_rate=scaled(linear_schedule, 0.5), "
    assert leaves == [
        ["blocks_0/bias", "float32[2]", "blocks_0/* & */bias: adamw", f"{half}weight_decay=0 16"],
        ["blocks_0/kernel", "float32[2,2]", "blocks_0/*: adamw", f"{half}weight_decay=0.5 32"],
        ["blocks_1/bias", "float32[2]", "*/bias: adamw", f"{whole}weight_decay=0 16"],
        ["blocks_1/kernel", "float32[2,2]", "default: adamw", f"{whole}weight_decay=0.5 32"],
        ["head", "float32[2]", "head: freeze", "0"],
    ]
    kept = bytes_of(jax.eval_shape(adam_tx.guard(tx).init, LAYERS))
    assert [row[-1] for row in footer] == [f"{kept - 96}", f"{kept}"]


def test_by_leaf_those_that_are_alike_have_one_row_and_in_a_large_tree_all_of_a_group():
    leaves, _ = by_leaf(adam_tx.adam(1e-3), LAYERS)
    assert [row[:2] for row in leaves] == [
        ["2×blocks_#/bias", "float32[2]"],
        ["2×blocks_#/kernel", "float32[2,2]"],
        ["head", "float32[2]"],
    ]
    many = {chr(ord("a") + k) * n: jnp.zeros(k + 1) for k in range(26) for n in (1, 2, 3)}
    tx = adam_tx.groups({"a*": adam_tx.sgd(0.1)}, adam_tx.adam(1e-3))
    leaves, footer = by_leaf(tx, many)
    assert [(row[0], row[2], row[3].split()[-1]) for row in leaves] == [
        ("a and 2 more", "a*: sgd", "0"),
        ("b and 74 more", "default: adam", f"{8 * 3 * sum(range(2, 27))}"),
    ]
    assert footer[1][1] == f"of {3 * sum(range(27))} numbers"


def test_by_leaf_groups_in_groups_and_those_of_optax_are_told():
    inner = adam_tx.groups({"*/bias": {"weight_decay": 0.0}}, {}, optimizer=adam_tx.adamw, learning_rate=1e-3)
    leaves, _ = by_leaf(adam_tx.groups({"blocks_*": inner}, "freeze"), LAYERS)
    assert [row[2] for row in leaves] == [
        "blocks_*: groups / */bias: adamw",
        "blocks_*: groups / default: adamw",
        "default: freeze",
    ]
    labels = {"blocks_0": "a", "blocks_1": "b", "head": "b"}
    leaves, _ = by_leaf(optax.partition({"a": adam_tx.sgd(1.0), "b": adam_tx.adam(1.0)}, labels), LAYERS)
    assert [(row[0], row[2]) for row in leaves] == [
        ("blocks_0/bias", "a"),
        ("blocks_0/kernel", "a"),
        ("blocks_1/bias", "b"),
        ("blocks_1/kernel", "b"),
        ("head", "b"),
    ]
    with pytest.raises(ValueError, match="by must be 'link' or 'leaf', got 'leaves'"):
        adam_tx.summary(adam_tx.sgd(1.0), LAYERS, by="leaves")
