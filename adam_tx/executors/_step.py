"""`step`: an optimizer's step that also writes the parameters, in one pass over memory where that can be done."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import jax
import optax
from jax.core import Tracer

from adam_tx._core.abstract_link import AbstractLink, KeptOfLeaf, implementation_of
from adam_tx._core.leaves import WATCH, Leaves, increment
from adam_tx._core.states import State
from adam_tx.describe import closures
from adam_tx.describe.summary import alike
from adam_tx.executors import plan, tile
from adam_tx.executors.cpu import call
from adam_tx.executors.plan import Choice, Fused

Executor = Literal["auto", "xla", "cpu"]


def step(tx: optax.GradientTransformation, executor: Executor = "auto") -> Step:
    """Make an optimizer's step that returns the new parameters, in one pass over memory where that can be done.

    With `step = adam_tx.step(tx)`::

        params, state = step(grads, state, params)

    is the same as ::

        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)

    `tx` and its state stay what they are: the two can take turns at any step, and read
    the same checkpoints. XLA runs a step in several passes over memory on a CPU. Here each
    number is read once and written once, in a kernel that is made from the links' own
    rules. Donate parameters and state: then they are written in their place, and nothing
    else is allocated. JAX pairs donated arrays with results in their order, so donate to a
    function that takes and gives them in one order, as `train` below; of
    `jax.jit(step, donate_argnums=(1, 2))` it would make copies.

    One pass is made of links that step each element by itself: Adam and its relatives, in
    every storage, with master weights; not of a guard, groups, masks, or a norm of a
    tensor. What stands before the last member of an `optax.chain`, such as
    `optax.clip_by_global_norm`, runs before it. One pass needs `pip install 'adam_tx[cpu]'`.

    What cannot be run so is run by XLA, leaf by leaf; `step.summary(params)` says which and
    why. Under `jax.vmap` and derivatives it is XLA, too. `jax.export` refuses the kernel;
    export a step with "xla". The kernel's bits are those of the operations run one by one.
    XLA rounds some products and sums once, and differs in the last bits.

    Args:
      tx: a link, a chain, or an Optax transformation.
      executor: "auto" makes one pass where it can; "xla" nowhere; "cpu" as "auto", but it is
        an error where it can nowhere.

    Returns:
      A function `(grads, state, params) -> (params, state)`, for plain loops, `jax.jit` and `jax.lax.scan`.
      What else `tx.update` takes it takes by name.

    Raises:
      TypeError: what is no transformation.
      ValueError: another executor; with "cpu", an optimizer or a machine that it is not for.

    >>> import functools
    >>> import adam_tx
    >>> import jax
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.adamw(1e-3)
    >>> step = adam_tx.step(tx)
    >>> params = {"w": jnp.ones(3)}
    >>> @functools.partial(jax.jit, donate_argnums=(0, 1))
    ... def train(params, state, batch):
    ...     grads = jax.grad(lambda params: jnp.sum(params["w"] * batch))(params)
    ...     return step(grads, state, params)
    >>> params, state = train(params, tx.init(params), jnp.array([1.0, 2.0, -3.0]))
    >>> params["w"]
    Array([0.9989999, 0.9989999, 1.0009999], dtype=float32)
    """
    if not closures.is_transformation(tx):
        raise TypeError(f"step: tx must be a transformation, with init and update, got {type(tx).__name__}.")
    if executor not in ("auto", "xla", "cpu"):
        raise ValueError(f"step: executor must be 'auto', 'xla' or 'cpu', got {executor!r}.")
    made = Step(tx, executor)
    if executor == "cpu" and (why := made.obstacle) is not None:
        raise ValueError(f"step: executor='cpu' cannot run this optimizer here, because {why}. Use 'auto' or 'xla'.")
    return made


@dataclasses.dataclass(frozen=True)
class Step:
    """`(grads, state, params) -> (params, state)`: see `adam_tx.step`.

    Attributes:
      tx: the optimizer.
      executor: who was asked for.
    """

    tx: optax.GradientTransformation
    executor: Executor

    def __call__(
        self, grads: optax.Updates, state: optax.OptState, params: optax.Params | None, **extra: Any
    ) -> tuple[optax.Params, optax.OptState]:
        """The parameters and the state after this gradient."""
        if params is None:
            raise ValueError("step: it needs params, which it changes, but None came; call step(grads, state, params).")
        arrays = jax.tree.leaves((grads, state, params))
        if extra or self._obstacle_at(arrays) is not None:
            run = functools.partial(self._by_xla, **extra)
        else:
            run = self._in_one_pass if any(isinstance(array, Tracer) for array in arrays) else self._jitted
        return run(grads, state, params)

    @functools.cached_property
    def obstacle(self) -> str | None:
        """Why no leaf is run in one pass, whatever the parameters are; None where some may be."""
        if self.executor == "xla":
            return "executor='xla' was asked for"
        return next(plan.obstacles(self._link, self._in_turn[-1]), None)

    @functools.cached_property
    def _in_turn(self) -> Sequence[Any]:
        """The members of an `optax.chain`, or the one transformation that it is."""
        made_by = closures.call_of(self.tx)
        return made_by.args if made_by is not None and made_by.maker is optax.chain and made_by.args else (self.tx,)

    @property
    def _is_chain(self) -> bool:
        return self._in_turn[-1] is not self.tx

    @property
    def _link(self) -> AbstractLink | None:
        return implementation_of(self._in_turn[-1])

    def _obstacle_at(self, arrays: Sequence[Any]) -> str | None:
        """Why no leaf of these arrays is run in one pass."""
        if self.obstacle is not None:
            return self.obstacle
        if WATCH.get() is not None:
            return "somebody watches every link"
        if self.executor == "auto" and any(map(_may_be_spread, arrays)):
            return "its arrays may lie on several devices; in jax.shard_map each runs its own part"
        return None

    @functools.cached_property
    def _jitted(self) -> Callable[..., Any]:
        return jax.jit(self._in_one_pass)

    def _by_xla(self, grads: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
        update = optax.with_extra_args_support(self.tx).update
        updates, state = update(grads, state, params, **extra)
        return tile.applied(params, updates), state

    def _in_one_pass(self, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        if Leaves(grads, None, params).on_explicit_mesh:
            return self._by_xla(grads, state, params)
        if not self._is_chain:
            return self._of_link(grads, state, params)
        *states, own = state
        for k, tx in enumerate(self._in_turn[:-1]):
            grads, states[k] = optax.with_extra_args_support(tx).update(grads, states[k], params)
        params, own = self._of_link(grads, own, params)
        return params, (*states, own)

    def _of_link(self, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        """The step of the link that is run in one pass."""
        link = cast(AbstractLink, self._link)
        leaves = Leaves(grads, None, params, count=link.count_of(state), positions=link.positions)
        kept = link.kept_of_leaves(leaves, state)
        return _run(link, leaves, state, kept, plan.plan(link, leaves, state, kept))

    def summary(self, params: optax.Params) -> str:
        """A line for each way in which leaves are run: by whom, which, and why XLA.

        Args:
          params: the tree of parameters: arrays or `jax.ShapeDtypeStruct`.
        """
        by_reason: dict[str, list[str]] = {}
        for path, reason in self.reasons(params).items():
            by_reason.setdefault(reason, []).append(path)
        lines = [
            f"{'xla' if reason else 'cpu'}  {', '.join(alike(paths))}{f': {reason}' if reason else ''}"
            for reason, paths in by_reason.items()
        ]
        return "\n".join(lines)

    def reasons(self, params: optax.Params) -> dict[str, str]:
        """Why each leaf is run by XLA, by its path; empty where it is run in one pass."""
        found: dict[str, str] = {}

        def see(params: Any) -> None:
            leaves = Leaves.of_params(params)
            state = self._in_turn[-1].init(params)
            why = self._obstacle_at([])
            choices = [Choice(why or "")] * len(leaves)
            if why is None:
                link = cast(AbstractLink, self._link)
                leaves = Leaves(params, None, params, count=link.count_of(state), positions=link.positions)
                choices = plan.plan(link, leaves, state, link.kept_of_leaves(leaves, state))
            found.update((leaves.paths[i], choices[i].reason) for i in leaves.present)

        jax.eval_shape(see, params)
        return found


def _may_be_spread(array: Any) -> bool:
    """Whether an array may lie on several devices: of one that is traced nobody knows, but in `jax.shard_map`."""
    if isinstance(array, Tracer):
        mesh = getattr(jax.typeof(array).sharding, "mesh", None)
        return jax.device_count() > 1 and not getattr(mesh, "are_all_axes_manual", False)
    return isinstance(array, jax.Array) and len(array.sharding.device_set) > 1


def _run(
    link: AbstractLink, leaves: Leaves, state: State, kept: Sequence[KeptOfLeaf], choices: Sequence[Choice]
) -> tuple[Any, Any]:
    """The step of every leaf by whom it is run."""
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
    for fused, members in plan.calls(choices, sizes):
        of_members = [(params[i], updates[i], kept[i]) for i in members]
        paths = [leaves.path(i) for i in members]
        for i, (param, of_leaf) in zip(members, _fused(link, fused, members, paths)(given, of_members), strict=True):
            params[i] = param
            new[i] = of_leaf
    state = link.with_count(link.with_kept(leaves, numbers, new), increment(leaves.count))
    return leaves.tree(params), state


def _fused(link: AbstractLink, fused: Fused, members: Sequence[int], paths: Sequence[str]) -> Callable[..., Any]:
    """The step of some leaves of a recipe in one pass; under `jax.vmap` and derivatives, by XLA.

    It is a function of a state and of the parameter, the gradient and what is kept of each leaf, and gives the new
    parameter of each and what is then kept.
    """

    def by_xla(state: Any, leaves: Any) -> Any:
        return [
            tile.stepped(link, state, *leaf, number=i, path=path)
            for i, path, leaf in zip(members, paths, leaves, strict=True)
        ]

    @jax.custom_batching.custom_vmap
    def kernel(state: Any, leaves: Any) -> Any:
        scalars = fused.program.scalars_of(state)
        return call.step_leaves(fused.target, scalars, members, [jax.tree.leaves(leaf) for leaf in leaves])

    @kernel.def_vmap
    def _(axis_size: int, is_batched: Any, state: Any, leaves: Any) -> Any:
        def axis_of(batched: bool) -> int | None:
            return 0 if batched else None

        axes = jax.tree.map(axis_of, tuple(is_batched))
        made = jax.vmap(by_xla, in_axes=axes, axis_size=axis_size)(state, leaves)
        return made, [[True] * len(leaf) for leaf in made]

    in_one_pass = jax.custom_jvp(kernel)

    @in_one_pass.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return jax.jvp(by_xla, primals, tangents)

    def run(state: Any, leaves: Any) -> list[tuple[jax.Array, KeptOfLeaf]]:
        structure = fused.program.recipe.structure
        made = in_one_pass(state, leaves)
        return [(param, jax.tree.unflatten(structure, of_leaf)) for param, *of_leaf in made]

    return run
