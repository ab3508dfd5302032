"""How work grows with the number of leaves, with their size and with nesting: counted, never timed."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import run
from catalogue import FOR_MATRICES, OPTIMIZERS, PER_TENSOR, SMALL_STATE, costly
from test_containers import WRAPPERS

import adam_tx
from adam_tx._core import rounding
from adam_tx.storage import EightBit, StochasticBFloat16

pytestmark = pytest.mark.usefixtures("standard_promotion")  # Optax's own optimizers need it

ALL = OPTIMIZERS | PER_TENSOR | SMALL_STATE | WRAPPERS
SMALL = {"stochastic": StochasticBFloat16(), "eight bit": EightBit(block=16, min_size=1)}


# The number of leaves


@jax.tree_util.register_pytree_with_keys_class
class Counted:
    """A container of one leaf that counts how often it is taken apart."""

    flattened = 0

    def __init__(self, leaf):
        self.leaf = leaf

    def tree_flatten(self):
        Counted.flattened += 1
        return (self.leaf,), None

    def tree_flatten_with_keys(self):
        Counted.flattened += 1
        return ((jax.tree_util.GetAttrKey("leaf"), self.leaf),), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


def counts(function, *arguments):
    """How many calls of functions it takes, and how often a leaf is taken out of its container."""
    calls, Counted.flattened = 0, 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function(*arguments)
    finally:
        sys.setprofile(before)
    return calls, Counted.flattened


def work(make, leaves):
    """What it takes to begin, to step, to describe, to export and to import so many leaves."""
    shapes = [Counted(jax.ShapeDtypeStruct((2, 3), jnp.float32)) for _ in range(leaves)]
    shapes.append(jax.ShapeDtypeStruct((3,), jnp.float32))
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    tx = make()
    abstract = jax.eval_shape(lambda params: tx.init(params), shapes)
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
    exported = adam_tx.export_state(state, params, tx)
    return {
        "init": counts(jax.eval_shape, lambda params: tx.init(params), shapes),
        "update": counts(jax.eval_shape, lambda *trees: tx.update(*trees), shapes, abstract, shapes),
        "summary": counts(adam_tx.summary, tx, shapes),
        "export": counts(adam_tx.export_state, state, params, tx),
        "import": counts(lambda: adam_tx.import_state(tx, params, exported, report=None)),
    }


@pytest.mark.parametrize("name", costly(ALL, {"guard, monitor", "groups", "optax.MultiSteps", "adamw, eight bit"}))
def test_work_grows_no_faster_than_the_number_of_leaves(name):
    work(ALL[name], 2)  # what is done once and remembered
    few, many = (work(ALL[name], leaves) for leaves in (5, 20))
    grown = {what: [m / f for m, f in zip(many[what], few[what], strict=True)] for what in few}
    assert {what: ratios for what, ratios in grown.items() if max(ratios) > 4.2} == {}


def of_layers(storage, layers, width):
    """A step over so many equal leaves, ready to be traced, and its abstract arguments."""
    tx = adam_tx.chain(adam_tx.adamw(1e-3, mu_dtype=storage, nu_dtype=storage), adam_tx.master_weights())
    params = [jax.ShapeDtypeStruct((4, width), jnp.bfloat16)] * layers
    return tx.update, params, jax.eval_shape(tx.init, params), params


def kernels(program):
    """The different bodies of a program's fusions, without the names in them."""
    found = set()
    for body in re.findall(r"^%fused_[\w.]+ \(.*?\{\n(.*?)\n\}", program, re.MULTILINE | re.DOTALL):
        numbers = {}
        body = re.sub(r", metadata=\{[^}]*\}", "", body)
        found.add(re.sub(r"%[\w.\-]+", lambda name, known=numbers: known.setdefault(name[0], f"%{len(known)}"), body))
    return found


@pytest.mark.parametrize("kind", SMALL)
def test_leaves_of_equal_shape_have_the_same_kernels_though_they_draw_other_bits(kind):
    """XLA compiles the same kernel once. A kernel for each leaf would take four times as long."""
    few, many = (
        kernels(jax.jit(step).lower(*arguments).compile(compiler_options=run.AS_FOR_USERS).as_text())
        for step, *arguments in (of_layers(SMALL[kind], layers, 32) for layers in (2, 5))
    )
    assert len(many) == len(few) >= 5


@pytest.mark.parametrize("kind", SMALL)
def test_how_a_leaf_is_rounded_is_traced_once_for_all_leaves_of_its_shape(kind, monkeypatch):
    traced, drop_bits = [], rounding.drop_bits
    monkeypatch.setattr(rounding, "drop_bits", lambda *given: traced.append(given) or drop_bits(*given))

    def times(layers, width):
        traced.clear()
        step, *arguments = of_layers(SMALL[kind], layers, width)
        jax.jit(step).trace(*arguments)
        return len(traced)

    assert times(5, 80) == times(1, 48) > 0  # shapes that no other test has


# The size of a leaf


MEAN = adam_tx.chain(adam_tx.clip_by_rms(1.0), adam_tx.scale_by_learning_rate(0.1))


@pytest.mark.parametrize("name", [*ALL, "mean"])
def test_a_leaf_may_have_more_elements_than_an_int32_can_count(name):
    """The stacked layers of a model of 70 billion parameters; shapes suffice."""
    shapes = {"mlp": (80, 8192, 28672), "norm": (8192,)}
    params = {key: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for key, shape in shapes.items()}
    tx = MEAN if name == "mean" else ALL[name]()
    if name in FOR_MATRICES:  # three axes say nothing of which is a matrix
        tx = adam_tx.stacked(tx, "mlp")
    state = jax.eval_shape(tx.init, params)
    updates, new = jax.eval_shape(tx.update, params, state, params)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert {key: update.shape for key, update in updates.items()} == shapes


# Nesting


def test_a_maker_runs_once_however_deep_optimizers_stand_in_each_other():
    made = []

    @adam_tx.link
    def scale_by_half():
        made.append("link")
        return adam_tx.Rule(lambda now, updates: 0.5 * updates)

    def around(inner):
        @adam_tx.optimizer
        def outer():
            made.append("optimizer")
            return inner()

        return outer

    nested = scale_by_half
    for _ in range(4):
        nested = around(nested)
    nested()
    assert (made.count("link"), made.count("optimizer")) == (1, 4)


def test_what_an_optimizer_returns_keeps_its_own_call():
    inner = adam_tx.adamw(1e-3)

    @adam_tx.optimizer
    def mine():
        return inner

    assert repr(mine()).endswith("mine()")
    assert repr(inner) == "adam_tx.adamw(0.001)"
    assert mine().implementation is not inner.implementation
