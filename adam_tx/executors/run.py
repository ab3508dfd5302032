"""`run_link`: a link's step, in which every leaf is run by whom it is planned to be run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adam_tx._core import manual, term
from adam_tx._core.abstract_leaf_step import KeptOfLeaf
from adam_tx._core.abstract_link import AbstractLink
from adam_tx._core.leaves import Leaves, increment
from adam_tx._core.states import State
from adam_tx.executors import jaxprs, plan, tile
from adam_tx.executors.made import Apart, Outline, Passed, apart
from adam_tx.executors.plan import Choice, Executor
from adam_tx.executors.tile import Task


class Planned(NamedTuple):
    """Who runs each leaf of an update.

    Attributes:
      leaves: the leaves.
      state: the state before, and what those have made that step all leaves first.
      kept: what is kept of each leaf.
      choices: who runs it.
    """

    leaves: Leaves
    state: State
    kept: Sequence[KeptOfLeaf]
    choices: Sequence[Choice]


def run_link(executor: Executor, link: AbstractLink, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
    """New parameters and state."""
    leaves, fronted, kept, choices = planned(executor, link, grads, state, params)
    if not any(choice.fused for choice in choices):
        updates, state = link.update(grads, state, params)
        return tile.applied(params, updates), state
    new, state = _run(link, leaves, fronted, kept, choices)
    given = leaves.treedef.flatten_up_to(params)  # a parameter whose gradient is absent stays
    return leaves.tree([new[i] if i in leaves.present else node for i, node in enumerate(given)]), state


def planned(executor: Executor, link: AbstractLink, grads: Any, state: Any, params: Any) -> Planned:
    """Who runs each leaf, once what has to be run before is."""
    leaves = Leaves(grads, None, params, count=link.count_of(state), positions=link.positions)
    state = link.run_front(leaves, leaves.updates, state)
    kept = link.kept_of_leaves(leaves, state)
    return Planned(leaves, state, kept, plan.plan(executor, link, leaves, state, kept))


def _run(
    link: AbstractLink, leaves: Leaves, state: State, kept: Sequence[KeptOfLeaf], choices: Sequence[Choice]
) -> tuple[list[Any], Any]:
    """The new parameter of every leaf that is there, and the state."""
    params = plan.as_given(leaves, "params")
    updates = plan.as_given(leaves, "updates")
    rest = [i for i in leaves.present if choices[i].fused is None]
    passes = _Passes(link, leaves, state, {i: (params[i], updates[i], kept[i]) for i in leaves.present}, choices)
    found = passes.survey() if link.surveys else None
    numbers = link.numbers_at(leaves.count, state, found)[1]
    new: list[KeptOfLeaf] = list(kept)
    told: dict[tuple[str, ...], list[tuple[Sequence[int], Any]]] = {}
    for members, outline, made in passes.each(Task(found=found)):
        each = [outline.joined(of_leaf, made.reduced, zip(*made.samples, strict=True)) for of_leaf in made.arrays]
        for i, (param, of_leaf, _) in zip(members, each, strict=True):
            params[i] = param
            new[i] = of_leaf
        for place, of_leaves in each[0][-1].items():
            told.setdefault(place, []).append((members, of_leaves))
    if rest and not link.needs_all:
        emitted, state = leaves.only(rest).run_member("", link, leaves.updates, state)
        after = link.kept_of_leaves(leaves, state)
        lowered = leaves.treedef.flatten_up_to(leaves.lower(emitted, exact=link.facts.terminal))
        for i in rest:
            params[i] = tile.applied(params[i], lowered[i])
            new[i] = after[i]
    state = link.with_kept(state, leaves.replace(told=told), numbers, new)
    return params, link.with_count(state, increment(leaves.count))


class _Passes(NamedTuple):
    """Passes over leaves, a few after the others.

    Attributes:
      link: what steps.
      leaves: the leaves.
      state: the state before.
      given: by their numbers, of each the parameter, the gradient, and what is kept.
      choices: who runs each.
    """

    link: AbstractLink
    leaves: Leaves
    state: State
    given: Mapping[int, tuple[Any, ...]]
    choices: Sequence[Choice]

    def survey(self) -> Any:
        """What has to be known of all leaves before one is stepped."""
        made = list(self.each(Task(is_survey=True)))
        outline = made[0][1]
        rows = [jnp.concatenate([of.reduced[k] for _, _, of in made]) for k in range(len(outline.hows))]
        return outline.joined([], map(term.over_leaves, outline.hows, rows))

    def each(self, task: Task) -> Iterator[tuple[Sequence[int], Outline, Passed]]:
        """The numbers of leaves that are run together, and what is made of them.

        What XLA runs is run with the others only if all are needed.
        """
        task = task._replace(elements=plan.elements(self.leaves))
        for choice, members in plan.calls(self.choices, {i: leaf[0].size for i, leaf in self.given.items()}):
            fused: Any = choice.survey if task.is_survey else choice.fused
            made = self._in_one_pass(task, fused, members, choice.way)
            yield members, fused.outline, _over_devices(fused.outline, made, *self.given[members[0]][:2])
        if self.link.needs_all:
            ways = self.link.ways(self.leaves)
            for i, leaf in self.given.items():
                if self.choices[i].fused is None:
                    alone = _by_xla(task, self.link, self.state, leaf, self._known_of(i, ways[i]))
                    yield [i], alone.outline, _over_devices(alone.outline, Passed.of([alone], task.elements), *leaf[:2])

    def _known_of(self, i: int, way: Hashable) -> dict[str, Any]:
        """What is known of a leaf that is no array."""
        return {"number": i, "path": self.leaves.path(i), "way": way}

    def _in_one_pass(self, task: Task, fused: Any, members: Sequence[int], way: Hashable) -> Passed:
        """That of some leaves of a recipe; under `jax.vmap` and derivatives, by XLA."""
        # JAX keeps this function, so no array of the step may be in it
        link = self.link
        known = [self._known_of(i, way) for i in members]
        without = task._replace(found=None)

        def one_by_one(hyperparams: Sequence[Any], state: Any, found: Any, leaves: Any) -> Any:
            del hyperparams
            given = without._replace(found=found)
            each = [_by_xla(given, link, state, leaf, of_leaf) for leaf, of_leaf in zip(leaves, known, strict=True)]
            return Passed.of(each, without.elements)

        given = self.state, task.found, [self.given[i] for i in members]
        by_xla: Callable[..., Any] = one_by_one
        hyperparams: Sequence[Any] = []
        if fused.is_of_traced:
            by_xla, hyperparams = jaxprs.explicit(functools.partial(one_by_one, []), *given)

        def step(scalars: Any, leaves: Any) -> Any:
            return fused.step(scalars, members, leaves)

        return _or_by_xla(step, by_xla)(fused.scalars(self.state, task.found), hyperparams, *given)


def _by_xla(task: Task, link: AbstractLink, state: Any, leaf: Sequence[Any], known: Mapping[str, Any]) -> Apart:
    """What is made of one leaf, as a whole."""
    return apart(tile.run(task, link, state, *leaf, **known))


def _or_by_xla(step: Callable[..., Any], by_xla: Callable[..., Any]) -> Callable[..., Any]:
    """A function of scalars, hyperparameters, state, found, and leaves: the first, unless JAX transforms it."""

    @jax.custom_batching.custom_vmap
    def kernel(scalars: Any, hyperparams: Any, state: Any, found: Any, leaves: Any) -> Any:
        del hyperparams, state, found
        return step(scalars, leaves)

    @kernel.def_vmap
    def _(axis_size: int, is_batched: Any, scalars: Any, *given: Any) -> Any:
        del scalars

        def axis_of(batched: bool) -> int | None:
            return 0 if batched else None

        axes = jax.tree.map(axis_of, tuple(is_batched[1:]))
        made = jax.vmap(by_xla, in_axes=axes, axis_size=axis_size)(*given)
        return made, jax.tree.map(_all_are, made)

    in_one_pass = jax.custom_jvp(kernel)

    @in_one_pass.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return jax.jvp(by_xla, primals[1:], tangents[1:])

    return in_one_pass


def _all_are(made: jax.Array) -> bool:
    """Batched, whatever it is."""
    del made
    return True


def _over_devices(outline: Outline, made: Passed, *of_leaf: jax.Array) -> Passed:
    """The same, with what is reduced over leaves of which other devices have other parts.

    Of what a kernel makes JAX does not know that it varies. It does so as arrays of the leaves do.
    """
    reduced = functools.reduce(manual.like, of_leaf, made.reduced)
    rows = [term.over_devices(how, reduced[k]) for k, how in enumerate(outline.hows)]
    return made._replace(reduced=jnp.stack(rows)) if rows else made
