"""What is probed: anything that turns gradients into updates, one after the other."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

Trees = Mapping[str, np.ndarray]
"""Arrays by the name of the leaf; of gradients with the axes [experiment, step, ...], of a start without the steps."""


class Subject(Protocol):
    """A black box that many experiments are made with at once, each from a state of its own."""

    name: str

    def held(self, grads: Trees, params: Trees, dtype: str) -> Trees:
        """The updates of each step, with parameters that the experiment sets, `[experiment, step, ...]`."""
        ...

    def followed(self, grads: Trees, start: Trees, dtype: str) -> Trees:
        """The updates of each step, with parameters that move by them."""
        ...


class Transformation:
    """An Optax transformation as a subject."""

    def __init__(self, tx: optax.GradientTransformation, name: str) -> None:
        self.tx = tx
        self.name = name

    def held(self, grads: Trees, params: Trees, dtype: str) -> Trees:
        """As `Subject` says."""
        with arithmetic(dtype):
            return _host(self._held(_in(grads, dtype), _in(params, dtype)))

    def followed(self, grads: Trees, start: Trees, dtype: str) -> Trees:
        """As `Subject` says."""
        with arithmetic(dtype):
            return _host(self._followed(_in(grads, dtype), _in(start, dtype)))

    @functools.cached_property
    def _held(self) -> Any:
        return jax.jit(jax.vmap(functools.partial(steps_held, self.tx)))

    @functools.cached_property
    def _followed(self) -> Any:
        return jax.jit(jax.vmap(functools.partial(steps_followed, self.tx)))


def steps_held(tx: Any, grads: Any, params: Any) -> Any:
    """The updates of all steps of one experiment, whose parameters are given for each step."""

    def one(state: Any, now: Any) -> Any:
        updates, after = tx.update(now[0], state, now[1])
        return as_before(state, after), updates

    first = {name: value[0] for name, value in params.items()}
    return jax.lax.scan(one, tx.init(first), (grads, params))[1]


def steps_followed(tx: Any, grads: Any, start: Any) -> Any:
    """The updates of all steps of one experiment, whose parameters move."""

    def one(carry: Any, grad: Any) -> Any:
        params, state = carry
        updates, after = tx.update(grad, state, params)
        return (as_before(params, optax.apply_updates(params, updates)), as_before(state, after)), updates

    return jax.lax.scan(one, (start, tx.init(start)), grads)[1]


@contextlib.contextmanager
def arithmetic(dtype: str) -> Generator[None]:
    """JAX as its users have it, but for float64 where that is probed."""
    with (
        jax.enable_x64(dtype == "float64"),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


def as_before(before: Any, after: Any) -> Any:
    """A state with the dtypes that it began with: `promises` has what it says of one that changes them."""

    def back(one: Any, other: Any) -> Any:
        return jnp.asarray(other, jnp.result_type(one))

    return jax.tree.map(back, before, after)


def _in(trees: Trees, dtype: str) -> Any:
    return {name: jnp.asarray(value, dtype) for name, value in trees.items()}


def _host(trees: Any) -> Trees:
    return {name: np.asarray(value, np.float64) for name, value in trees.items()}
