"""`plan`: which executor runs each leaf, and why."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from adam_tx._core import manual
from adam_tx._core.abstract_leaf_step import KeptOfLeaf
from adam_tx._core.abstract_link import AbstractLink, implementation_of
from adam_tx._core.call import is_optax
from adam_tx._core.leaves import Leaves
from adam_tx._core.states import State
from adam_tx.executors.made import Outline, Passed
from adam_tx.executors.tile import STEP, Task, Unsupported


class Fused(Protocol):
    """How one pass is made over leaves that are alike."""

    @property
    def outline(self) -> Outline:
        """The tree of what is made of a leaf."""
        ...

    @property
    def is_of_traced(self) -> bool:
        """Whether it reads numbers of a function around it that JAX transforms, such as a rate that is an argument."""
        ...

    def scalars(self, state: State, found: Any) -> Any:
        """What it reads of the numbers of a state, and of what a survey has found, found out before it by XLA."""
        ...

    def step(self, scalars: Any, numbers: Sequence[int], leaves: Sequence[Any]) -> Passed:
        """What is made of each leaf: its new parameter, and what is then kept of it.

        Args:
          scalars: what `scalars` gave.
          numbers: those of the leaves in their tree.
          leaves: of each the parameter, the gradient, and what is kept.
        """
        ...


class Executor(Protocol):
    """What makes one pass over leaves, on the machines that it is for.

    Attributes:
      name: what it is called.
      reduces: whether its passes can also reduce what they read.
    """

    name: str
    reduces: bool

    def obstacle(self) -> str | None:
        """Why it cannot run here."""
        ...

    def recipe(self, link: AbstractLink, param: Any, update: Any, kept: KeptOfLeaf, way: Hashable) -> Hashable:
        """What a leaf has in common with all that are run alike; raises Unsupported."""
        ...

    def fused(self, link: AbstractLink, state: State, recipe: Any, path: str, task: Task = STEP) -> Fused:
        """How leaves of a recipe are run, of which one has this path; raises Unsupported."""
        ...


class Choice(NamedTuple):
    """Who runs a leaf.

    Attributes:
      reason: why it is XLA; empty where it is not.
      fused: how it is run in one pass; None where it is XLA.
      way: how the link treats the leaf.
      survey: the pass before, which finds what has to be known of all leaves; None where nothing has.
    """

    reason: str
    fused: Fused | None = None
    way: Hashable = None
    survey: Fused | None = None


def obstacles(executor: Executor, tx: Any, last: Any) -> Iterator[str]:
    """Why no leaf can be run in one pass by a transformation whose last member is this, whatever the parameters are."""
    link = implementation_of(last)
    if link is None:
        yield f"{_name(last)} is not a link of adam_tx" + ("" if last is tx else f", and stands last in {_name(tx)}")
        return
    yield from link.fusing_obstacles(tiled=True)
    if link.reduces and not executor.reduces:
        yield f"{link.name} needs sums over all leaves, which {executor.name} does not form"
    if (why := executor.obstacle()) is not None:
        yield why


def _name(tx: Any) -> str:
    """The name of what made a transformation."""
    made_by = getattr(tx.update, "__qualname__", "").partition(".")[0] or type(tx).__name__
    return f"{'optax.' * is_optax(tx)}{made_by}"


def plan(
    executor: Executor, link: AbstractLink, leaves: Leaves, state: State, kept: Sequence[KeptOfLeaf]
) -> list[Choice]:
    """The choice for every leaf; XLA for those that are absent.

    Args:
      executor: who may run them.
      link: one without obstacles.
      leaves: the leaves of an update, with parameters.
      state: the state before it.
      kept: what is kept of each leaf.
    """
    params = as_given(leaves, "params")
    updates = as_given(leaves, "updates")
    ways = link.ways(leaves)
    of_recipe = functools.partial(_choice, executor, link, state, elements(leaves))
    made: dict[Hashable, Choice] = {}
    choices = [Choice("it is absent")] * len(leaves)
    for i in leaves.present:
        try:
            for why in link.fusing_obstacles(ways[i], tiled=True):
                raise Unsupported(why)
            if link.facts.reads_grad:
                raise Unsupported(f"{link.name} reads the gradient, and stands in no chain that gives it")
            recipe = executor.recipe(link, params[i], updates[i], kept[i], ways[i])
        except Unsupported as why:
            choices[i] = Choice(str(why))
            continue
        if recipe not in made:
            made[recipe] = of_recipe(recipe, leaves.path(i), ways[i])
        choices[i] = made[recipe]
    return _together(link, leaves, ways, choices) if link.needs_all else choices


def _together(link: AbstractLink, leaves: Leaves, ways: Sequence[Hashable], choices: list[Choice]) -> list[Choice]:
    """The choices of a link that needs all leaves: if one cannot be run with the others, leaf by leaf, none is."""
    for i in leaves.present:
        for why in link.fusing_obstacles(ways[i]):
            return [
                Choice(f"{link.name} needs all leaves, and {leaves.paths[i]} is not stepped with the others: {why}")
            ] * len(leaves)
    return choices


def elements(leaves: Leaves) -> int:
    """How many elements all leaves have together, over all devices."""
    return sum(leaves.updates[i].size * manual.parts(leaves.updates[i]) for i in leaves.present)


def as_given(leaves: Leaves, name: str) -> list[Any]:
    """The leaves of updates or params as they came, in their own dtype."""
    column = leaves.treedef.flatten_up_to(leaves.given(name))
    return [jnp.asarray(leaf) if i in leaves.present else leaf for i, leaf in enumerate(column)]


def _choice(
    executor: Executor, link: AbstractLink, state: State, of_all: int, recipe: Hashable, path: str, way: Hashable
) -> Choice:
    """For the leaves of a recipe."""
    fused = functools.partial(executor.fused, link, state, recipe, path)
    try:
        survey = fused(Task(is_survey=True)) if link.surveys else None
        return Choice("", fused(Task(found=_to_be_found(survey), elements=of_all)), way, survey)
    except Unsupported as why:
        return Choice(str(why))


def _to_be_found(survey: Fused | None) -> Any:
    """What stands for what a survey will have found."""
    if survey is None:
        return None
    return survey.outline.joined([], [jax.ShapeDtypeStruct((), jnp.float32) for _ in survey.outline.hows])


_MOST_ELEMENTS = 2**20
_MOST_LEAVES = 50
"""What one call steps. More would wait for the gradients of others; XLA takes long to compile a call of 1000 arrays."""


def calls(choices: Sequence[Choice], sizes: Mapping[int, int]) -> Iterator[tuple[Choice, list[int]]]:
    """The leaves that one call steps, by number.

    Args:
      choices: for each leaf who runs it.
      sizes: the number of elements of each leaf that is there.
    """
    alike: dict[int, tuple[Choice, list[int]]] = {}
    for i in sizes:
        if choices[i].fused is not None:
            alike.setdefault(id(choices[i].fused), (choices[i], []))[1].append(i)
    for choice, members in alike.values():
        for batch in _batches(members, sizes):
            yield choice, batch


def _batches(members: Sequence[int], sizes: Mapping[int, int]) -> Iterator[list[int]]:
    batch: list[int] = []
    for i in members:
        elements = sum(sizes[k] for k in batch) + sizes[i]
        if batch and (elements > _MOST_ELEMENTS or len(batch) == _MOST_LEAVES):
            yield batch
            batch = []
        batch.append(i)
    yield batch
