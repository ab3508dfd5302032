"""Threads step random trees, with donation and without, thousands of times.

    python stress.py     prints how many steps it made, how many bytes differ, and how much the memory grew at least

`test_memory.py` runs it, also with a checker of memory, which ends the process at a write beyond an array.
"""

import itertools
import os
import pathlib
import random
import threading

import jax
import jax.numpy as jnp
import numpy as np
import step_problems as problems

import adam_tx

THREADS = 4
TREES, FEW = 32, 12
"""So many trees make few steps each, most of them different."""
ROUNDS, STEPS = 5, 250
"""Of these rounds of steps of four trees, memory is compared after each. A leak grows in all of them."""
NAMES = [*problems.STORAGES, "adam", "nadam"]


def random_tree(seed):
    """Shapes of a few leaves, one of them of several chunks."""
    rng = random.Random(seed)
    shapes = {f"leaf{k}": tuple(rng.choice((1, 3, 64, 200, 300)) for _ in range(rng.randint(0, 3))) for k in range(4)}
    shapes = {name: shape for name, shape in shapes.items() if np.prod(shape) < 100_000}
    return shapes | {"large": (rng.choice((257, 400)), 300)}


class Training:
    """Two runs of the same steps, one that donates its arrays and one that does not."""

    def __init__(self, seed):
        name = NAMES[seed % len(NAMES)]
        tx = problems.FUSED[name]()
        self.step = adam_tx.step(tx, "cpu")
        self.donating = jax.jit(lambda params, state, grads: self.step(grads, state, params), donate_argnums=(0, 1))
        shapes, dtype = random_tree(seed), problems.dtype_of(name)
        params, self.grads = problems.tree(shapes, dtype), problems.tree(shapes, dtype, 1, awkward=True)
        self.copied = params, tx.init(params)
        self.donated = jax.tree.map(jnp.copy, self.copied)

    def run(self, steps):
        """So many steps of both."""
        for _ in range(steps):
            self.copied = self.step(self.grads, self.copied[1], self.copied[0])
            self.donated = self.donating(*self.donated, self.grads)
        jax.block_until_ready((self.copied, self.donated))

    def differing(self):
        """Bytes that differ between the two."""
        return problems.differing(self.copied, self.donated)


def together(trainings, steps):
    """All of them at once, each in its thread."""
    threads = [threading.Thread(target=training.run, args=(steps,)) for training in trainings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def resident():
    """The bytes of memory that the process has in use; 0 where that is not known."""
    told = pathlib.Path("/proc/self/statm")
    return int(told.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if told.exists() else 0


def main():
    """Step, and print what was seen."""
    differing = 0
    for first in range(0, TREES, THREADS):
        trainings = [Training(seed) for seed in range(first, first + THREADS)]
        together(trainings, FEW)
        differing += sum(training.differing() for training in trainings)
    sizes: list[int] = []
    for _ in range(ROUNDS):
        together(trainings, STEPS)
        sizes.append(resident())
    grown = min(after - before for before, after in itertools.pairwise(sizes))
    differing += sum(training.differing() for training in trainings)
    print(2 * (TREES * FEW + THREADS * ROUNDS * STEPS), differing, grown)


if __name__ == "__main__":
    main()
