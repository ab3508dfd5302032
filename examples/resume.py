"""Training that may be killed at any time: start the same command again, and it goes on where it was.

Orbax saves parameters, optimizer state and step number every few steps, while training
goes on. A start looks for the last complete checkpoint. Batches depend on the step
number alone, so nothing else has to be kept. However often it was killed, a run ends
with the same bits: its last line has a hash of them. Stop this one, and start it again::

    python examples/resume.py --directory checkpoints --steps 2000
"""

import argparse
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from orbax import checkpoint

import adam_tx

BATCH, INPUTS, HIDDEN = 32, 8, 64  # eight bits begin to pay with rows of 64
BROKEN = 10  # one batch in so many has a missing value


class Batch(NamedTuple):
    """Inputs (batch, inputs), and targets (batch,)."""

    inputs: np.ndarray
    targets: np.ndarray


class Training(NamedTuple):
    """All that has to be saved; `step` is the number of steps that were taken."""

    params: Any
    opt_state: Any
    step: Any


Advance = Callable[[Training, Batch], Training]


def draw_batch(step: int) -> Batch:
    """A function of the step alone, so that a run that goes on sees what it would have seen."""
    inputs = np.random.default_rng(step).standard_normal((BATCH, INPUTS), np.float32)
    targets = np.sin(inputs.sum(axis=1))
    if step % BROKEN == BROKEN - 1:
        inputs[0, 0] = np.nan
    return Batch(inputs, targets)


def create_params() -> dict[str, Any]:
    """A layer of hidden units, and one number from them."""
    hidden, output = jax.random.split(jax.random.key(0))
    return {
        "hidden": {"kernel": jax.random.normal(hidden, (INPUTS, HIDDEN)) / INPUTS**0.5, "bias": jnp.zeros(HIDDEN)},
        "output": {"kernel": jax.random.normal(output, (HIDDEN, 1)) / HIDDEN**0.5, "bias": jnp.zeros(1)},
    }


def loss(params: Any, batch: Batch) -> jax.Array:
    """The mean square error."""
    hidden = jnp.tanh(batch.inputs @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    found = hidden @ params["output"]["kernel"] + params["output"]["bias"][None]
    return jnp.mean(jnp.square(found[:, 0] - batch.targets))


def create_optimizer() -> optax.GradientTransformation:
    """AdamW with 8-bit moments; biases do not decay, and a broken batch changes nothing."""
    eight_bit = adam_tx.storage.EightBit(min_size=0)
    return adam_tx.guard(
        adam_tx.groups(
            {"*/bias": {"weight_decay": 0.0}},
            default={},
            optimizer=adam_tx.adamw,
            learning_rate=optax.exponential_decay(1e-2, transition_steps=100, decay_rate=0.9),
            weight_decay=1e-2,
            mu_dtype=eight_bit,
            nu_dtype=eight_bit,
        )
    )


def make_advance(tx: optax.GradientTransformation) -> Advance:
    """A jitted step, which overwrites the training it is given."""

    @partial(jax.jit, donate_argnums=0)
    def advance(training: Training, batch: Batch) -> Training:
        params, opt_state, step = training
        updates, opt_state = tx.update(jax.grad(loss)(params, batch), opt_state, params)
        return Training(optax.apply_updates(params, updates), opt_state, step + 1)

    return advance


def open_manager(directory: Path, every: int) -> checkpoint.CheckpointManager:
    """Keeps the last two checkpoints, and removes what a killed run has left half written."""
    options = checkpoint.CheckpointManagerOptions(
        save_interval_steps=every, max_to_keep=2, cleanup_tmp_directories=True
    )
    return checkpoint.CheckpointManager(directory.absolute(), options=options)


def begin(manager: checkpoint.CheckpointManager, tx: optax.GradientTransformation) -> Training:
    """The last complete checkpoint, or a new training if there is none."""
    params, last = create_params(), manager.latest_step()
    new = Training(params, tx.init(params), jnp.zeros((), jnp.int32))
    saved: Any = new if last is None else manager.restore(last, args=checkpoint.args.StandardRestore(new))
    return saved


def train(manager: checkpoint.CheckpointManager, advance: Advance, training: Training, steps: int) -> Training:
    """Go on to this number of steps. The manager saves in the background, and only every so many steps."""
    for step in range(int(training.step), steps):
        training = advance(training, draw_batch(step))
        manager.save(step + 1, args=checkpoint.args.StandardSave(training), force=step + 1 == steps)
    return training


def digest(tree: Any) -> str:
    """A SHA-256 of the names and bytes of all arrays."""
    sha = hashlib.sha256()
    for path, array in jax.tree_util.tree_leaves_with_path(tree):
        sha.update(jax.tree_util.keystr(path).encode() + np.asarray(array).tobytes())
    return sha.hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and say from which step on, and with which bits it ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="where the checkpoints are")
    parser.add_argument("--steps", type=int, default=200, help="in all (default %(default)s)")
    parser.add_argument("--every", type=int, default=10, help="steps from one save to the next (default %(default)s)")
    options = parser.parse_args(arguments)
    tx = create_optimizer()
    with open_manager(options.directory, options.every) as manager:
        training = begin(manager, tx)
        start = int(training.step)
        print(f"from step {start}", flush=True)
        training = train(manager, make_advance(tx), training, options.steps)
    skipped = int(training.opt_state.skipped)
    print(f"{training.step} steps, from step {start}, {skipped} batches skipped, sha256 {digest(training[:2])}")


if __name__ == "__main__":
    main()
