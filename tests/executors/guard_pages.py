"""Kernels run on arrays that end where memory may be touched no more, and then on such as begin there.

    python guard_pages.py       prints how many calls were made; a kernel that goes beyond an array ends the process

`test_memory.py` runs it, with the folder of tests among those where Python finds modules.
"""

import ctypes
import mmap

import jax
import jax.numpy as jnp
import numpy as np
import step_problems as problems

import adam_tx
from adam_tx._core.leaves import Leaves
from adam_tx.executors import tile
from adam_tx.executors.cpu import call, engine
from adam_tx.executors.cpu.kernel import kernel

PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)
SHAPES = [(1,), (5,), (37,), (4097,), (3, 64), (3, 129), (2, 2, 200)]
KEEP = []


def guarded(array, at_end):
    """A copy of an array between two pages that nobody may touch, close to one of them."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    pages = -(-data.size // PAGE) + 2
    memory = mmap.mmap(-1, pages * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    KEEP.append(memory)
    for page in (0, pages - 1):
        assert LIBC.mprotect(ctypes.c_void_p(start + page * PAGE), ctypes.c_size_t(PAGE), 0) == 0
    address = start + (pages - 1) * PAGE - data.size if at_end else start + PAGE
    ctypes.memmove(address, data.ctypes.data, data.size)
    return address, data.size


def words(scalars):
    """Numbers as the kernel reads them."""
    return np.asarray(call._words(scalars))


def reduced(numbers, how):
    """What numbers of tiles come to."""
    return np.float32(np.sum(numbers, dtype=np.float64)) if how == "sum" else np.max(numbers)


def run(tx, name, shape, at_end, compiler, task=tile.STEP):
    """One leaf's pass, compared with that of XLA's call."""
    link = tx.implementation
    params, grads = (problems.tree({"leaf": shape}, problems.dtype_of(name), seed) for seed in (0, 1))
    state = tx.init(params)
    kept = link.kept_of_leaves(Leaves(grads, None, params, count=link.count_of(state)), state)[0]
    recipe = tile.recipe_of(link, params["leaf"], grads["leaf"], kept)
    program = tile.tile_program(link, state, recipe, "leaf", task)
    scalars_of = program.scalars_of(state, task.found)
    arrays = [params["leaf"], grads["leaf"], *jax.tree.leaves(kept)]
    made = call.run_leaves(call.compiled(program), program, scalars_of, [0], [arrays])
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, ctypes.c_uint32, *[ctypes.c_int64] * 3)(
        compiler.address(kernel(program, compiler.instructions.lanes).name)
    )
    scalars, _ = guarded(words(scalars_of), at_end) if program.scalars else (0, 0)
    row = shape[-1] if recipe.is_blocks else arrays[0].size
    tiles = arrays[0].size // row * -(-row // recipe.block)
    outputs = [arrays[0], *arrays[2:]] if program.outputs else []
    of_tiles = [np.zeros(tiles, np.float32) for _ in program.reduced]
    places = [guarded(array, at_end) for array in (*arrays, *outputs, *of_tiles, *made.samples[0])]
    function((ctypes.c_void_p * len(places))(*[place for place, _ in places]), scalars, 0, row, 0, tiles)
    written = [ctypes.string_at(place, size) for place, size in places[len(arrays) :]]
    numbers = [np.frombuffer(x, np.float32) for x in written[len(outputs) :][: len(of_tiles)]]
    assert written[: len(outputs)] == [np.asarray(x).tobytes() for x in made.arrays[0]]
    assert written[len(outputs) + len(of_tiles) :] == [np.asarray(x).tobytes() for x in made.samples[0]]
    for of_leaf, tiled, how in zip(made.reduced[:, 0], numbers, program.outline.hows, strict=True):
        assert reduced(tiled, how) == of_leaf


def tasks(make):
    """What is done with a leaf: a step; a survey, and the step after it; a step with sums and a sample."""
    yield make(), tile.STEP
    guarded_step = adam_tx.guard(make())
    yield guarded_step, tile.Task(is_survey=True)
    yield guarded_step, tile.Task(found={"squares": [jnp.float32(1)], "spoilt": jnp.float32(0)})
    yield adam_tx.monitor(make()), tile.Task(elements=5 * 8192)


def main():
    """All storages, shapes and sets of instructions."""
    calls = 0
    for instructions in engine.instruction_sets():
        compiler = engine.engine_for(instructions)
        engine.engine = lambda compiler=compiler: compiler
        for name, make in problems.STORAGES.items():
            for shape in SHAPES:
                for at_end in (True, False):
                    for tx, task in tasks(make):
                        run(tx, name, shape, at_end, compiler, task)
                        calls += 1
    print(calls, "calls")


if __name__ == "__main__":
    jnp.zeros(())
    main()
