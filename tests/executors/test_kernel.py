"""The kernel's bits are those of the operations run one by one, whatever the optimizer, storage, size or processor."""

import re

import catalogue
import jax
import jax.numpy as jnp
import pytest
import step_problems as problems

import adam_tx
from adam_tx._core.leaves import Leaves
from adam_tx.executors import tile
from adam_tx.executors.cpu import engine
from adam_tx.executors.cpu.kernel import kernel
from adam_tx.storage import EightBit

pytest.importorskip("llvmlite", reason="one pass on a CPU needs llvmlite: pip install 'adam_tx[cpu]'")
pytestmark = pytest.mark.usefixtures("as_written", "standard_promotion")

SHAPES = {"matrix": (3, 200), "cube": (2, 3, 256), "vector": (77,), "number": (), "nothing": (0, 3), "one": (1,)}
TWO_CALLS = {"large": (1025, 1024), "small": (64, 100)}


@pytest.fixture(params=engine.instruction_sets() if engine.obstacle() is None else [], ids=lambda given: given.name)
def instructions(request, monkeypatch):
    """The step is compiled for a processor with these, and no others."""
    made = engine.engine_for(request.param)
    monkeypatch.setattr(engine, "engine", lambda: made)
    return request.param


def assert_steps_like_update(tx, shapes, dtype, steps=3, but=()):
    step = adam_tx.step(tx, "cpu")
    params = problems.tree(shapes, dtype)
    reasons = step.reasons(params)
    assert {name for name, reason in reasons.items() if reason} == set(but)
    state = tx.init(params)
    for k in range(steps):
        grads = problems.tree(shapes, dtype, seed=k + 1, awkward=k == 1)
        expected = problems.updated(tx, grads, state, params)
        assert not problems.differing(step(grads, state, params), expected)
        params, state = expected


EVERY_RUN = {"adam", "16 bits at random"}


@pytest.mark.parametrize("name", catalogue.costly([name for name in problems.FUSED if name != "adam_atan2"], EVERY_RUN))
def test_a_step_is_the_update_to_the_last_bit(name):
    tx = problems.FUSED[name]()
    assert_steps_like_update(tx, SHAPES, problems.dtype_of(name), but=("nothing", "number"))


@pytest.mark.parametrize("name", catalogue.costly(problems.STORAGES, {"five bytes"}))
def test_every_set_of_instructions_gives_the_same_bits(name, instructions):
    shapes = {"matrix": (3, 200)}
    assert_steps_like_update(problems.STORAGES[name](), shapes, problems.dtype_of(name))


@pytest.mark.exhaustive
def test_a_leaf_may_have_any_number_of_elements():
    """Each is a part of one large leaf, of which every element is stepped by itself."""
    tx = adam_tx.adamw(1e-2)
    sizes = [*range(1, 70), 4095, 4096, 4097]
    whole, grad = (problems.tree({"leaf": (5000,)}, jnp.float32, seed, awkward=True)["leaf"] for seed in (0, 1))
    expected = problems.updated(tx, grad, tx.init(whole), whole)[0]
    params, grads, parts = ({size: x[:size] for size in sizes} for x in (whole, grad, expected))
    stepped = adam_tx.step(tx, "cpu")(grads, tx.init(params), params)[0]
    assert not problems.differing(stepped, parts)


@pytest.mark.exhaustive
def test_the_last_block_of_a_row_may_be_shorter():
    tx = adam_tx.adam(1e-2, mu_dtype=problems.E8, nu_dtype=problems.E8)
    shapes = {"64": (3, 64), "129": (3, 129), "300": (2, 2, 300)}
    assert_steps_like_update(tx, shapes, jnp.float32, steps=2)


@pytest.mark.exhaustive
def test_several_calls_and_threads_give_the_same_bits():
    assert_steps_like_update(problems.STORAGES["five bytes"](), TWO_CALLS, jnp.bfloat16, steps=2)


@pytest.mark.exhaustive
def test_leaves_of_several_dtypes_are_stepped_in_one_tree():
    tx = adam_tx.adamw(1e-2, nu_dtype=EightBit(min_size=1))
    params = {"a": jnp.ones((2, 128), jnp.bfloat16), "b": jnp.ones((2, 128)), "c": jnp.ones(5, jnp.bfloat16)}
    grads = {"a": jnp.ones((2, 128)), "b": jnp.ones((2, 128)), "c": jnp.ones(5, jnp.bfloat16)}
    state = tx.init(params)
    step = adam_tx.step(tx, "cpu")
    assert not any(step.reasons(params).values())
    assert not problems.differing(step(grads, state, params), problems.updated(tx, grads, state, params))


def test_absent_leaves_stay_absent():
    tx = adam_tx.adamw(1e-2)
    params = {"a": jnp.ones(5), "b": None}
    grads = {"a": jnp.ones(5), "b": None}
    state = tx.init(params)
    assert not problems.differing(
        adam_tx.step(tx, "cpu")(grads, state, params), problems.updated(tx, grads, state, params)
    )


def test_a_leaf_compiles_one_kernel_whatever_its_number_and_shape():
    """So a model with hundreds of leaves compiles a few kernels."""
    tx = problems.STORAGES["16 bits at random"]()
    params = problems.tree({f"leaf{k}": (k + 1, 7) for k in range(9)}, jnp.float32)
    jaxpr = str(jax.make_jaxpr(adam_tx.step(tx, "cpu"))(params, tx.init(params), params))
    assert jaxpr.count("ffi_call[") == 1


@pytest.mark.exhaustive
def test_leaves_share_calls_as_far_as_none_waits_long_for_others():
    params = problems.tree({"large": (1025, 1024), **{f"small{k}": (k + 1, 100) for k in range(60)}}, jnp.float32)
    tx = adam_tx.adamw(1e-2)
    jaxpr = str(jax.make_jaxpr(adam_tx.step(tx, "cpu"))(params, tx.init(params), params))
    assert jaxpr.count("ffi_call[") == 3
    assert len(set(re.findall(r"target_name=(\w+)", jaxpr))) == 1


@pytest.mark.parametrize("name", ["five bytes", "blocks of 48"])
def test_the_kernel_and_its_handler_compile_for_another_processor(name):
    """Whether they run there nobody has tried."""
    llvm = pytest.importorskip("llvmlite.binding")
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple("aarch64-unknown-linux-gnu").create_target_machine(opt=3)
    for text in (
        kernel(program_of(problems.STORAGES[name](), problems.dtype_of(name)), 4).text,
        engine.handler("aarch64"),
    ):
        module = llvm.parse_assembly(text)
        module.triple = machine.triple
        module.data_layout = str(machine.target_data)
        module.verify()
        assert "ret" in machine.emit_assembly(module)


def program_of(tx, dtype):
    params = problems.tree({"leaf": (3, 200)}, dtype)
    link, state = tx.implementation, tx.init(params)
    kept = link.kept_of_leaves(Leaves(params, None, params, count=state["count"]), state)[0]
    recipe = tile.recipe_of(link, params["leaf"], params["leaf"], kept)
    return tile.tile_program(link, state, recipe, "leaf")
