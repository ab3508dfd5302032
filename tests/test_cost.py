"""What a compiled step costs, donation and all; no clock is involved."""

import jax.numpy as jnp
import optax
import pytest
from catalogue import OPTIMIZERS, PER_TENSOR, SMALL_STATE
from cost import compiled_cost, per_leaf

import adam_tx

pytestmark = pytest.mark.usefixtures("standard_promotion")  # Optax's own Adam needs it

PROBLEMS = {"1 leaf of 32M": [(2**25,)], "300 leaves of 4K": [(4096,)] * 300}
PAIRS = {
    "adam": (adam_tx.adam(1e-3), optax.adam(1e-3)),
    "adamw": (adam_tx.adamw(1e-3), optax.adamw(1e-3)),
}
FAMILY = ("nadam", "nadamw", "amsgrad", "adamax", "adamaxw", "adabelief", "yogi", "radam", "lion", "adagrad")
FAMILY += ("rmsprop", "sgd", "lamb", "novograd", "adafactor", "adopt", "ademamix")


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_a_step_reads_writes_and_launches_no_more_than_optax_but_for_scalars(pair, problem):
    ours, theirs = (compiled_cost(tx, problem) for tx in pair)
    assert ours.leaf_fusions <= theirs.leaf_fusions
    # three counts and four sums of logarithms, read and written once a step whatever the tree
    assert ours.bytes_accessed - theirs.bytes_accessed <= 256
    assert ours.fusions - theirs.fusions <= 8


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_a_step_needs_no_temporary_memory_and_happens_in_place(problem):
    cost = compiled_cost(adam_tx.adamw(1e-3), problem)
    assert cost.temp_bytes_per_parameter <= 0.01
    assert cost.in_place


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_one_more_leaf_costs_no_more_than_with_optax_and_24_equations(pair):
    ours, theirs = map(per_leaf, pair)
    assert ours.leaf_fusions <= theirs.leaf_fusions
    assert ours.bytes_accessed <= theirs.bytes_accessed
    assert ours.equations <= 24


@pytest.mark.parametrize("name", FAMILY)
def test_one_more_leaf_of_a_member_of_the_family_costs_no_more_than_with_optax(name):
    peer = optax if hasattr(optax, name) else optax.contrib
    ours, theirs = (per_leaf(getattr(library, name)(1e-3)) for library in (adam_tx, peer))
    assert ours.leaf_fusions <= theirs.leaf_fusions
    assert ours.bytes_accessed <= theirs.bytes_accessed


@pytest.mark.parametrize("name", ["lamb", "novograd", "adafactor"])
def test_one_more_matrix_costs_no_more_than_with_optax_where_a_whole_tensor_counts(name):
    ours, theirs = (per_leaf(getattr(library, name)(1e-3), leaves=4, shape=(256, 256)) for library in (adam_tx, optax))
    assert ours.leaf_fusions <= theirs.leaf_fusions
    assert ours.bytes_accessed <= theirs.bytes_accessed


ALL = OPTIMIZERS | PER_TENSOR | SMALL_STATE


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_optimizer_updates_in_place(make, dtype):
    cost = compiled_cost(make(), {"w": (512, 512), "b": (512,)}, dtype)
    assert cost.in_place
