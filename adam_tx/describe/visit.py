"""`visit`: the one walk through a transformation and its state, ours or one of Optax's that holds others.

Whoever asks what is inside (`summary`, `explain`, `guard`, `monitor`, `export_state`, …)
gives `visit` a function that is called with every part, from the outside in, in the
order in which they act. A class of transformations that is none of adam_tx or Optax
becomes known with `taken_apart.register`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

from adam_tx._core import states
from adam_tx._core.abstract_link import AbstractLink, implementation_of
from adam_tx._core.call import is_optax, maker_name
from adam_tx._core.foreign import Foreign
from adam_tx._core.leafwise import Leafwise
from adam_tx._core.leaves import Leaves, Tree
from adam_tx._core.masks import mask_of
from adam_tx._core.provenance import GRADIENT, Provenance
from adam_tx._core.states import State
from adam_tx.describe import closures

Transformation = AbstractLink | optax.GradientTransformation


class Member(NamedTuple):
    """A transformation inside another one.

    Attributes:
      name: of the member; empty where it has none.
      tx: what it is.
      state: what it keeps; None for nothing.
      leaves: the numbers of the leaves that are its own; None for all.
    """

    name: str
    tx: Transformation
    state: State
    leaves: frozenset[int] | None = None


class Apart(NamedTuple):
    """A transformation and its state, taken apart one level deep.

    Attributes:
      own: what is its own of the state, by name.
      members: what is inside, in the order in which it acts.
      side_by_side: whether members are given the same, and not each what the one before it emitted.
    """

    own: Mapping[str, Tree]
    members: Sequence[Member]
    side_by_side: bool = False


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a transformation that is visited.

    Attributes:
      tx: what it is: the implementation of a link, or a transformation of others.
      state: what it keeps; None for nothing.
      place: the names of what it stands in, and its own.
      numbers: its place once more, as numbers of members, which are never alike.
      leaves: the numbers of the leaves that are its own; None for all.
      updates: the provenance of what comes in.
      grad: that of what it has as the gradient.
      count: the number of updates that it has made, by whoever counts them; None where that is not known.
      acts: whether what it emits is what becomes of its leaves, and not one of several terms, or a gradient.
      tree: the parameters, if the visit knows them.
      formula: what somebody has said that a transformation of others emits.
      elementwise: whether somebody has said of it that it steps each element by itself.
    """

    tx: Transformation
    state: State
    place: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    leaves: frozenset[int] | None = None
    updates: Provenance = GRADIENT
    grad: Provenance = GRADIENT
    count: jax.Array | None = None
    acts: bool = True
    tree: Leaves | None = None
    formula: str = ""
    elementwise: bool = False

    @property
    def name(self) -> str:
        """Its name in what it stands in; empty if it stands in nothing, or has none."""
        return self.place[-1] if self.place else ""

    @property
    def link(self) -> AbstractLink | None:
        """What runs, if it is a link of adam_tx."""
        return self.tx if isinstance(self.tx, AbstractLink) else None

    @property
    def leafwise(self) -> Leafwise | None:
        """The same, if it is made from the rule of a leaf."""
        return self.tx if isinstance(self.tx, Leafwise) else None

    @functools.cached_property
    def apart(self) -> Apart | None:
        """What it keeps itself, and what is inside; None where it is not known how to take it apart."""
        return taken_apart(self.tx, self.state, self.tree)

    def inner(self, k: int, updates: Provenance, grad: Provenance) -> Part:
        """The member of this number, given these."""
        assert self.apart is not None
        member = self.apart.members[k]
        known = [leaves for leaves in (member.leaves, self.leaves) if leaves is not None]
        link = self.link
        return Part(
            uncovered(member.tx),
            member.state,
            (*self.place, member.name),
            (*self.numbers, k),
            frozenset.intersection(*known) if known else None,
            updates,
            grad,
            None if link is None else states.fields_of(self.state).get("count", self.count),
            self.acts and (link is None or link.acts(member.name)),
            self.tree if link is None or self.tree is None else link.leaves_inside(self.tree),
            *_said_of(member.tx),
        )


