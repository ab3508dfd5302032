"""Data-parallel training in four layouts: replicated, ZeRO-1, FSDP, FSDP with the state on the host.

Eight virtual CPU devices train a small character model. Every layout ends at the same
weights to the last bit; what differs is how many bytes each device keeps. The same
bytes for Llama's 8 and 70 billion parameters follow from shapes alone, with nothing
allocated::

    python examples/sharded.py

The same training as two processes with four devices each, as on two hosts. Start both::

    python examples/sharded.py --coordinator localhost:1234 --processes 2 --process 0
    python examples/sharded.py --coordinator localhost:1234 --processes 2 --process 1
"""

import argparse
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.table import Table

import adam_tx

DEVICES = 8  # of all processes together
LENGTH, BATCH = 16, 64  # characters that the model sees, windows in a batch
WIDTH, DEPTH = 128, 1


class Layout(NamedTuple):
    """Where things lie.

    Attributes:
      split: whether parameters are split over the devices, or whole on each.
      zero1: the axis of the mesh that the state is split over beside them.
      memory_kind: where what is kept of parameters lies between two steps.
    """

    split: bool = False
    zero1: str | None = None
    memory_kind: str = "device"


LAYOUTS = {
    "replicated": Layout(),
    "ZeRO-1": Layout(zero1="data"),
    "FSDP": Layout(split=True),
    "FSDP, state on the host": Layout(split=True, memory_kind="pinned_host"),
}


def create_params(key: jax.Array) -> dict[str, Any]:
    """An embedding, and blocks of a scale and two matrices; the embedding is for input and output."""

    def normal(name: str, *shape: int) -> jax.Array:
        seed = jax.random.fold_in(key, int.from_bytes(name.encode()) % 2**31)
        return jax.random.normal(seed, shape) / math.sqrt(shape[0])

    blocks = {
        f"block_{k}": {
            "scale": jnp.ones(WIDTH),
            "up": normal(f"up{k}", WIDTH, 2 * WIDTH),
            "down": normal(f"down{k}", 2 * WIDTH, WIDTH),
        }
        for k in range(DEPTH)
    }
    return {"embedding": normal("embedding", 128, WIDTH), "places": normal("places", LENGTH, WIDTH), **blocks}


def loss(params: Any, windows: jax.Array) -> jax.Array:
    """The mean over windows (batch, LENGTH + 1) of what the last character costs, in nats."""
    seen, last = windows[:, :-1], windows[:, -1]
    x = jnp.mean(params["embedding"][seen] * params["places"], axis=1)
    for k in range(DEPTH):
        block = params[f"block_{k}"]
        normed = block["scale"] * x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
        x = x + jax.nn.gelu(normed @ block["up"]) @ block["down"]
    return optax.softmax_cross_entropy_with_integer_labels(x @ params["embedding"].T, last).mean()


def draw_windows(seed: int, steps: int) -> np.ndarray:
    """Text at random places, (steps, BATCH, LENGTH + 1): of the help that comes with Python."""
    text = np.frombuffer("\n".join(topics[name] for name in sorted(topics)).encode("ascii", "replace"), np.uint8)
    starts = np.random.default_rng(seed).integers(len(text) - LENGTH, size=(steps, BATCH, 1))
    return text[starts + np.arange(LENGTH + 1)].astype(np.int32)


def place_params(shapes: Any, mesh: Mesh | AbstractMesh, layout: Layout, min_size: int) -> Any:
    """The shapes of parameters with where they lie."""
    whole = NamedSharding(mesh, P())
    places = jax.tree.map(lambda _: whole, shapes)
    if layout.split:  # as ZeRO-1 splits what is like the parameters
        state: Any = adam_tx.state_sharding(optax.trace(0.9), shapes, zero1="data", mesh=mesh, min_size=min_size)
        places = state.trace
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places)


Step = Callable[[Any, Any, Any], tuple[Any, Any, jax.Array]]


