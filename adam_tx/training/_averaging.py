"""`AverageWeights`, what runs behind `average_weights`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from adam_tx._core import hyperparams, numerics, states
from adam_tx._core.abstract_leaf_step import KeptOfLeaf
from adam_tx._core.abstract_link import required_params
from adam_tx._core.hyperparams import NonNegative
from adam_tx._core.leaf_step import Leaf, Now, NowByDtype
from adam_tx._core.leaves import Column, Leaves, increment, is_absent
from adam_tx._core.paths import PathPattern, Pattern, shape_of
from adam_tx._core.rule import Rule, Slot
from adam_tx._core.states import Fields, State
from adam_tx._core.storage import StorageLike, as_storage
from adam_tx._link import link
from adam_tx._wrapper import Wrapper

_DECAY = hyperparams.Range(0.0, 1.0)
_NAME = "average"


@link(slots={"weights": Slot("params")})
def running_average(step: NonNegative | None, dtype: StorageLike | None, role: str) -> Rule:
    """Average the parameters that it is given, which are the new ones; `AverageWeights` says by which step."""
    del step  # is known only at each update

    def rule(now: Now, updates: Array, params: Array, weights: Array) -> tuple[Array, Array]:
        average = numerics.ema(weights, params, now.step)
        # what it was, be it infinite, is forgotten
        return updates, average if isinstance(now.step, float) else jnp.where(now.step == 1.0, params, average)

    formula = "average += step · (new params - average)"
    return Rule(rule, formula=formula, dtype=dtype, roles={"weights": role}, passes_gradient=True)


class _Now(NamedTuple):
    """How the average moves at one update.

    Attributes:
      step: by how much of its distance to the weights.
      due: whether it moves; True if it always does.
      own: what the wrapper then keeps itself.
    """

    step: numerics.Scalar
    due: Any
    own: Mapping[str, jax.Array]


class _Numbers(NamedTuple):
    """What one update has in common for all leaves.

    Attributes:
      inside: the same of the link inside.
      average: what the rule of the average reads.
      due: whether the average moves.
    """

    inside: object
    average: NowByDtype
    due: Any


class AverageWeights(Wrapper):
    """A link beside which the weights are averaged that it makes."""

    is_straight = True
    emits_last = True
    formula = "inner(u), and an average of the weights after it"

    def __init__(
        self,
        inner: optax.GradientTransformation,
        decay: Any,
        debias: bool,
        start: int,
        every: int,
        pattern: PathPattern,
        dtype: StorageLike | None,
        name: str,
    ) -> None:
        if not isinstance(debias, bool):
            raise TypeError(f"average_weights: debias must be True or False, got {debias!r}.")
        self._is_uniform = isinstance(decay, str)
        if self._is_uniform and decay != "uniform":
            raise ValueError(f"average_weights: decay must be a decay or 'uniform', got {decay!r}.")
        self._decay = hyperparams.reader("average_weights: decay", 0.0 if self._is_uniform else decay, _DECAY)
        self._counts = debias or self._is_uniform
        self._start = hyperparams.check_int("average_weights: start", start, least=0)
        self._every = hyperparams.check_int("average_weights: every", every)
        self._pattern = Pattern(pattern)
        self._name = name
        keeps = [*(["averaged"] if self._counts else []), _checked_name(name)]
        super().__init__(inner, name="average_weights", keeps=keeps)
        if name in (others := self.facts.keeps_new_params):
            raise ValueError(
                f"average_weights: there is an average called {name!r} inside already; give this one another name=."
            )
        self.facts = dataclasses.replace(self.facts, keeps_new_params=(*others, name))
        role = _NAME if name == _NAME else f"{_NAME}.{name}"
        self._average: Any = running_average(None, _checked_dtype(dtype), role).implementation
        self.members = {**self.members, name: self._average}

    def init_own(self, leaves: Leaves) -> dict[str, object]:
        """The weights, the first of their average."""
        arrays = list(zip(leaves.paths, leaves.nodes, strict=True))
        self._pattern.check(f"{self.name}: pattern", arrays)
        moved = self.inner.moved(leaves)
        chosen = [i for i in moved if self._pattern.matches(arrays[i][0], shape_of(arrays[i][1]))]
        counted = {"averaged": jnp.ones((), leaves.scalar_dtype)} if self._counts else {}
        return {**counted, self._name: self._average.init_leaves(leaves.only(chosen).within(self._name))}

    def fields(self, state: State) -> Fields:
        """A state that came, with an average in it."""
        fields = states.checked(self.name, state, self._type)
        states.checked(self.name, getattr(fields, self._name), _TYPE)
        return fields

    def update_leaves(self, leaves: Leaves, updates: Column, state: State) -> tuple[Column, State]:
        """The step of the link inside, and the average of the weights that it makes."""
        fields = self.fields(state)
        params = required_params(leaves, self.name)
        emitted, inner = self.run_inner(leaves, updates, fields.inner)
        made = [self._applied(leaves, i, params[i], u) if i in leaves.present else u for i, u in enumerate(emitted)]
        new = leaves.replace(params=made)
        if self.facts.terminal:
            new = self.inner.full_precision_params(new, inner)
        now = self._at(leaves.count, fields)
        before = getattr(fields, self._name)
        move = functools.partial(self._moved, self._averaged(new, before), now.step)
        average = move(before) if now.due is True else lax.cond(now.due, move, _as_it_is, before)
        return emitted, self.state(inner, **now.own, **{self._name: average})

    def _averaged(self, leaves: Leaves, average: Any) -> Leaves:
        """The leaves of which there is an average."""
        column = leaves.column(average.weights, self._name, optional=True)
        return leaves.only([i for i in leaves.present if not is_absent(column[i])])

    def _moved(self, leaves: Leaves, step: numerics.Scalar, average: Any) -> Any:
        """The average after these leaves, of which the parameters are the new ones."""
        read = self._read(leaves.count, step)

        def at(count: jax.Array, fields: Fields) -> tuple[NowByDtype, dict[str, jax.Array]]:
            del count, fields
            return read, {}

        return self._average.run(leaves.within(self._name), leaves.params, average, at)[1]

    def _applied(self, leaves: Leaves, i: int, param: jax.Array, update: jax.Array) -> jax.Array:
        """The new parameter, as `optax.apply_updates` rounds it, in working precision."""
        if not self.facts.terminal:
            update = _rounded(update, leaves.lowered(i, update).dtype)
        return _rounded(param + update, leaves.param_dtypes[i])

    def _at(self, count: jax.Array, fields: Fields) -> _Now:
        """How the average moves at this update."""
        t = increment(count)
        step = 1.0 - self._decay(count)
        follows = None if self._start == 0 else t <= self._start
        due: Any = True if self._every == 1 else (t - self._start) % self._every == 0
        if self._every > 1 and follows is not None:
            due |= follows
        if not self._counts:
            if follows is not None:
                step = jnp.where(follows, 1.0, jnp.asarray(step, jnp.result_type(float)))
            return _Now(step, due, {})
        n = before = fields.averaged
        n = n + 1.0 if self._is_uniform else n + (1.0 - numerics.scalar(step, n) * n)
        if follows is not None:
            n = jnp.where(follows, 1.0, n)
        if due is not True:
            n = jnp.where(due, n, before)
        return _Now(1.0 / n, due, {"averaged": n})

    def _read(self, count: jax.Array, step: numerics.Scalar) -> NowByDtype:
        """What the rule of the average reads."""
        return NowByDtype({"step": step}, count, self._average.numbers)

    def role_of(self, field: str) -> str:
        """What it counts is of its own average."""
        return super().role_of(field if self._name == _NAME else f"{field}.{self._name}")

    def moved(self, leaves: Leaves) -> Collection[int]:
        """Those that the link inside may move."""
        return self.inner.moved(leaves)

    # One leaf's step without the tree.

    def ways(self, leaves: Leaves) -> list[Hashable]:
        """Those of the link inside."""
        return self.inner.ways(leaves)

    def fusing_obstacles(self, way: Hashable = None, *, tiled: bool = False) -> Iterator[str]:
        """Those of the link inside."""
        yield from self.inner.fusing_obstacles(way, tiled=tiled)

    def numbers_at(self, count: jax.Array, state: State, found: Any = None) -> tuple[_Numbers, dict[str, Any]]:
        """How the average moves, and what the link inside has in common for all leaves."""
        fields = self.fields(state)
        inside, new = self.inner.numbers_at(count, fields.inner, found)
        now = self._at(count, fields)
        return _Numbers(inside, self._read(count, now.step), now.due), {"inner": new, "own": now.own}

    def numbers_of(self, state: State) -> dict[str, Any]:
        """What it counts, and the numbers of the link inside."""
        fields = self.fields(state)
        own = {"averaged": fields.averaged} if self._counts else {}
        return {"inner": self.inner.numbers_of(fields.inner), "own": own}

    def leaf_survey(self, numbers: _Numbers, leaf: Leaf, kept: KeptOfLeaf) -> Mapping[str, Any]:
        """That of the link inside."""
        of_members: Any = kept
        return self.inner.leaf_survey(numbers.inside, leaf.within(self.member), of_members[self.member])

    def leaf_step(self, numbers: _Numbers, leaf: Leaf, kept: KeptOfLeaf) -> tuple[jax.Array, KeptOfLeaf]:
        """The step of the link inside, and of the average."""
        of_members: Any = kept
        emitted, inner = self.inner.leaf_step(numbers.inside, leaf.within(self.member), of_members[self.member])
        average = before = of_members[self._name]
        if leaf.params is not None and not is_absent(before["weights"]):
            made = self._applied(leaf.as_tree(), 0, leaf.params, emitted)
            whole = self.inner.full_precision_of(made, inner) if self.facts.terminal else made
            known = leaf.within(self._name)._replace(updates=emitted, params=whole, way=None)
            _, average = self._average.leaf_step(numbers.average, known, before)
            if numbers.due is not True:
                average = jax.tree.map(functools.partial(jnp.where, numbers.due), average, before)
        return emitted, {self.member: inner, self._name: average}

    def kept_of_leaves(self, leaves: Leaves, state: State) -> list[KeptOfLeaf]:
        """What the link inside keeps, and the average."""
        fields = self.fields(state)
        inner = self.inner.kept_of_leaves(leaves, fields.inner)
        before = getattr(fields, self._name)
        average = self._average.kept_of_leaves(self._averaged(leaves, before), before)
        return [{self.member: of_inner, self._name: own} for of_inner, own in zip(inner, average, strict=True)]

    def with_kept(self, state: State, leaves: Leaves, numbers: Any, kept: Sequence[KeptOfLeaf]) -> State:
        """The state in which this is kept."""
        by_member: Sequence[Any] = kept
        of_inner, own = ([of[name] for of in by_member] for name in (self.member, self._name))
        fields = self.fields(state)
        inner = self.inner.with_kept(fields.inner, leaves.within(self.member), numbers["inner"], of_inner)
        average = self._average.with_kept(getattr(fields, self._name), leaves, {}, own)
        return self.state(inner, **numbers["own"], **{self._name: average})

    def full_precision_of(self, param: jax.Array, kept: KeptOfLeaf) -> jax.Array:
        """The parameter as the link inside knows it."""
        of_members: Any = kept
        return self.inner.full_precision_of(param, of_members[self.member])


def _as_it_is(average: Any) -> Any:
    return average


def _rounded(x: jax.Array, dtype: Any) -> jax.Array:
    """What is left of it in this dtype; explicit, because XLA takes float32 -> bfloat16 -> float32 for the identity."""
    if dtype is None or jnp.finfo(dtype).bits >= jnp.finfo(x.dtype).bits:
        return x
    if numerics.is_complex(x):
        return x.astype(dtype).astype(x.dtype)
    precision = jnp.finfo(dtype)
    return lax.reduce_precision(x, precision.nexp, precision.nmant)


def _checked_dtype(dtype: StorageLike | None) -> StorageLike | None:
    storage = as_storage(_NAME, dtype)
    if storage.is_narrow or storage.at_random:
        raise ValueError(
            f"average_weights: dtype must keep 32 bits or more, got {dtype!r}. The average moves by a small part of "
            "its distance to the weights, and rounding it at every step would undo that, or add more noise than is "
            "averaged away. Leave dtype=None; to save memory, average fewer parameters with pattern=."
        )
    return dtype


def _checked_name(name: str) -> str:
    taken = ("count", "averaged", Wrapper.member)
    if not isinstance(name, str) or not name.isidentifier() or name.startswith("_") or name in taken:
        raise ValueError(
            f"average_weights: name must be an identifier other than 'count', 'averaged' and 'inner', got {name!r}."
        )
    return name


_TYPE: Any = states.wrapper_type("running_average", "weights")
_OF_KERAS: list[Any] = [states.state_type("average_weights", (*counted, "average")) for counted in ((), ("count",))]

for _counted in ((), ("averaged",)):  # so that exported programs find them
    states.wrapper_type("average_weights", *_counted, _NAME, "inner")


def is_state(node: object) -> bool:
    """Whether this part of a state is an average: of a link here, or of an optimizer from Keras."""
    return type(node) in (_TYPE, *_OF_KERAS)


def name_of(path: Sequence[Any], node: object) -> str:
    """What the average is called that stands at this path of a state."""
    return path[-1].name if type(node) is _TYPE else _NAME


def tree_of(node: Any) -> Any:
    """The tree of an average."""
    return node[-1]


def replaced(node: Any, tree: Any) -> Any:
    """The average with this tree."""
    return node._replace(**{node._fields[-1]: tree})
