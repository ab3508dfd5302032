"""Kernels touch their arrays and nothing else, and a call that does not fit its kernel is refused."""

import functools
import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import run
import step_problems as problems

import adam_tx
from adam_tx._core.leaves import Leaves
from adam_tx.executors import tile
from adam_tx.executors.cpu import call

pytest.importorskip("llvmlite", reason="one pass on a CPU needs llvmlite: pip install 'adam_tx[cpu]'")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are guarded by mprotect")
@pytest.mark.exhaustive
def test_no_kernel_goes_beyond_an_array():
    done = started([pathlib.Path(__file__).with_name("guard_pages.py")], {})
    assert done.stdout.endswith(" calls\n"), done.stderr[-2000:]


def kernel_of(tx, params):
    link = tx.implementation
    state = tx.init(params)
    kept = link.kept_of_leaves(Leaves(params, None, params, count=state["count"]), state)[0]
    program = tile.tile_program(link, state, tile.recipe_of(link, params, params, kept), "leaf")
    run = functools.partial(call.run_leaves, call.compiled(program), program)
    return run, program.scalars_of(state), jax.tree.leaves(kept)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda leaf: [*leaf[:2], leaf[2][:2], leaf[3]], "an operand of another shape or dtype"),
        (lambda leaf: [*leaf[:3], leaf[3].astype(jnp.int32)], "an operand of another shape or dtype"),
        (lambda leaf: leaf[:3], "another number of arrays"),
        (lambda leaf: [leaf[0][:0], *leaf[1:]], "an operand of another shape or dtype"),
    ],
)
def test_a_call_that_does_not_fit_its_kernel_raises(change, why):
    params = jnp.ones((4, 8))
    run, scalars, kept = kernel_of(adam_tx.adam(1e-3), params)
    leaf = change([params, params, *kept])
    with pytest.raises(jax.errors.JaxRuntimeError, match=why):
        jax.block_until_ready(run(scalars, [0], [leaf]))


def test_numbers_and_samples_of_another_size_raise():
    params = jnp.ones((4, 8))
    tx = adam_tx.monitor(adam_tx.adam(1e-3))
    link, state = tx.implementation, tx.init(params)
    kept = link.kept_of_leaves(Leaves(params, None, params, count=state.count), state)[0]
    recipe = tile.recipe_of(link, params, params, kept)
    program = tile.tile_program(link, state, recipe, "leaf", tile.Task(elements=32))
    target = call.compiled(program)
    leaf = [params, params, *jax.tree.leaves(kept)]
    for other, why in (
        (program._replace(reduced=program.reduced[:-1]), "for what is reduced"),
        (program._replace(every=2), "for a sample"),
        (program._replace(every=0), "another number of arrays"),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match=why):
            jax.block_until_ready(call.run_leaves(target, other, program.scalars_of(state), [0], [leaf]))


def test_other_scalars_raise():
    params = jnp.ones((4, 8))
    run, scalars, kept = kernel_of(adam_tx.adam(1e-3), params)
    with pytest.raises(jax.errors.JaxRuntimeError, match="other scalars"):
        jax.block_until_ready(run(scalars[:1], [0], [[params, params, *kept]]))
    with pytest.raises(jax.errors.JaxRuntimeError, match="other scalars"):
        jax.block_until_ready(run(scalars, [0, 1], [[params, params, *kept]]))


STRESS = pathlib.Path(__file__).with_name("stress.py")
CHECKER = {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"}
"""Variables with which glibc ends the process where something was written beyond an array."""
ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}
"""Else each thread has a heap of its own, and what is in use depends on which of them are new."""


def started(code, variables):
    """Python in a process of its own, with variables of the environment beside the others."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | variables
    return subprocess.run([sys.executable, *code], capture_output=True, text=True, check=False, env=environment)


@pytest.fixture
def checker():
    """The variables, where there is that glibc."""
    missing = started(["-c", ""], CHECKER).stderr
    if missing or not sys.platform.startswith("linux"):
        pytest.skip(f"glibc's checker of memory is not there: {missing}")
    return CHECKER


def assert_stands_stress(variables):
    done = started([STRESS], variables)
    assert done.returncode == 0, done.stderr[-2000:]
    steps, differing, grown = map(int, done.stdout.split())
    assert steps > 10_000
    assert differing == 0
    assert grown < 125_000  # 62 bytes for each step of a round


@pytest.mark.exhaustive
def test_thousands_of_steps_of_random_trees_in_threads_do_not_depend_on_donation_and_leak_nothing():
    """In a new process, where all threads compile their first kernels at the same time."""
    assert_stands_stress(ONE_HEAP)


@pytest.mark.exhaustive
def test_none_of_them_writes_beyond_an_array(checker):
    assert_stands_stress(ONE_HEAP | checker)


@pytest.mark.exhaustive
def test_the_checker_ends_a_process_that_writes_beyond_an_array(checker):
    """So the test above can fail."""
    lines = [
        "import ctypes, jax.numpy as jnp",
        "array = jnp.ones(1000, jnp.uint8).block_until_ready()",
        "ctypes.memset(array.unsafe_buffer_pointer() + 1000, 7, 1)",
        "del array",
        "jnp.ones(1000).block_until_ready()",
    ]
    assert started(["-c", "\n".join(lines)], checker).returncode == -signal.SIGABRT


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what is in use is read from /proc")
@pytest.mark.exhaustive
def test_a_thousand_steps_leak_nothing():
    """Of 40 leaves, whose description in a call takes some kilobytes."""
    tx = adam_tx.adamw(1e-3)
    step = adam_tx.step(tx, "cpu")
    donating = jax.jit(lambda params, state, grads: step(grads, state, params), donate_argnums=(0, 1))
    params = problems.tree({f"leaf{k}": (k + 1,) for k in range(40)}, jnp.float32)
    carry, grads = (params, tx.init(params)), jax.tree.map(jnp.copy, params)
    resident = run.load_script(STRESS).resident
    before = 0
    for k in range(1300):
        carry = donating(*carry, grads)
        if k == 299:
            jax.block_until_ready(carry)
            before = resident()
    jax.block_until_ready(carry)
    assert resident() - before < 2_000_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.exhaustive
def test_a_process_that_was_forked_behind_the_first_compilation_steps_as_its_parent_does():
    """JAX itself must not be forked once it has computed something."""
    lines = [
        "import os, sys, adam_tx, jax.numpy as jnp",
        "from adam_tx.executors.cpu import engine",
        "tx = adam_tx.adamw(1e-2)",
        "step = adam_tx.step(tx, 'cpu')",
        "engine.engine()",
        "child = os.fork()",
        "params = jnp.ones(5000)",
        "params, state = step(params, tx.init(params), params)",
        "right = int(state['count']) == 1 and float(params[0]) < 1",
        "os._exit(right if child == 0 else right + os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))",
    ]
    done = started(["-c", "\n".join(lines)], {})
    assert done.returncode == 2, done.stderr[-2000:]