def make_step(tx: optax.GradientTransformation, mesh: Mesh, places: Any, on_device: Any) -> Step:
    """A jitted `(params, state, windows) -> (params, state, loss)` that leaves everything where it lies."""

    # XLA adds up gradients in an order that depends on how devices talk to each other. Here they are gathered first and
    # added in the order of devices, so that layouts and processes can be compared bit by bit. Where that does not
    # matter, take jax.value_and_grad(loss)(params, windows) as it is.
    @partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=False)
    def gradient(params: Any, windows: jax.Array) -> Any:
        found = jax.value_and_grad(loss)(params, windows)
        return jax.tree.map(lambda x: jnp.mean(lax.all_gather(x, "data"), axis=0), found)

    @partial(jax.jit, out_shardings=(*places, None), donate_argnums=(0, 1))
    def step(params: Any, state: Any, windows: jax.Array) -> tuple[Any, Any, jax.Array]:
        value, grads = gradient(params, windows)
        grads, state = lax.optimization_barrier((grads, state))  # a state is not fetched before there are gradients
        updates, state = tx.update(grads, jax.device_put(state, on_device), params)
        return optax.apply_updates(params, updates), state, value

    return step


class Run(NamedTuple):
    """What training in a layout comes to.

    Attributes:
      loss: of the last step.
      params, state: bytes on each device.
      on_host: bytes of the state on its host, for each device.
      digest: SHA-256 of all weights and of the state.
    """

    loss: float
    params: int
    state: int
    on_host: int
    digest: str


def train(layout: Layout, mesh: Mesh, seed: int, steps: int) -> Run:
    """Train on all processes, of which each draws its own part of a batch."""
    tx = adam_tx.adamw(3e-3, weight_decay=0.1)
    create = partial(create_params, jax.random.key(seed))
    shapes = place_params(jax.eval_shape(create), mesh, layout, min_size=2**14)
    place_state = partial(adam_tx.state_sharding, tx, shapes, zero1=layout.zero1)
    places = jax.tree.map(lambda x: x.sharding, shapes), place_state(memory_kind=layout.memory_kind)
    params = jax.jit(create, out_shardings=places[0])()
    state = jax.jit(tx.init, out_shardings=places[1])(params)
    step, value = make_step(tx, mesh, places, place_state(memory_kind="device")), math.nan
    share = BATCH // jax.process_count()
    own = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
    for windows in draw_windows(seed, steps):
        batch = jax.make_array_from_process_local_data(NamedSharding(mesh, P("data")), windows[own])
        params, state, new = step(params, state, batch)
        value = float(new)  # waits for the step: virtual devices that are at different ones may block each other
    on_host = bytes_here(state, "pinned_host")
    return Run(value, bytes_here(params), bytes_here(state) - on_host, on_host, digest(params, state))


def bytes_here(tree: Any, memory_kind: str | None = None) -> int:
    """What the first device of this process has of it, in all memories or in one."""
    arrays = [x for x in jax.tree.leaves(tree) if memory_kind in (None, x.sharding.memory_kind)]
    return sum(x.addressable_shards[0].data.nbytes for x in arrays)


def digest(params: Any, state: Any) -> str:
    """SHA-256 of all numbers, gathered on every process."""
    joined = hashlib.sha256()
    for path, x in jax.tree.leaves_with_path(multihost_utils.process_allgather((params, state), tiled=True)):
        joined.update(jax.tree_util.keystr(path).encode() + np.ascontiguousarray(x).tobytes())
    return joined.hexdigest()


def render_runs(runs: Mapping[str, Run]) -> Table:
    """The table of what was trained."""
    table = Table(title=f"The same training on {DEVICES} devices")
    for column in ("", "loss", "parameters", "state", "on the host", "SHA-256"):
        table.add_column(column, justify="left" if column in ("", "SHA-256") else "right")
    for name, of in runs.items():
        table.add_row(name, f"{of.loss:.4f}", f"{of.params:,}", f"{of.state:,}", f"{of.on_host:,}", of.digest[:8])
    table.caption = "Bytes on each device between two steps, and what all weights and the whole state hash to."
    return table


class Llama(NamedTuple):
    """The sizes of one of Llama 3's models; keys and values have eight heads of 128 in each."""

    width: int
    hidden: int
    layers: int


LLAMAS = {"8B": Llama(4096, 14336, 32), "70B": Llama(8192, 28672, 80)}
VOCABULARY = 128_512  # 128,256, padded so that blocks of 8-bit moments divide over 512 devices
KEYS = 1024


