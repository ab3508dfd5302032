"""What a step costs on an H100 and on a TPU v5e, read off the programs that their compilers make here."""

import jax.numpy as jnp
import pytest
from cost import compiled_cost
from targets import MissingError

import adam_tx
from adam_tx.storage import EightBit, StochasticBFloat16

pytestmark = [pytest.mark.targets, pytest.mark.usefixtures("usual_compiler", "standard_promotion")]

EIGHT, ROUND = EightBit(), StochasticBFloat16()
ADAMW = adam_tx.adamw(1e-3)
EIGHT_BITS = adam_tx.adamw(1e-3, mu_dtype=EIGHT, nu_dtype=EIGHT)
FIVE_BYTES = adam_tx.chain(EIGHT_BITS, adam_tx.master_weights())
MASTER = adam_tx.chain(ADAMW, adam_tx.master_weights(bits=32))
STEPS = {
    "float32": ADAMW,
    "bfloat16 at random": adam_tx.adamw(1e-3, mu_dtype=ROUND, nu_dtype=ROUND),
    "eight bits": EIGHT_BITS,
    "five bytes": FIVE_BYTES,
    "master weights": MASTER,
    "guard": adam_tx.guard(ADAMW),
    "guard, eight bits": adam_tx.guard(EIGHT_BITS),
    "guard, five bytes": adam_tx.guard(FIVE_BYTES),
    "guard, master weights": adam_tx.guard(MASTER),
    "guard of gradients": adam_tx.guard(ADAMW, watch="gradient"),
    "guard of gradients, eight bits": adam_tx.guard(EIGHT_BITS, watch="gradient"),
    "guard of gradients, five bytes": adam_tx.guard(FIVE_BYTES, watch="gradient"),
    "guard of gradients, master weights": adam_tx.guard(MASTER, watch="gradient"),
}
NARROW = [name for name in STEPS if name.endswith(("five bytes", "master weights"))]
COSTS = {
    ("h100", "float32"): (28.0, 0.0),
    ("h100", "bfloat16 at random"): (20.0, 0.0),
    ("h100", "eight bits"): (22.41, 0.13),
    ("h100", "five bytes"): (16.41, 0.13),
    ("h100", "master weights"): (26.0, 0.0),
    ("h100", "guard"): (44.0, 0.0),
    ("h100", "guard, eight bits"): (32.47, 0.13),
    ("h100", "guard, five bytes"): (23.47, 0.13),
    ("h100", "guard, master weights"): (40.0, 0.0),
    ("h100", "guard of gradients"): (32.0, 0.0),
    ("h100", "guard of gradients, eight bits"): (26.44, 0.13),
    ("h100", "guard of gradients, five bytes"): (20.44, 1.1),
    ("h100", "guard of gradients, master weights"): (28.0, 0.0),
    ("v5e", "float32"): (28.0, 0.0),
    ("v5e", "eight bits"): (52.7, 1.6),
    ("v5e", "five bytes"): (58.8, 5.2),
    ("v5e", "guard"): (44.01, 0.01),
    ("v5e", "guard, eight bits"): (60.4, 1.6),
}
"""By target and step the bytes that its kernels read and write, and the temporary ones, for each parameter, at most."""


@pytest.mark.parametrize(("target", "name"), COSTS)
def test_a_step_for_another_device_costs_no_more_than_is_published(target, name):
    """Of one leaf of 33 million; five parts in ten thousand are for what the whole tree shares."""
    dtype = jnp.bfloat16 if name in NARROW else jnp.float32
    try:
        cost = compiled_cost(STEPS[name], {"w": (8192, 4096)}, dtype, target=target)
    except MissingError as missing:
        pytest.skip(str(missing))
    moved, temp = COSTS[target, name]
    assert cost.bytes_per_parameter <= moved * 1.0005
    assert cost.temp_bytes_per_parameter <= temp + 0.01