Enter = Callable[[Part], Provenance | None]
"""Is called with a part. If it says what that emits, the inside of the part is left out."""


def visit(tx: object, state: State, enter: Enter, *, tree: Leaves | None = None, count: Any = None) -> None:
    """Call a function with every part of a transformation, from the outside in, in the order in which they act.

    Args:
      tx: the transformation.
      state: its state, of arrays or of their shapes.
      enter: the function.
      tree: the parameters, from which follows which leaves are a member's own.
      count: the number of updates that the transformation has made, if something else counts them.
    """
    formula, elementwise = _said_of(tx)
    _visit(Part(uncovered(tx), state, tree=tree, count=count, formula=formula, elementwise=elementwise), enter)


def _visit(part: Part, enter: Enter) -> Provenance:
    if (emitted := enter(part)) is not None:
        return emitted
    apart = part.apart or Apart({}, ())
    if part.link is None or part.tree is None:
        return _visit_members(part, apart, enter)
    numbers = {member.name: k for k, member in enumerate(apart.members)}

    def run(name: str, updates: Provenance, grad: Provenance) -> Provenance:
        return _visit(part.inner(numbers[name], updates, grad), enter)

    return part.link.trace(run, part.updates, part.grad)


def _visit_members(part: Part, apart: Apart, enter: Enter) -> Provenance:
    """The members of a transformation of others, to which the gradient is what comes in."""
    updates = part.updates
    emitted: list[Provenance] = []
    for k in range(len(apart.members)):
        emitted.append(_visit(part.inner(k, updates, part.updates), enter))
        if not apart.side_by_side:
            updates = emitted[-1]
    left = part.leaves if part.leaves is not None else frozenset(part.tree.present) if part.tree else frozenset[int]()
    taken = [left if member.leaves is None else member.leaves for member in apart.members]
    if apart.side_by_side and not left <= frozenset[int]().union(*taken):
        emitted.append(part.updates)  # that of the leaves which no member has
    return Provenance.merged(emitted) if emitted and apart.side_by_side else updates


def uncovered(tx: Any) -> Transformation:
    """What runs behind a transformation: without Optax's adapter to extra arguments, and without ours to links."""
    tx = closures.without_extra_args_support(tx)
    link = tx if isinstance(tx, AbstractLink) else implementation_of(tx)
    return uncovered(link.wrapped) if isinstance(link, Foreign) else link or tx


def _said_of(tx: object) -> tuple[str, bool]:
    """What somebody has said of a transformation of others: what it emits, and whether it is elementwise."""
    link = tx if isinstance(tx, AbstractLink) else implementation_of(tx)
    return (link.said, link.facts.elementwise) if isinstance(link, Foreign) else ("", False)


@functools.singledispatch
def taken_apart(tx: Any, state: Any, tree: Leaves | None) -> Apart | None:
    """A transformation and its state, taken apart; None where it is not known how.

    Register a function of these arguments for another class of transformations.
    """
    found = closures.variables(tx)
    maker = maker_name(tx)
    if not is_optax(tx) or maker not in _WRAPPERS:
        return None if closures.held(tx) else Apart(_fields(state), ())
    try:
        apart = _WRAPPERS[maker](found, state)
    except (AttributeError, KeyError, TypeError, ValueError):  # a version of Optax whose state has other parts
        return None
    if tree is None or not apart.side_by_side:
        return apart
    members = [member._replace(leaves=_chosen(tx, member.name, tree)) for member in apart.members]
    return apart._replace(members=members)


@taken_apart.register(AbstractLink)
def _(tx: AbstractLink, state: Any, tree: Leaves | None) -> Apart:
    members = [Member(name, *of) for name, of in tx.inside(state, tree).items()]
    return Apart({} if state is None and tx.members else tx.split_state(state).own, members)