def llama_shapes(of: Llama, dtype: Any) -> dict[str, Any]:
    """Its parameters as shapes, the layers stacked."""
    shapes = {
        "query": (of.width, of.width),
        "key": (of.width, KEYS),
        "value": (of.width, KEYS),
        "out": (of.width, of.width),
        "gate": (of.width, of.hidden),
        "up": (of.width, of.hidden),
        "down": (of.hidden, of.width),
        "scale_attention": (of.width,),
        "scale_mlp": (of.width,),
    }
    stacked = {name: (of.layers, *shape) for name, shape in shapes.items()}
    ends = {"embedding": (VOCABULARY, of.width), "scale": (of.width,), "head": (VOCABULARY, of.width)}
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in (ends | stacked).items()}


def small_adamw() -> optax.GradientTransformation:
    """Both moments in eight bits; bfloat16 weights with eight bits more."""
    eight_bit = adam_tx.storage.EightBit()
    return adam_tx.chain(adam_tx.adamw(1e-4, mu_dtype=eight_bit, nu_dtype=eight_bit), adam_tx.master_weights(bits=24))


RECIPES = {"float32": (lambda: adam_tx.adamw(1e-4), jnp.float32), "small": (small_adamw, jnp.bfloat16)}


class Share(NamedTuple):
    """Bytes that each device has."""

    params: int
    state: int


def measure_share(of: Llama, recipe: str, layout: Layout, devices: int) -> Share:
    """What a device has of a model and of its optimizer's state, from shapes alone."""
    make, dtype = RECIPES[recipe]
    tx, mesh = make(), AbstractMesh((devices,), ("data",))
    # the scales of normalisation, of which there are up to 655,360 in a stack, stay whole
    params = place_params(llama_shapes(of, dtype), mesh, layout, min_size=2**20)
    split = {"zero1": layout.zero1, "min_size": 2**20, "memory_kind": layout.memory_kind}
    places = adam_tx.state_sharding(tx, params, **split)
    return Share(bytes_of_shapes(params), bytes_of_shapes(jax.eval_shape(tx.init, params), places))


def bytes_of_shapes(tree: Any, places: Any = None) -> int:
    """What a device has of a tree of shapes in its own memory."""
    places = jax.tree.map(lambda x: x.sharding, tree) if places is None else places
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(places), strict=True)
    own = [(x, place) for x, place in pairs if place.memory_kind != "pinned_host"]
    return sum(math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize for x, place in own)


Shares = Mapping[tuple[str, int, str], Sequence[Share]]  # for each recipe, by model, number of devices and layout


def shares(sizes: Iterable[str] = LLAMAS, devices: Iterable[int] = (64, 512)) -> Shares:
    """The share of a device by model, number of devices and layout, for each recipe."""
    return {
        (size, n, layout): [measure_share(LLAMAS[size], recipe, LAYOUTS[layout], n) for recipe in RECIPES]
        for size in sizes
        for n in devices
        for layout in LAYOUTS
    }


def render_shares(found: Shares) -> Table:
    """The table of shares, in gigabytes."""
    table = Table(title="Llama 3: gigabytes on each device between two steps")
    parts = [f"{recipe}\n{part}" for recipe in RECIPES for part in Share._fields]
    for column in ("model", "devices", "layout", *parts):
        table.add_column(column, justify="left" if column == "layout" else "right")
    for (size, n, layout), of in found.items():
        figures = [f"{part / 1e9:.2f}" for share in of for part in share]
        table.add_row(size, str(n), layout, *figures, end_section=layout == list(LAYOUTS)[-1])
    table.caption = "small: bfloat16 weights with 8 bits more, and 8-bit moments."
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Train in all layouts and print both tables, from the first process only."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coordinator", help="host:port of the first process, where there are several")
    parser.add_argument("--processes", type=int, default=1, help="how many there are; a divisor of 8")
    parser.add_argument("--process", type=int, default=0, help="which of them this is, from 0")
    args = parser.parse_args(argv)
    if DEVICES % args.processes:
        parser.error(f"--processes must divide the {DEVICES} devices, got {args.processes}.")
    jax.config.update("jax_num_cpu_devices", DEVICES // args.processes)
    if args.coordinator:
        jax.distributed.initialize(args.coordinator, args.processes, args.process)
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    runs = {name: train(layout, mesh, args.seed, args.steps) for name, layout in LAYOUTS.items()}
    if jax.process_index() == 0:
        Console().print(render_runs(runs))
        for name, of in runs.items():
            print(f"{name:<24} {of.digest}")
        if args.processes == 1:
            Console().print(render_shares(shares()))


if __name__ == "__main__":
    main()
