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


def run(make, name, shape, at_end, compiler):
    """One leaf's step, compared with that of XLA's call."""
    tx = make()
    link = tx.implementation
    params, grads = (problems.tree({"leaf": shape}, problems.dtype_of(name), seed) for seed in (0, 1))
    state = tx.init(params)
    kept = link.kept_of_leaves(Leaves(grads, None, params, count=state["count"]), state)[0]
    recipe = tile.recipe_of(link, params["leaf"], grads["leaf"], kept)
    program = tile.tile_program(link, state, recipe, "leaf")
    arrays = [params["leaf"], grads["leaf"], *jax.tree.leaves(kept)]
    made, *_ = call.run_leaves(call.compiled(program), program, program.scalars_of(state), [0], [arrays])
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, ctypes.c_uint32, *[ctypes.c_int64] * 3)(
        compiler.address(kernel(program, compiler.instructions.lanes).name)
    )
    places = [guarded(array, at_end) for array in (*arrays, arrays[0], *arrays[2:])]
    scalars, _ = guarded(words(program.scalars_of(state)), at_end) if program.scalars else (0, 0)
    row = shape[-1] if recipe.is_blocks else arrays[0].size
    tiles = arrays[0].size // row * -(-row // recipe.block)
    function((ctypes.c_void_p * len(places))(*[place for place, _ in places]), scalars, 0, row, 0, tiles)
    for (place, size), array in zip(places[len(arrays) :], made[0], strict=True):
        assert ctypes.string_at(place, size) == np.asarray(array).tobytes()


def main():
    """All storages, shapes and sets of instructions."""
    calls = 0
    for instructions in engine.instruction_sets():
        compiler = engine.engine_for(instructions)
        engine.engine = lambda compiler=compiler: compiler
        for name, make in problems.STORAGES.items():
            for shape in SHAPES:
                for at_end in (True, False):
                    run(make, name, shape, at_end, compiler)
                    calls += 1
    print(calls, "calls")


if __name__ == "__main__":
    jnp.zeros(())
    main()
