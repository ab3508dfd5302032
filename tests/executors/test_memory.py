"""Kernels touch their arrays and nothing else, and a call that does not fit its kernel is refused."""

import os
import pathlib
import random
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import step_problems as problems

import adam_tx
from adam_tx._core.leaves import Leaves
from adam_tx.executors import tile
from adam_tx.executors.cpu import call

pytest.importorskip("llvmlite", reason="one pass on a CPU needs llvmlite: pip install 'adam_tx[cpu]'")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are guarded by mprotect")
@pytest.mark.exhaustive
def test_no_kernel_goes_beyond_an_array():
    script = pathlib.Path(__file__).with_name("guard_pages.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.endswith(" calls\n"), done.stderr[-2000:]


def target_of(tx, params):
    link = tx.implementation
    state = tx.init(params)
    kept = link.kept_of_leaves(Leaves(params, None, params, count=state["count"]), state)[0]
    program = tile.tile_program(link, state, tile.recipe_of(link, params, params, kept), "leaf")
    return call.compiled(program), program.scalars_of(state), jax.tree.leaves(kept)


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
    target, scalars, kept = target_of(adam_tx.adam(1e-3), params)
    leaf = change([params, params, *kept])
    with pytest.raises(jax.errors.JaxRuntimeError, match=why):
        jax.block_until_ready(call.step_leaves(target, scalars, [0], [leaf]))


def test_other_scalars_raise():
    params = jnp.ones((4, 8))
    target, scalars, kept = target_of(adam_tx.adam(1e-3), params)
    with pytest.raises(jax.errors.JaxRuntimeError, match="other scalars"):
        jax.block_until_ready(call.step_leaves(target, scalars[:1], [0], [[params, params, *kept]]))
    with pytest.raises(jax.errors.JaxRuntimeError, match="other scalars"):
        jax.block_until_ready(call.step_leaves(target, scalars, [0, 1], [[params, params, *kept]]))


def random_tree(seed):
    rng = random.Random(seed)
    shapes = {f"leaf{k}": tuple(rng.choice((1, 3, 64, 200, 300)) for _ in range(rng.randint(0, 3))) for k in range(4)}
    shapes = {name: shape for name, shape in shapes.items() if np.prod(shape) < 100_000}
    return shapes | {"large": (rng.choice((257, 400)), 300)}


def train(seed, failures):
    """Steps of a random tree, with donation and without."""
    name = NAMES[seed % len(NAMES)]
    tx = problems.FUSED[name]()
    step = adam_tx.step(tx, "cpu")
    shapes, dtype = random_tree(seed), problems.dtype_of(name)
    donating = jax.jit(lambda params, state, grads: step(grads, state, params), donate_argnums=(0, 1))
    params, grads = problems.tree(shapes, dtype), problems.tree(shapes, dtype, 1, awkward=True)
    copied = params, tx.init(params)
    donated = jax.tree.map(jnp.copy, copied)
    for _ in range(12):
        copied = step(grads, copied[1], copied[0])
        donated = donating(*donated, grads)
    failures[seed] = problems.differing(copied, donated)


NAMES = [*problems.STORAGES, "adam", "nadam"]


@pytest.mark.exhaustive
def test_a_thousand_steps_of_random_trees_in_threads_do_not_depend_on_donation():
    for first in range(0, 48, 4):
        failures = {}
        threads = [threading.Thread(target=train, args=(first + k, failures)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(failures.values()) == [0] * 4


def resident():
    """The bytes of memory that the process has in use."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what is in use is read from /proc")
@pytest.mark.exhaustive
def test_a_thousand_steps_leak_nothing():
    """Of 40 leaves, whose description in a call takes some kilobytes."""
    tx = adam_tx.adamw(1e-3)
    step = adam_tx.step(tx, "cpu")
    donating = jax.jit(lambda params, state, grads: step(grads, state, params), donate_argnums=(0, 1))
    params = problems.tree({f"leaf{k}": (k + 1,) for k in range(40)}, jnp.float32)
    carry, grads = (params, tx.init(params)), jax.tree.map(jnp.copy, params)
    before = 0
    for k in range(1300):
        carry = donating(*carry, grads)
        if k == 299:
            jax.block_until_ready(carry)
            before = resident()
    jax.block_until_ready(carry)
    assert resident() - before < 2_000_000
