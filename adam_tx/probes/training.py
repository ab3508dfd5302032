"""What an optimizer keeps to as a training loop calls it: its state, counts, derivatives, jit, donation and shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adam_tx.probes.promises import DTYPES, Promise, counted


class Stepper:
    """A transformation that makes single steps, as a training loop calls it."""

    def __init__(self, tx: Any) -> None:
        self.tx = tx
        self.jitted = jax.jit(tx.update)
        self.donated = jax.jit(tx.update, donate_argnums=1)

    def begin(self, dtype: str) -> tuple[Any, Any]:
        """Parameters and a state."""
        params = {"one": jnp.ones(2, dtype)}
        return params, self.tx.init(params)

    def moving(self, dtype: str) -> tuple[list[str], list[str]]:
        """The scalars of the state that count updates, and whole numbers that never move."""
        params, state = self.begin(dtype)
        values = [_scalars(state)]
        for _ in range(3):
            state = self.jitted(params, state, params)[1]
            values.append(_scalars(state))
        counts = [p for p in values[0] if all(v.get(p, np.nan) == values[0][p] + t for t, v in enumerate(values))]
        whole = [p for p, v in values[0].items() if v in (0.0, 1.0) and all(other.get(p) == v for other in values)]
        return counts, whole

    def advance(self, dtype: str, past: int) -> dict[str, tuple[float, str]]:
        """Set all counts, and make two updates."""
        counts, _ = self.moving(dtype)
        params, state = self.begin(dtype)

        def put(path: Any, leaf: Any) -> Any:
            return jnp.asarray(past, leaf.dtype) if jax.tree_util.keystr(path) in counts else leaf

        state = jax.tree_util.tree_map_with_path(put, state)
        for _ in range(2):
            state = self.jitted(params, state, params)[1]
        after = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
        return {path: (float(after[path]), str(after[path].dtype)) for path in counts}


def _scalars(state: Any) -> dict[str, float]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    numbers = [(path, leaf) for path, leaf in leaves if jnp.ndim(leaf) == 0 and jnp.issubdtype(leaf.dtype, jnp.number)]
    return {jax.tree_util.keystr(path): float(leaf) for path, leaf in numbers}


def of_transformation(tx: Any) -> Iterator[Promise]:
    """What the calls of a training loop show."""
    stepper = Stepper(tx)
    yield from _shapes(tx)
    for dtype in DTYPES[1:]:
        name = f"counts go past 256, 65,536 and 2^24 ({dtype} parameters)"
        yield _tried(name, lambda name=name, dtype=dtype: counted(name, stepper.advance, dtype))
    yield _tried("first and second derivatives are finite at zero", lambda: _derivatives(tx))
    yield _tried("jit with donated state is eager", lambda: _donated(stepper))
    yield _tried("without params the update is the same, or refused", lambda: _without_params(tx))
    yield _tried("sharded as whole", lambda: _sharded(tx))


def _tried(name: str, check: Callable[[], Promise]) -> Promise:
    """A promise; one whose check raises is not kept, for that reason."""
    try:
        return check()._replace(name=name)
    except Exception as error:
        return Promise(name, False, f"{type(error).__name__}: {str(error).splitlines()[0][:60]}")


def _shapes(tx: Any) -> Iterator[Promise]:
    """What `update` makes of dtypes and shapes; nothing is computed."""
    changed: list[str] = []
    given: list[str] = []
    for dtype in DTYPES[1:]:
        params = {"matrix": jax.ShapeDtypeStruct((2, 3), dtype), "vector": jax.ShapeDtypeStruct((3,), dtype)}
        before = jax.eval_shape(tx.init, params)
        updates, after = jax.eval_shape(tx.update, params, before, params)
        if jax.tree.structure(before) != jax.tree.structure(after):
            changed.append(f"another structure ({dtype})")
            continue
        pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
        changed += [
            f"{jax.tree_util.keystr(path)} {b.dtype}{list(b.shape)} becomes {a.dtype}{list(a.shape)}"
            for (path, b), a in pairs
            if (b.dtype, b.shape) != (a.dtype, a.shape)
        ]
        given += [f"{u.dtype} for {dtype}" for u in jax.tree.leaves(updates) if u.dtype != dtype]
    yield Promise("the state keeps its structure, shapes and dtypes", not changed, "; ".join(changed[:2]) or "all kept")
    yield Promise("updates have the gradients' dtype", not given, given[0] if given else "float32, bfloat16")


def _derivatives(tx: Any) -> Promise:
    params = {"one": jnp.ones(2)}
    state = tx.init(params)

    def total(grad: Any) -> Any:
        return jnp.sum(tx.update({"one": grad}, state, params)[0]["one"])

    def slope(grad: Any) -> Any:
        return jnp.sum(jax.grad(total)(grad))

    def both(grad: Any) -> tuple[Any, Any]:
        return jax.grad(total)(grad), jax.grad(slope)(grad)

    first, second = (np.asarray(d)[0] for d in jax.jit(both)(jnp.zeros(2)))
    return Promise("", bool(np.isfinite(first) and np.isfinite(second)), f"{first:.3g} and {second:.3g}")


def _donated(stepper: Stepper) -> Promise:
    params, state = stepper.begin("float32")
    _, given = stepper.begin("float32")
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(given) if isinstance(leaf, jax.Array)]
    if len(set(buffers)) < len(buffers):
        return Promise("", False, "two arrays of the state share a buffer")
    off = 0.0
    for step in range(2):
        grad = {"one": jnp.asarray([0.5, -2.0]) * (step + 1.0)}
        updates, state = stepper.tx.update(grad, state, params)
        donated, given = stepper.donated(grad, given, params)
        scale = float(jnp.max(jnp.abs(updates["one"]))) or 1.0
        off = max(off, float(jnp.max(jnp.abs(updates["one"] - donated["one"]))) / scale)
    return Promise("", off < 1e-5, f"{off:.1e} of the step after 2 steps")


def _without_params(tx: Any) -> Promise:
    params = {"one": jnp.full(2, 0.5)}
    state = tx.init(params)
    try:
        without = tx.update(params, state)[0]["one"]
    except Exception as error:
        return Promise("", True, f"refused: {type(error).__name__}")
    off = float(jnp.max(jnp.abs(without - tx.update(params, state, params)[0]["one"])))
    return Promise("", off == 0.0, f"{off:.1e} apart")


def _sharded(tx: Any) -> Promise:
    devices = jax.devices()
    if len(devices) < 2:
        return Promise("", None, "one device")
    mesh = jax.sharding.Mesh(np.array(devices[:2]), ("cut",))
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("cut"))
    whole = {"one": jnp.asarray([0.5, -2.0, 1e-3, 3.0])}
    params = jax.device_put(whole, cut)

    @jax.jit
    def step(grads: Any, params: Any) -> Any:
        return tx.update(grads, tx.init(params), params)[0]

    off = float(np.max(np.abs(np.asarray(step(params, params)["one"]) - np.asarray(step(whole, whole)["one"]))))
    scale = float(np.max(np.abs(np.asarray(step(whole, whole)["one"])))) or 1.0
    return Promise("", off <= 1e-5 * scale, f"{off / scale:.1e} of the step, on 2 devices")


def stuck_counts(tx: Any) -> list[str]:
    """Whole numbers in the state that three updates leave as they are."""
    return Stepper(tx).moving("float32")[1]
