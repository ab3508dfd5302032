"""What `fixed_cost.py` times: its contenders, and a turn of each kind of work with one of them."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cost import jitted_step
from step import BASELINE, LEARNING_RATE, TORCH_CONTENDERS, torch_device, torch_module

import adam_tx
from adam_tx.storage import EightBit, StochasticBFloat16, StorageLike

OURS, NESTED = "adam_tx", "nested"

Make = Callable[[], optax.GradientTransformation]
Shapes = Sequence[tuple[int, ...]]
Turn = Callable[[], float]
"""Seconds a step, the mean of a turn."""


def nested() -> optax.GradientTransformation:
    """The same Adam, with links two chains deeper."""
    rms = adam_tx.chain(adam_tx.scale_by_rms(0.999, debias=True), adam_tx.bias_correction(0.9))
    direction = adam_tx.chain(adam_tx.scale_by_momentum(0.9), rms)
    return adam_tx.chain(direction, adam_tx.scale_by_learning_rate(LEARNING_RATE))


def stored_as(storage: StorageLike) -> optax.GradientTransformation:
    """Adam with both moments in small state."""
    return adam_tx.adam(LEARNING_RATE, mu_dtype=storage, nu_dtype=storage)


AROUND: dict[str, Make] = {
    "bfloat16, at random": lambda: stored_as(StochasticBFloat16()),
    "8-bit": lambda: stored_as(EightBit()),
    "guard": lambda: adam_tx.guard(adam_tx.adam(LEARNING_RATE)),
    "monitor": lambda: adam_tx.monitor(adam_tx.adam(LEARNING_RATE)),
}
"""What takes longer to compile than Adam alone."""
MAKERS: dict[str, Make] = {
    BASELINE: lambda: optax.adam(LEARNING_RATE),
    OURS: lambda: adam_tx.adam(LEARNING_RATE),
    NESTED: nested,
} | AROUND
TORCH = {name: TORCH_CONTENDERS[name] for name in ("torch single", "torch fused")}
REFERENCE = {name: OURS if name in (NESTED, *AROUND) else BASELINE for name in [*MAKERS, *TORCH]}
"""What each contender is compared with."""


def loop_turn(make: Make, shapes: Shapes, steps: int) -> Turn:
    """A training loop in Python: the jitted step, parameters and state donated."""
    tx, params, grads = make(), ones(shapes), ones(shapes)
    step = jitted_step(tx)
    carry = params, jax.jit(tx.init)(params)  # jitted: each leaf its own buffer, as donation requires

    def work() -> None:
        nonlocal carry
        carry = step(*carry, grads)

    return timed(work, steps, lambda: jax.block_until_ready(carry))


def scan_turn(make: Make, shapes: Shapes, steps: int) -> Turn:
    """Many steps in one `lax.scan`, a tenth of a turn at a time, so that hardly anything but steps is timed.

    The gradient is that of half the parameters' square. Were it the same at every step, XLA
    would take what depends on it alone out of the loop, which no training loop allows.
    """
    tx, params = make(), ones(shapes)
    length = max(1, steps // 10)

    @jax.jit
    def run(params: Any, state: Any) -> Any:
        def body(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            updates, state = tx.update(params, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, state), length=length)[0]

    state = tx.init(params)
    turn = timed(lambda: jax.block_until_ready(run(params, state)), 10)
    return lambda: turn() / length


def init_turn(make: Make, shapes: Shapes, steps: int) -> Turn:
    """From parameters to the state for them, traced, of an optimizer that was just made."""
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return timed_apart(lambda: functools.partial(jax.eval_shape, make().init, params), steps)


def import_turn(make: Make, shapes: Shapes, steps: int) -> Turn:
    """From arrays by name, as `export_state` gives them, to a state."""
    tx, params = make(), [np.ones(shape, np.float32) for shape in shapes]
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(tx.init, params))
    exported = adam_tx.export_state(state, params, tx)
    return timed_apart(lambda: functools.partial(adam_tx.import_state, tx, params, exported, report=None), steps)


def trace_turn(make: Make, shapes: Shapes, steps: int) -> Turn:
    """From Python to jaxpr, of an optimizer that was just made."""
    return timed_apart(lambda: functools.partial(*abstract_step(make, shapes)), steps)


def compile_turn(make: Make, shapes: Shapes, steps: int) -> Turn:
    """From jaxpr to executable."""

    def prepare() -> Callable[[], Any]:
        trace, *arguments = abstract_step(make, shapes)
        traced = trace(*arguments)
        return lambda: traced.lower().compile()

    return timed_apart(prepare, steps)


def eager_turn(make: Make, shapes: Shapes, steps: int) -> Turn:
    """An update without jit, every operation dispatched by itself."""
    tx, params, grads = make(), ones(shapes), ones(shapes)
    state = tx.init(params)
    return timed(lambda: jax.block_until_ready(tx.update(grads, state, params)), steps)


def torch_turn(options: Mapping[str, bool], shapes: Shapes, steps: int) -> Turn:
    """A training loop in Python with one of PyTorch's Adams."""
    torch, device = torch_module(), torch_device()
    weights = [torch.ones(shape, device=device, requires_grad=True) for shape in shapes]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.Adam(weights, lr=LEARNING_RATE, **options)
    return timed(optimizer.step, steps, torch.cuda.synchronize if device == "cuda" else lambda: None)


TURNS = {
    "loop": loop_turn,
    "scan": scan_turn,
    "eager": eager_turn,
    "init": init_turn,
    "import": import_turn,
    "trace": trace_turn,
    "compile": compile_turn,
}


def ones(shapes: Shapes) -> list[jax.Array]:
    """Leaves of these shapes."""
    return [jnp.ones(shape) for shape in shapes]


def abstract_step(make: Make, shapes: Shapes) -> tuple[Any, ...]:
    """The function that traces a step, and its abstract arguments."""
    tx, params = make(), [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jitted_step(tx).trace, params, jax.eval_shape(tx.init, params), params


def timed(work: Callable[[], Any], steps: int, wait: Callable[[], Any] = lambda: None) -> Turn:
    """Turns of so many steps, after a few untimed that bring data back and let others' threads come to rest."""
    work()

    def turn() -> float:
        for _ in range(max(1, steps // 10)):
            work()
        wait()
        start = time.perf_counter()
        for _ in range(steps):
            work()
        wait()
        return (time.perf_counter() - start) / steps

    return turn


def timed_apart(prepare: Callable[[], Callable[[], Any]], steps: int) -> Turn:
    """Turns of steps each of which is first prepared, untimed; in seconds of the processor, of all threads together."""
    prepare()()

    def turn() -> float:
        seconds = 0.0
        for _ in range(steps):
            work = prepare()
            start = time.process_time()
            work()
            seconds += time.process_time() - start
        return seconds / steps

    return turn