def _chosen(tx: Any, key: str, tree: Leaves) -> frozenset[int] | None:
    """The leaves that a wrapper of Optax gives to this member; None for all."""
    mask = mask_of_member(tx, key, tree.given("params"))
    return None if mask is None else frozenset(i for i, marked in enumerate(tree.marks(mask)) if marked)


def mask_of_member(tx: Any, key: str, params: Any) -> Any:
    """The mask of what a wrapper of Optax gives to this member of a tree, or a prefix of it; None for all."""
    maker = maker_name(tx)
    found = closures.variables(tx)
    if maker == "masked":
        return found["mask"] if params is None else mask_of(found["mask"], params)
    if maker == "partition":
        labels = found["param_labels"]
        return jax.tree.map(functools.partial(_is_called, key), labels(params) if callable(labels) else labels)
    return None


def _is_called(key: str, label: object) -> bool:
    return str(label) == key


def _fields(state: Any) -> dict[str, Any]:
    """The parts of a state by name, as far as they have names."""
    if isinstance(state, Mapping) and all(isinstance(key, str) for key in state):
        return dict(state)
    named = getattr(state, "_asdict", None)
    return {"": state} if named is None else named()


def is_wrapper(maker: str) -> bool:
    """Whether it is known how to take apart the states of what this function of Optax makes."""
    return maker in _WRAPPERS


TakeApart = Callable[[Mapping[str, Any], Any], Apart]
"""From what the functions of a wrapper of Optax hold on to, and its state, to its parts."""


def _inside(holder: str, field: str, *, side_by_side: bool = False) -> TakeApart:
    """For wrappers that hold one transformation under `holder`, and keep its state in `field` of their own."""

    def take_apart(found: Mapping[str, Any], state: Any) -> Apart:
        fields = _fields(state)
        inner = fields.pop(field)
        return Apart(fields, [Member("", found[holder], inner)], side_by_side)

    return take_apart


def _partition(found: Mapping[str, Any], state: Any) -> Apart:
    groups = found["transforms"].items()
    members = [Member(f"{label}", tx, state.inner_states[label].inner_state) for label, tx in groups]
    return Apart({}, members, side_by_side=True)


def _inject_hyperparams(found: Mapping[str, Any], state: Any) -> Apart:
    """The transformation is made in every update, from hyperparameters that are known only then."""
    made: dict[str, Any] = {}

    def concrete(value: object) -> object:
        return getattr(value, "concrete", value)  # what stands for an array may know it

    def make(given: Mapping[str, Any]) -> None:
        made["inner"] = found["inner_factory"](**found["other_hps"], **given)

    known = jax.tree.map(concrete, state.hyperparams)
    abstract = any(isinstance(value, jax.ShapeDtypeStruct) for value in jax.tree.leaves(known))
    jax.eval_shape(make, known) if abstract else make(known)
    return _inside("inner", "inner_state")(made, state)


_WRAPPERS: Mapping[str, TakeApart] = {
    "chain": lambda v, state: Apart({}, [Member("", *of) for of in zip(closures.members(v), state, strict=True)]),
    "named_chain": lambda v, state: Apart({}, [Member(name, tx, state[name]) for name, tx in v["transforms"]]),
    "partition": _partition,
    "flatten": lambda v, state: Apart({}, [Member("", v["inner"], state)]),
    "inject_hyperparams": _inject_hyperparams,
    "masked": _inside("inner", "inner_state", side_by_side=True),
    "apply_if_finite": _inside("inner", "inner_state"),
    "conditionally_mask": _inside("inner", "inner_state"),
    "conditionally_transform": _inside("inner", "inner_state"),
    "MultiSteps": _inside("opt", "inner_opt_state"),
    "lookahead": _inside("fast_optimizer", "fast_state"),
    "schedule_free": _inside("base_optimizer", "base_optimizer_state"),
}
