"""What a step has to know before it is made, such as the largest number of each block that is stored in eight bits.

A GPU's compiler makes several passes over memory where a number is needed for what it is
formed from: it keeps the new moments, takes the largest of each block, and encodes them in
a kernel of its own. So the step is traced twice there. The first run keeps nothing but what
is asked for here; all else of it is dead code. Its state comes from behind a barrier, so
that the compiler cannot make one of the two. The second is given what the first has found,
and is one pass.

On other devices there is no barrier. There the compiler finds the first run again in the
second, and the program is what it would be without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
from jax import lax

T = TypeVar("T")


class Ahead:
    """What is known ahead: found in a first run, given in a second, which asks for the same in the same order.

    Args:
      given: what the first run has found; None for the first run.

    Attributes:
      found: what was found so far.
    """

    def __init__(self, given: Iterable[Any] | None = None) -> None:
        self.found: list[Any] = []
        self._given = None if given is None else iter(given)

    @property
    def is_first(self) -> bool:
        """Whether this is the run that finds it."""
        return self._given is None

    def of(self, form: Callable[[], T]) -> T:
        """What the function forms, in the first run; what was found, in the second."""
        if self._given is not None:
            return next(self._given)
        self.found.append(form())
        return self.found[-1]


def known(ahead: Ahead | None, form: Callable[[], T]) -> T:
    """What the function forms, ahead if somebody looks ahead."""
    return form() if ahead is None else ahead.of(form)


def apart(tree: T) -> T:
    """The same arrays, which a GPU's compiler takes for others."""
    return jax.tree.map(_apart, tree)


def _apart(x: Any) -> Any:
    return _behind_a_barrier(x) if isinstance(x, jax.Array) and x.ndim else x


@jax.jit  # traced once a shape
def _behind_a_barrier(x: jax.Array) -> jax.Array:
    barrier = lax.optimization_barrier
    return lax.platform_dependent(x, cuda=barrier, rocm=barrier, default=_as_it_is)


def _as_it_is(x: jax.Array) -> jax.Array:
    return x
