"""`Guard`, which lets a step that would spoil training change nothing."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_tx._core import manual, numerics, sharding, states
from adam_tx._core.abstract_leaf_step import KeptOfLeaf, StoredSlot
from adam_tx._core.ahead import known
from adam_tx._core.leaf_step import Leaf
from adam_tx._core.leaves import Column, Leaves, increment
from adam_tx._core.states import Fields, State
from adam_tx._core.storage import Stored
from adam_tx._core.term import Term
from adam_tx._wrapper import Wrapper
from adam_tx.describe.arrays import arrays_of
from adam_tx.training import limits
from adam_tx.training.held import Slot, Step, counted_on, hold_leaves, taken
from adam_tx.training.limits import Limit

_LARGEST_NORM = float(np.sqrt(np.finfo(np.float32).max))  # whose square does not overflow
_LARGEST_LOSS = _LARGEST_NORM / 2  # of which any two differ by no more than that


class _Numbers(NamedTuple):
    """What one update has in common for all leaves.

    Attributes:
      state: the guard's, before it.
      inside: the same of the link inside.
      updates_before: the number of its earlier updates.
      ok: whether it makes its step; None before the survey.
    """

    state: Fields
    inside: object
    updates_before: Any
    ok: jax.Array | None = None


class _StepOfLeaf(NamedTuple):
    """The step of the link inside on one leaf.

    Attributes:
      given: what came in, the updates first.
      emitted: its update.
      lowered: that in the dtype in which it leaves.
      kept: what is then kept.
      slots: the same beside what was kept.
    """

    given: list[jax.Array]
    emitted: jax.Array
    lowered: jax.Array
    kept: KeptOfLeaf
    slots: list[Slot]


class Guard(Wrapper):
    """A link whose members may be left as they were."""

    counts_inner = True
    is_straight = True
    told = ("norm", "loss")
    formula = "inner(u) where all is finite, else nothing"

    def __init__(
        self,
        inner: optax.GradientTransformation,
        held_to: Mapping[str, Limit],
        loss_scale: Any,
        watch: str,
    ) -> None:
        if watch not in ("step", "gradient"):
            raise ValueError(f"guard: watch must be 'step' or 'gradient', got {watch!r}.")
        self._holds = watch == "gradient"
        facts: dict[str, Any] = {} if loss_scale is None else {"changes_gradient": True}
        facts |= {} if self._holds else {"looks_ahead": True}
        kind = next(map(type, held_to.values()), Limit)
        keeps = _keeps(limits.names(kind, held_to), loss_scale is not None, self._holds)
        super().__init__(inner, name="guard", keeps=keeps, elementwise=False, **facts)
        self.of_all = keeps
        self._held_to = held_to
        self._loss_scale = loss_scale

    def init_own(self, leaves: Leaves) -> dict[str, jax.Array]:
        """No step skipped."""
        del leaves
        scale = {} if self._loss_scale is None else {"scale": self._loss_scale.initial}
        # each its own array, so that the state can be donated
        own = {
            name: jnp.array(scale.get(name, 0), jnp.float32 if name in _FLOATS else jnp.int32, copy=True)
            for name in self.keeps
        }
        return functools.reduce(dict.__or__, (limit.start() for limit in self._held_to.values()), own)

    def role_of(self, field: str) -> str:
        """What is known of earlier norms and losses has a name of the rule by which it is."""
        of = next((limit for limit in self._held_to.values() if field in limit.start()), None)
        return super().role_of(field if of is None else of.role_of(field))

    def update_leaves(self, leaves: Leaves, updates: Column, state: State) -> tuple[Column, State]:
        """The members' step, kept or dropped as a whole."""
        fields = self._with_loss(self.fields(state), leaves.extra)
        columns, inside = self._entered(leaves, updates, fields)
        emitted, inner = self.run_inner(inside, inside.updates, fields.inner)
        left = {i: emitted[i] if self.facts.terminal else leaves.lowered(i, emitted[i]) for i in leaves.present}
        ok, own = self._decided(fields, *self._looked_at(leaves, columns, left, fields.inner, inner))
        if self._holds:
            # a GPU's compiler makes several kernels of codes, a residual and a sum, and keeps what is between them
            counts_apart = self.facts.terminal and leaves.ahead is not None
            step = Step(self.inner, emitted, left, inner)
            emitted, inner, held = hold_leaves(leaves, step, ok, fields.inner, counts_apart=counts_apart)
            own["held"] = counted_on(fields.held, held)
        else:
            emitted = leaves.each(lambda u: jnp.where(ok, u, -jnp.zeros_like(u)), emitted)
            inner = _chosen(ok, inner, fields.inner)
        return emitted, self.state(inner, **own)

    def _entered(self, leaves: Leaves, updates: Column, fields: Fields) -> tuple[list[Column], Leaves]:
        """What came in, the updates first; and the leaves as the link inside sees them."""
        columns = [updates] if leaves.grad is None or leaves.grad is updates else [updates, leaves.grad]
        if self._loss_scale is not None:
            columns = [leaves.each(lambda x: x / numerics.scalar(fields.scale, x.real), of) for of in columns]
        # what is not finite comes no further: a derivative through a step that is skipped would be NaN
        safe = [leaves.each(_finite_or_zero, column) for column in columns]
        return columns, leaves.replace(updates=safe[0], grad=None if leaves.grad is None else safe[-1])

    def _with_loss(self, fields: Fields, extra: Mapping[str, object]) -> Any:
        """What the state has, with the loss of this update in the place of the last."""
        return states.replaced(fields, {"loss": limits.loss_of(extra)}) if "loss" in self._held_to else fields

    def _decided(self, fields: Fields, finite: jax.Array, norm: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Whether the step is taken, and what the guard then keeps itself."""
        found = {"norm": jnp.where(finite, jnp.minimum(norm, _LARGEST_NORM), norm)}
        ok = finite
        if "loss" in self._held_to:
            found["loss"] = jnp.clip(fields.loss, -_LARGEST_LOSS, _LARGEST_LOSS)
            ok &= jnp.isfinite(fields.loss)
        own = dict(found)
        for name, limit in self._held_to.items():
            ok &= limit.allows(fields, found[name])
            own |= limit.counted(fields, found[name])
        none = jnp.zeros_like(fields.skipped)
        own |= {
            "skipped": jnp.where(ok, fields.skipped, increment(fields.skipped)),
            "skipped_in_a_row": jnp.where(ok, none, increment(fields.skipped_in_a_row)),
        }
        return ok, own | self._scaled(fields, finite)

    def _looked_at(
        self, leaves: Leaves, columns: Sequence[Column], left: Mapping[int, jax.Array], old: State, new: State
    ) -> tuple[jax.Array, jax.Array]:
        """Whether all that is watched is finite, and the norm of what came."""
        if self._holds:
            norms = [_norm(leaves, column) for column in columns]
            return functools.reduce(jnp.logical_and, map(jnp.isfinite, norms)), norms[0]
        return known(
            leaves.ahead,
            lambda: (self._is_finite(leaves, [*columns, left], old, new), _norm(leaves, columns[0])),
        )

    def _is_finite(self, leaves: Leaves, columns: Sequence[Any], old: State, new: State) -> jax.Array:
        """Whether all in these columns is finite, and of the new state what was so in the old one."""
        flags = {i: [jnp.isfinite(column[i]) for column in columns] for i in leaves.present}
        places: dict[tuple[int, ...], list[int]] = {}
        for i, (first, *_) in flags.items():
            places.setdefault(first.shape, []).append(i)
        # a state has its arrays in the order of the leaves, and all that is made of one leaf is looked at in one pass
        turns = {shape: itertools.cycle(of_shape) for shape, of_shape in places.items()}
        pairs = zip(arrays_of(self.inner, old), arrays_of(self.inner, new), strict=True)
        for number, (was, now) in enumerate(pairs, len(leaves)):
            if (still := now.storage.finite(now.stored)) is None:
                continue
            if not (now.starts_finite or (before := was.storage.finite(was.stored)) is None):
                still |= ~before
            flags.setdefault(next(turns[still.shape]) if still.shape in turns else number, []).append(still)
        looked = [sharding.together({f"{k}": x for k, x in enumerate(of)}).values() for of in flags.values()]
        found = [jnp.all(functools.reduce(jnp.logical_and, of_leaf)).astype(jnp.int32) for of_leaf in looked]
        return manual.everywhere(numerics.sorted_apart(found)[0] > 0) if found else jnp.ones((), bool)

    # One leaf's step without the tree: a survey of all leaves, and then their step.

    def run_front(self, leaves: Leaves, updates: Column, state: State) -> State:
        """Those of the link inside make their step, which is not yet taken."""
        _, inside = self._entered(leaves, updates, self.fields(state))
        return super().run_front(inside, inside.updates, state)

    @property
    def surveys(self) -> bool:
        """All leaves have to be looked at before one is stepped."""
        return True

    def moved(self, leaves: Leaves) -> Collection[int]:
        """Those that the link inside may move."""
        return self.inner.moved(leaves)

    def ways(self, leaves: Leaves) -> list[Hashable]:
        """Those of the link inside."""
        return self.inner.ways(leaves)

    def fusing_obstacles(self, way: Hashable = None, *, tiled: bool = False) -> Iterator[str]:
        """Those of the link inside, and a survey in it, which would have to be made first."""
        yield from self.inner.fusing_obstacles(way, tiled=tiled)
        if "loss" in self._held_to:
            yield f"{self.name} holds the loss to a limit, and a step in one pass is given none"
        if self._holds and (keeps := [member.name for member in self.inner.front if member.facts.keeps]):
            yield f"{self.name} holds numbers one by one, also those that {' and '.join(keeps)} keeps of all leaves"
        if self.inner.surveys:
            yield f"{self.name} stands around {self.inner.name}, which looks at all leaves, too"

    def numbers_at(self, count: jax.Array, state: State, found: Any = None) -> tuple[_Numbers, dict[str, Any]]:
        """Whether the step is taken, and what the link inside has in common for all leaves."""
        del count
        fields = self.fields(state)
        before: Any = self.inner.count_of(fields.inner)
        inside, new = self.inner.numbers_at(before, fields.inner)
        numbers = _Numbers(fields, inside, before)
        if found is None:
            return numbers, {}
        old = self.inner.numbers_of(fields.inner)
        stay = jax.tree.map(_stays_finite, new, old)
        norms = [jnp.sqrt(squares) for squares in found["squares"]]
        finite = functools.reduce(jnp.logical_and, map(jnp.isfinite, norms))
        if not self._holds:
            finite = functools.reduce(jnp.logical_and, map(jnp.all, jax.tree.leaves(stay)), found["spoilt"] == 0)
        ok, own = self._decided(fields, finite, norms[0])
        taken_of = jax.tree.map(functools.partial(jnp.logical_and, ok), stay)
        held = sum([jnp.sum(ok & ~stays, dtype=jnp.float32) for stays in jax.tree.leaves(stay)], jnp.float32(0))
        after = {
            "own": own,
            "inner": jax.tree.map(jnp.where, taken_of, new, old),
            "count": None if before is None else jnp.where(ok, increment(before), before),
            "held": held,
        }
        return numbers._replace(ok=ok), after

    def leaf_survey(self, numbers: _Numbers, leaf: Leaf, kept: KeptOfLeaf) -> dict[str, Any]:
        """The sum of the squares of what came, and how many elements are not finite."""
        step = self._inside(numbers, leaf, kept)
        squares = [Term([numerics.square(x)]) for x in step.given]
        if self._holds:
            return {"squares": squares}
        good = taken(jnp.ones((), bool), step.slots, *map(jnp.isfinite, (*step.given, step.lowered)))
        return {"squares": squares, "spoilt": Term([~good])}

    def leaf_step(self, numbers: _Numbers, leaf: Leaf, kept: KeptOfLeaf) -> tuple[jax.Array, KeptOfLeaf]:
        """The step of the link inside, or none; or that but for what is held."""
        step = self._inside(numbers, leaf, kept)
        nothing = -jnp.zeros_like(step.emitted)
        ok: Any = numbers.ok
        if not self._holds:
            return _chosen(ok, (step.emitted, step.kept), (nothing, kept))
        chosen = taken(ok, step.slots, jnp.isfinite(step.lowered))
        if leaf.told is not None:
            leaf.told[leaf.place] = Term([ok & ~chosen])
        stored = {id(slot.new): slot.where(ok, chosen) for slot in step.slots}

        def held(new: Stored) -> Stored:
            return stored.get(id(new), new)

        new = jax.tree.map(held, step.kept, is_leaf=_is_stored)
        return jnp.where(chosen, step.emitted, nothing), new

    def _inside(self, numbers: _Numbers, leaf: Leaf, kept: KeptOfLeaf) -> _StepOfLeaf:
        """The step of the link inside."""
        leaves = leaf.as_tree()
        columns, inside = self._entered(leaves, leaves.updates, numbers.state)
        known = leaf.within(self.member)._replace(
            updates=inside.updates[0],
            grad=None if inside.grad is None else inside.grad[0],
            updates_before=numbers.updates_before,
        )
        emitted, new = self.inner.leaf_step(numbers.inside, known, kept)
        lowered = emitted if self.facts.terminal else leaves.lowered(0, emitted)
        pairs = zip(self.inner.stored_of(new), self.inner.stored_of(kept), strict=True)
        slots = [Slot(now.storage, now.stored, was.stored, now.starts_finite) for now, was in pairs]
        return _StepOfLeaf([column[0] for column in columns], emitted, lowered, new, slots)

    def kept_of_leaves(self, leaves: Leaves, state: State) -> list[KeptOfLeaf]:
        """What the link inside keeps."""
        return self.inner.kept_of_leaves(leaves, self.fields(state).inner)

    def stored_of(self, kept: KeptOfLeaf) -> Iterator[StoredSlot]:
        """Those of the link inside."""
        return self.inner.stored_of(kept)

    def with_kept(self, state: State, leaves: Leaves, numbers: Any, kept: Sequence[KeptOfLeaf]) -> State:
        """The state in which the link inside keeps this."""
        fields = self.fields(state)
        inner = self.inner.with_kept(fields.inner, leaves.within(self.member), numbers["inner"], kept)
        held: dict[str, jax.Array] = {}
        if self._holds:
            of_leaves = [jnp.sum(jnp.ceil(row)) for _, row in leaves.told.get(leaves.place, ())]
            held = {"held": counted_on(fields.held, sum(of_leaves, numbers["held"]))}
        return self.state(self.inner.with_count(inner, numbers["count"]), **numbers["own"], **held)

    def full_precision_of(self, param: jax.Array, kept: KeptOfLeaf) -> jax.Array:
        """The parameter as the link inside knows it."""
        return self.inner.full_precision_of(param, kept)

    def _scaled(self, state: Fields, finite: jax.Array) -> dict[str, jax.Array]:
        """The factor of the loss."""
        if (of := self._loss_scale) is None:
            return {}
        good = state.good_in_a_row + 1
        grown = jnp.where(good >= of.every, state.scale * of.growth, state.scale)
        grown = jnp.where(jnp.isfinite(grown), grown, state.scale)
        return {
            "scale": jnp.where(finite, grown, jnp.maximum(state.scale * of.backoff, jnp.finfo(jnp.float32).tiny)),
            "good_in_a_row": jnp.where(finite & (good < of.every), good, jnp.zeros_like(good)),
        }


def _chosen(ok: Any, new: Any, old: Any) -> Any:
    """The new tree if a step is taken, else the old one, array by array; what no step changes stays as it is."""

    def chosen(new: jax.Array, old: jax.Array) -> jax.Array:
        return new if new is old else jnp.where(ok, new, old)

    return jax.tree.map(chosen, new, old)


def _stays_finite(new: jax.Array, old: jax.Array) -> jax.Array:
    """Whether a number is finite, or was not so before."""
    return jnp.isfinite(new) | ~jnp.isfinite(old)


def _is_stored(node: object) -> bool:
    return isinstance(node, Stored)


def _finite_or_zero(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x))


def _norm(leaves: Leaves, column: Column) -> jax.Array:
    """The root of the sum of all squares, float32."""
    squares = [manual.total(jnp.sum(numerics.square(column[i])).astype(jnp.float32)) for i in leaves.present]
    return jnp.sqrt(jnp.sum(numerics.sorted_apart(squares))) if squares else jnp.zeros((), jnp.float32)


_FLOATS = ("norm", "loss", "scale")
"""Of what a guard keeps beside its limits, all but its counts."""


def _keeps(of_limits: Sequence[str], loss_scale: bool, holds: bool) -> tuple[str, ...]:
    """The names of what a guard keeps."""
    of_scale = ("scale", "good_in_a_row") if loss_scale else ()
    return ("skipped", "skipped_in_a_row", "norm", *of_limits, *of_scale, *(["held"] if holds else []))


_OF_LIMITS = {
    limits.names(kind, held)
    for kind in (limits.OfAverage, limits.OfWindow)
    for held in ("", "norm", "loss", "norm loss")
}
STATES = [
    states.state_type("guard", (*counted, *_keeps(of_limits, *settings), "inner"))
    for counted in ((), ("count",))
    for of_limits in _OF_LIMITS
    for settings in itertools.product((False, True), repeat=2)
]
"""The types of its states, by which `metrics` knows them; made here, so that exported programs find them."""
