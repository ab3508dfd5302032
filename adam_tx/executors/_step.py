"""`step`: an optimizer's step that also writes the parameters, in one pass over memory where that can be done."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import optax
from jax.core import Tracer

from adam_tx._core import boxes
from adam_tx._core.abstract_link import AbstractLink
from adam_tx._core.leaves import WATCH, Leaves, is_absent
from adam_tx._core.paths import slashed
from adam_tx.describe import closures
from adam_tx.describe.table import alike
from adam_tx.executors import around, plan, tile
from adam_tx.executors.cpu.executor import CPU
from adam_tx.executors.pallas.executor import Pallas
from adam_tx.executors.run import planned, run_link

Executor = Literal["auto", "xla", "cpu", "pallas"]

_EXECUTORS: Mapping[str, plan.Executor] = {"auto": CPU(), "cpu": CPU(), "pallas": Pallas()}


def step(tx: optax.GradientTransformation, executor: Executor = "auto") -> Step:
    """Make an optimizer's step that returns the new parameters, in one pass over memory where that can be done.

    With `step = adam_tx.step(tx)`::

        params, state = step(grads, state, params)

    is, up to the last bits, the same as ::

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
    every storage, with master weights, in groups and under masks; not of a norm of a tensor.
    A `monitor` around it adds up its figures in the same pass. A `guard` has to know all of
    a step before it is taken, so it reads everything once more; with `watch="gradient"` it
    reads the gradient alone. XLA runs a monitor around `groups`. It also runs what stands
    before the last member of an `optax.chain`, and the transformations of Optax at the
    beginning of a chain, such as `optax.clip_by_global_norm`; what they emit is written down
    and read again, also inside a guard. Hyperparameters may be injected by Optax, or
    be arguments of the function around. One pass needs `pip install 'adam_tx[cpu]'`.

    A step is compiled, also where nobody calls it in `jax.jit`: a schedule must be one that
    JAX can trace, and is not asked again for what it read from outside. A parameter whose
    gradient is absent, such as None, stays as it is.

    What cannot be run so is run by XLA, leaf by leaf; `step.summary(params)` says which and
    why. Under `jax.vmap` and derivatives it is XLA, too. `jax.export` refuses the kernel;
    export a step with "xla". The kernel's bits are those of the operations run one by one.
    XLA rounds some products and sums once, and differs in the last bits.

    Args:
      tx: a link, a chain, or an Optax transformation.
      executor: "auto" makes one pass where it can; "xla" nowhere; "cpu" as "auto", but it is
        an error where it can nowhere. "pallas" makes it on a TPU, and "auto" does not yet: its
        kernels have been compiled for TPUs, and interpreted, but nobody has run them on one.

    Returns:
      A function `(grads, state, params) -> (params, state)`, for plain loops, `jax.jit` and
      `jax.lax.scan`, with a method `summary(params)`. What else `tx.update` takes it takes by
      name, and then XLA runs all leaves, as `summary(params, value=0.0)` says.

    Raises:
      TypeError: what is no transformation.
      ValueError: another executor; with "cpu" or "pallas", an optimizer or a machine that it is not for.

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
    if executor not in ("auto", "xla", "cpu", "pallas"):
        raise ValueError(f"step: executor must be 'auto', 'xla', 'cpu' or 'pallas', got {executor!r}.")
    made = Step(tx, executor)
    if executor in ("cpu", "pallas") and (why := made.obstacle) is not None:
        raise ValueError(
            f"step: executor={executor!r} cannot run this optimizer here, because {why}. Use 'auto' or 'xla'."
        )
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

    def __getattr__(self, name: str) -> Any:
        if name in ("init", "update"):
            raise AttributeError(
                f"step: it has no {name}, because it is no transformation: it writes parameters. Keep tx where one is "
                "asked for, and call step(grads, state, params) in place of update, apply_gradients or nnx.Optimizer."
            )
        return object.__getattribute__(self, name)

    def __call__(
        self, grads: optax.Updates, state: optax.OptState, params: optax.Params | None, **extra: Any
    ) -> tuple[optax.Params, optax.OptState]:
        """The parameters and the state after this gradient."""
        if params is None:
            raise ValueError("step: it needs params, which it changes, but None came; call step(grads, state, params).")
        given = grads, state, params
        plain = boxes.unboxed(given)
        if jax.tree.structure(plain) != jax.tree.structure(given):  # nnx.Optimizer keeps a state in boxes of its own
            new_params, new_state = self(*plain, **extra)
            return boxes.boxed_like(new_params, params), boxes.boxed_like(new_state, state)
        arrays = jax.tree.leaves(given)
        if self._obstacle_at(arrays, extra) is not None:
            run = functools.partial(self._by_xla, **extra)
        else:
            run = self._in_one_pass if any(isinstance(array, Tracer) for array in arrays) else self._jitted
        try:
            return run(*given)
        except (TypeError, ValueError) as error:
            error.add_note("This is adam_tx.step, which is given step(grads, state, params), and not update.")
            if jax.tree.structure(state) != jax.tree.structure(grads):
                raise
            raise ValueError(
                "step: a tree like the gradients came as the state, which is not that of tx, and may be the params. "
                "Call step(grads, state, params)."
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        """Without what it has compiled, which cannot be pickled."""
        return type(self), (self.tx, self.executor)

    @functools.cached_property
    def obstacle(self) -> str | None:
        """Why no leaf is run in one pass, whatever the parameters are; None where some may be."""
        if self.executor == "xla":
            return "executor='xla' was asked for"
        return next(plan.obstacles(self._makes_one_pass, self.tx, around.last(self.tx)), None)

    @property
    def _makes_one_pass(self) -> plan.Executor:
        return _EXECUTORS[self.executor]

    def _obstacle_at(self, arrays: Sequence[Any], extra: Mapping[str, Any]) -> str | None:
        """Why no leaf of these arrays is run in one pass, with what else is given by name."""
        if self.obstacle is not None:
            return self.obstacle
        if extra:
            return f"only tx.update takes {', '.join(extra)}"
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
        return around.run(self.tx, functools.partial(run_link, self._makes_one_pass), grads, state, params)

    def summary(self, params: optax.Params, **extra: Any) -> str:
        """A line for each way in which leaves are run: by whom, which, and why XLA.

        Args:
          params: the tree of parameters: arrays or `jax.ShapeDtypeStruct`.
          **extra: what the step is given by name, such as `value=`.
        """
        by_reason: dict[str, list[str]] = {}
        for path, reason in self.reasons(params, **extra).items():
            by_reason.setdefault(reason, []).append(path)
        return "\n".join(
            f"xla  {', '.join(alike(paths))}: {reason}"
            if reason
            else f"{self._makes_one_pass.name}  {', '.join(alike(paths))}"
            for reason, paths in by_reason.items()
        )

    def reasons(self, params: optax.Params, **extra: Any) -> dict[str, str]:
        """Why each leaf is run by XLA, by its path; empty where it is run in one pass."""
        found: dict[str, str] = {}

        def see_link(link: AbstractLink, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
            leaves, *_, choices = planned(self._makes_one_pass, link, grads, state, params)
            found.update((leaves.paths[i], choices[i].reason) for i in leaves.present)
            return params, state

        def see(params: Any) -> None:
            why = self._obstacle_at([], extra)
            if why is None:
                around.run(self.tx, see_link, params, self.tx.init(params), params)
            else:
                found.update(
                    (slashed(path), why)
                    for path, leaf in boxes.leaves_with_paths(params, is_absent)
                    if not is_absent(leaf)
                )

        jax.eval_shape(see, params)
        return found


def _may_be_spread(array: Any) -> bool:
    """Whether an array may lie on several devices: of one that is traced nobody knows, but in `jax.shard_map`."""
    if isinstance(array, Tracer):
        mesh = getattr(jax.typeof(array).sharding, "mesh", None)
        return jax.device_count() > 1 and not getattr(mesh, "are_all_axes_manual", False)
    return isinstance(array, jax.Array) and len(array.sharding.device_set) > 1
