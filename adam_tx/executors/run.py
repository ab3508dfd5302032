"""`run_link`: a link's step, in which every leaf is run by whom it is planned to be run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from adam_tx._core.abstract_link import AbstractLink, KeptOfLeaf
from adam_tx._core.leaves import Leaves, increment
from adam_tx._core.states import State
from adam_tx.executors import jaxprs, plan, tile
from adam_tx.executors.plan import Choice, Executor


def run_link(executor: Executor, link: AbstractLink, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
    """New parameters and state."""
    leaves = leaves_of(link, grads, state, params)
    kept = link.kept_of_leaves(leaves, state)
    return _run(link, leaves, state, kept, plan.plan(executor, link, leaves, state, kept))


def leaves_of(link: AbstractLink, grads: Any, state: Any, params: Any) -> Leaves:
    """The leaves of an update of this link."""
    return Leaves(grads, None, params, count=link.count_of(state), positions=link.positions)


def _run(
    link: AbstractLink, leaves: Leaves, state: State, kept: Sequence[KeptOfLeaf], choices: Sequence[Choice]
) -> tuple[Any, Any]:
    params = plan.as_given(leaves, "params")
    updates = plan.as_given(leaves, "updates")
    given = state
    rest = [i for i in leaves.present if choices[i].fused is None]
    numbers = link.numbers_at(leaves.count, given)[1]
    new: list[KeptOfLeaf] = list(kept)
    if rest:
        emitted, state = leaves.only(rest).run_member("", link, leaves.updates, state)
        after = link.kept_of_leaves(leaves, state)
        lowered = leaves.treedef.flatten_up_to(leaves.lower(emitted, exact=link.facts.terminal))
        for i in rest:
            params[i] = tile.applied(params[i], lowered[i])
            new[i] = after[i]
    sizes = {i: params[i].size for i in leaves.present}
    for choice, members in plan.calls(choices, sizes):
        of_members = [(params[i], updates[i], kept[i]) for i in members]
        paths = [leaves.path(i) for i in members]
        for i, (param, of_leaf) in zip(members, _fused(link, choice, members, paths, given, of_members), strict=True):
            params[i] = param
            new[i] = of_leaf
    state = link.with_count(link.with_kept(state, leaves, numbers, new), increment(leaves.count))
    return leaves.tree(params), state


def _fused(
    link: AbstractLink, choice: Choice, members: Sequence[int], paths: Sequence[str], state: Any, leaves: Any
) -> list[tuple[jax.Array, KeptOfLeaf]]:
    """The step of some leaves of a recipe in one pass; under `jax.vmap` and derivatives, by XLA.

    Args:
      link: what steps.
      choice: how these leaves are run.
      members: their numbers.
      paths: their paths, for errors.
      state: the state before.
      leaves: of each the parameter, the gradient, and what is kept.
    """
    fused: Any = choice.fused

    def one_by_one(hyperparams: Sequence[Any], state: Any, leaves: Any) -> Any:
        del hyperparams
        return [
            tile.stepped(link, state, *leaf, number=i, path=path, way=choice.way)
            for i, path, leaf in zip(members, paths, leaves, strict=True)
        ]

    by_xla: Callable[..., Any] = one_by_one
    hyperparams: Sequence[Any] = []
    if fused.is_of_traced:
        by_xla, hyperparams = jaxprs.explicit(functools.partial(one_by_one, []), state, leaves)

    def step(scalars: Any, leaves: Any) -> Any:
        return fused.step(scalars, members, leaves)

    in_one_pass = _or_by_xla(step, by_xla)
    made = in_one_pass(fused.scalars(state), hyperparams, state, leaves)
    return [(param, jax.tree.unflatten(fused.structure, of_leaf)) for param, *of_leaf in made]


def _or_by_xla(step: Callable[..., Any], by_xla: Callable[..., Any]) -> Callable[..., Any]:
    """A function of scalars, hyperparameters, state and leaves: the first, unless JAX transforms it."""

    @jax.custom_batching.custom_vmap
    def kernel(scalars: Any, hyperparams: Any, state: Any, leaves: Any) -> Any:
        del hyperparams, state
        return step(scalars, leaves)

    @kernel.def_vmap
    def _(axis_size: int, is_batched: Any, scalars: Any, *given: Any) -> Any:
        del scalars

        def axis_of(batched: bool) -> int | None:
            return 0 if batched else None

        axes = jax.tree.map(axis_of, tuple(is_batched[1:]))
        made = jax.vmap(by_xla, in_axes=axes, axis_size=axis_size)(*given)
        return made, [[True] * len(leaf) for leaf in made]

    in_one_pass = jax.custom_jvp(kernel)

    @in_one_pass.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return jax.jvp(by_xla, primals[1:], tangents[1:])

    return in_one_pass
