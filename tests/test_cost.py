"""What a step costs, donation and all, read off its program; no clock is involved."""

import inspect

import jax
import jax.numpy as jnp
import optax
import pytest
import run
from catalogue import OPTIMIZERS, PER_TENSOR, SMALL_STATE, costly
from cost import compiled_cost, jitted_step, per_leaf
from fixed_cost import fixed
from turns import nested

import adam_tx

pytestmark = pytest.mark.usefixtures("usual_compiler", "standard_promotion")  # Optax's own Adam needs the second

FAMILY = ("adam", "adamw", "nadam", "nadamw", "amsgrad", "adamax", "adamaxw", "adabelief", "yogi", "radam", "lion")
FAMILY += ("adagrad", "rmsprop", "sgd", "lamb", "novograd", "adafactor", "adopt", "ademamix")
ALL = OPTIMIZERS | PER_TENSOR | SMALL_STATE
LAYER = {"w": (512, 512), "b": (512,)}

# what is there once a step, whatever the tree, beyond what Optax has
SCALAR_KERNELS = 2  # a debiasing weight is stepped by one kernel and read by another
SCALAR_BYTES = 256  # that these kernels read and write
STATE_LEAVES = 3  # two debiasing weights, and a count where Optax keeps none


def pair(name):
    """Our optimizer of this name, and Optax's."""
    peer = optax if hasattr(optax, name) else optax.contrib
    return getattr(adam_tx, name)(1e-3), getattr(peer, name)(1e-3)


def params_and_state(tx, dtype=jnp.float32):
    """Abstract parameters of one layer, and the state for them."""
    params = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in LAYER.items()}
    return params, jax.eval_shape(tx.init, params)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_whatever_the_tree_a_step_of_adam_holds_little_more_than_optaxs(name):
    ours, theirs = map(fixed, pair(name))
    assert ours.equations <= theirs.equations + 13  # 38 and 25 for Adam: two weights that are kept exactly
    assert ours.leaf_equations <= theirs.leaf_equations
    assert ours.leaf_kernels <= theirs.leaf_kernels
    assert ours.scalar_kernels <= theirs.scalar_kernels + SCALAR_KERNELS
    assert ours.state_leaves <= theirs.state_leaves + STATE_LEAVES


def test_two_more_chains_add_no_equation_no_kernel_and_no_state():
    assert fixed(nested()) == fixed(adam_tx.adam(1e-3))


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_one_more_leaf_of_adam_reads_and_writes_no_more_than_optaxs(name):
    ours, theirs = (per_leaf(tx, leaves=2) for tx in pair(name))
    assert ours.bytes_accessed <= theirs.bytes_accessed


@pytest.mark.parametrize("name", FAMILY)
def test_a_step_of_four_leaves_costs_no_more_than_with_optax_but_for_scalars(name):
    # four leaves of 16 KB: a kernel more for each, or an array more that each reads, is more than all scalars
    ours, theirs = (compiled_cost(tx, [(4096,)] * 4) for tx in pair(name))
    assert ours.fusions <= theirs.fusions + SCALAR_KERNELS
    assert ours.bytes_accessed <= theirs.bytes_accessed + SCALAR_BYTES


@pytest.mark.parametrize("name", FAMILY)
def test_a_state_has_hardly_more_leaves_than_optaxs(name):
    ours, theirs = (len(jax.tree.leaves(params_and_state(tx)[1])) for tx in pair(name))
    assert ours <= theirs + STATE_LEAVES


@pytest.mark.parametrize("name", ["lamb", "novograd", "adafactor"])
def test_a_step_of_matrices_costs_no_more_than_with_optax_where_a_whole_tensor_counts(name):
    ours, theirs = (compiled_cost(tx, [(256, 256)] * 2) for tx in pair(name))
    # before jaxlib 0.10 the square of Adafactor's update is written before it is summed up: 8 bytes to and fro
    squares = 2 if run.JAXLIB < (0, 10) and name == "adafactor" else 0
    assert ours.fusions <= theirs.fusions + squares
    assert ours.bytes_accessed <= theirs.bytes_accessed + squares * 8 * 256 * 256


@pytest.mark.parametrize("shapes", [[(2**25,)], [(4096,)] * 20], ids=["1 leaf of 32M", "20 leaves of 4K"])
def test_a_step_needs_no_temporary_memory(shapes):
    assert compiled_cost(adam_tx.adamw(1e-3), shapes).temp_bytes <= SCALAR_BYTES


@pytest.mark.parametrize("name", costly(ALL))
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_optimizer_updates_in_place(name, dtype):
    tx = ALL[name]()
    params, state = params_and_state(tx, dtype)
    # which results take over which arguments' memory is settled when a step is lowered; compiling it takes ten times as
    # long, and is left to the next test
    traced = jitted_step(tx).trace(params, state, params)
    kept = traced.jaxpr.jaxpr.invars[: len(jax.tree.leaves((params, state)))]
    read = {id(variable) for equation in traced.jaxpr.eqns for variable in equation.invars}
    written_only = [variable for variable in kept if id(variable) not in read]  # a number may be
    assert sum(variable.aval.size for variable in written_only) <= 1
    assert traced.lower().as_text().count("tf.aliasing_output") == len(kept) - len(written_only)


@pytest.mark.parametrize("name", ["adam", "soap", "torch adafactor"])
def test_a_compiled_step_is_in_place_too(name):
    assert compiled_cost(ALL[name](), LAYER, jnp.bfloat16).in_place


@pytest.mark.parametrize("name", FAMILY)
def test_a_state_is_the_same_whether_hyperparameters_are_numbers_arrays_schedules_or_injected(name):
    make = getattr(adam_tx, name)
    defaults = {key: parameter.default for key, parameter in inspect.signature(make).parameters.items()}
    values = {key: value for key, value in defaults.items() if type(value) is float and "initial" not in key}
    values["learning_rate"] = 1e-3
    static = [key for key, value in defaults.items() if type(value) is int]  # sizes, which no array can be
    injected = optax.inject_hyperparams(make, static_args=static, hyperparam_dtype=jnp.float32)(**values)

    _, numbers = params_and_state(make(**values))
    _, arrays = params_and_state(make(**{key: jnp.float32(value) for key, value in values.items()}))
    _, schedules = params_and_state(make(**{key: optax.constant_schedule(value) for key, value in values.items()}))
    for state in (arrays, schedules, params_and_state(injected)[1].inner_state):
        assert jax.tree.structure(state) == jax.tree.structure(numbers)
        assert jax.tree.leaves(state) == jax.tree.leaves(numbers)  # shapes and dtypes
