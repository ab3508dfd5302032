"""What is inside a transformation, ours or one of Optax's that holds others, with each one's part of the state."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adam_tx._chain import Parallel, WithGradient
from adam_tx._core.boxes import leaves_with_paths
from adam_tx._core.leafwise import Leafwise
from adam_tx._core.leaves import Leaves, mask_of
from adam_tx._core.paths import slashed
from adam_tx._core.storage import DtypeStorage, Storage, Stored
from adam_tx._link import Foreign, implementation_of
from adam_tx.describe import closures
from adam_tx.training._groups import Groups

_PLAIN = DtypeStorage()
Parts = tuple[Mapping[str, Any], Sequence[tuple[str, Any, Any]]]
"""A state taken apart: what is the link's own by name, and `(key, link, state)` of each member."""


def parts(tx: Any, state: Any) -> Parts | None:
    """The state of a transformation that is no link taken apart; None where it is not known how."""
    found, maker = closures.values(tx), closures.name(tx.update)
    if not is_optax(tx) or maker not in _WRAPPERS:
        return None if holds_transformation(found) else (_fields(state), [])
    try:
        return _WRAPPERS[maker](found, state)
    except (AttributeError, KeyError, TypeError, ValueError):  # a version of Optax whose state has other parts
        return None


class Held(NamedTuple):
    """A link made from the rule of a leaf, wherever it stands in a transformation.

    Attributes:
      link: what it is.
      state: what it keeps; None if that is nothing.
      count: the number of updates that its last ones were counted by, None if it is not known.
      leaves: the numbers of the leaves that are its own; None for all.
    """

    link: Leafwise
    state: Any
    count: Any
    leaves: frozenset[int] | None


def held(
    tx: Any, state: Any, leaves: Leaves, count: Any = None, arrays: frozenset[int] | None = None
) -> Iterator[Held]:
    """All such links in a transformation that is known from inside, in the order in which they act."""
    tx = closures.unadapted(tx)
    declaration = implementation_of(tx)
    if isinstance(declaration, Foreign):
        tx, declaration = closures.unadapted(declaration.wrapped), None
    if declaration is None:
        _, members = parts(tx, state) or ({}, [])
        for key, member, part in members:
            marked = chosen(tx, key, leaves)
            own = marked if arrays is None or marked is None else marked & arrays
            yield from held(member, part, leaves, None, arrays if own is None else own)
        return
    if isinstance(state, Mapping):
        count = state.get("count", count)
    elif "count" in getattr(state, "_fields", ()):
        count = state.count
    if isinstance(declaration, Leafwise):
        yield Held(declaration, state, count, arrays)
    elif isinstance(declaration, Groups):
        for group, own in declaration.leaves_of(leaves):
            if group.link is not None:
                own = own if arrays is None else own & arrays
                yield from held(group.link, state.get(group.key), leaves, count, own)
    elif isinstance(declaration, Parallel):
        return  # whose rates and averages are not those of one step
    else:
        members = [(name, link, None) for name, link in declaration.links.items()]
        for name, link, part in members if state is None else declaration.split_state(state)[1]:
            if not isinstance(declaration, WithGradient) or name == "member":
                yield from held(link, part, leaves, count, arrays)


class Kept(NamedTuple):
    """An array of a state.

    Attributes:
      path: where it stands in the state, such as `scale_by_rms/nu/dense/kernel`.
      stored: the array, and beside codes their scales.
      storage: what knows its numbers.
      starts_finite: whether it is known that all were so at first.
    """

    path: str
    stored: Stored
    storage: Storage
    starts_finite: bool = False

    @property
    def numbers(self) -> Any:
        """The array, or the numbers that its codes stand for."""
        if self.stored.scales is None:
            return self.stored.values
        return self.storage.decode(self.stored, jnp.dtype(jnp.float32))


def kept(tx: Any, state: Any, *place: str) -> Iterator[Kept]:
    """Every array by which a state goes on; what is for people to read is left out."""
    tx = closures.unadapted(tx)
    declaration = implementation_of(tx)
    if isinstance(declaration, Foreign):
        tx, declaration = closures.unadapted(declaration.wrapped), None
    own, members = (parts(tx, state) or ({"": state}, [])) if declaration is None else declaration.split_state(state)
    told = () if declaration is None else declaration.told
    if isinstance(declaration, Leafwise):
        told = ("scales", *declaration.kind.slots)
        for name in declaration.kind.slots:
            yield from _slot(declaration, state, name, place)
    for name, tree in own.items():
        if name not in told:
            yield from (Kept(path, Stored(x), _PLAIN) for path, x in _arrays(tree, *place, name))
    for key, member, part in members:
        if part is not None:
            yield from kept(member, part, *place, key)


def _slot(link: Leafwise, state: Any, name: str, place: Sequence[str]) -> Iterator[Kept]:
    """What is kept of a slot."""
    values, key = dict(_arrays(getattr(state, name), *place, name)), link.scaled.get(name)
    scales = {} if key is None else dict(_arrays(state.scales[key], *place, name))
    start = link.rule.start.get(name, 0.0)
    finite = isinstance(start, int | float) and math.isfinite(start)
    for path, x in values.items():
        yield Kept(path, Stored(x, scales.get(path)), link.storage[name], finite)


def _arrays(tree: Any, *place: str) -> Iterator[tuple[str, Any]]:
    """The arrays of a tree with their paths."""
    for path, leaf in leaves_with_paths(tree, lambda _: False):
        yield "/".join(filter(None, (*place, slashed(path)))), leaf


def chosen(tx: Any, key: str, leaves: Leaves) -> frozenset[int] | None:
    """The leaves that a wrapper of Optax gives to this member; None for all."""
    mask = mask_of_member(tx, key, leaves.given("params"))
    return None if mask is None else frozenset(i for i, marked in enumerate(leaves.marks(mask)) if marked)


def mask_of_member(tx: Any, key: str, tree: Any) -> Any:
    """The mask of what a wrapper of Optax gives to this member of a tree, or a prefix of it; None for all."""
    maker, found = closures.name(tx.update), closures.values(tx)
    if maker == "masked":
        return found["mask"] if tree is None else mask_of(found["mask"], tree)
    if maker == "partition":
        labels = found["param_labels"]
        return jax.tree.map(lambda label: str(label) == key, labels(tree) if callable(labels) else labels)
    return None


def is_optax(tx: Any) -> bool:
    """Whether it is one of Optax's."""
    owner = getattr(tx.update, "__self__", tx.update)
    module = getattr(owner, "__module__", None) or type(owner).__module__
    return module.split(".")[0] == "optax"


def _fields(state: Any) -> dict[str, Any]:
    """The parts of a state by name, as far as they have names."""
    if isinstance(state, Mapping) and all(isinstance(key, str) for key in state):
        return dict(state)
    named = getattr(state, "_asdict", None)
    return {"": state} if named is None else named()


def is_wrapper(maker: str) -> bool:
    """Whether it is known how to take apart the states of what this function of Optax makes."""
    return maker in _WRAPPERS


def holds_transformation(value: Any, depth: int = 4) -> bool:
    """Whether a transformation is in this, or in what it contains."""
    if isinstance(value, optax.GradientTransformation):
        return True
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return depth > 0 and any(holds_transformation(member, depth - 1) for member in inside)


def _inside(holder: str, field: str) -> Callable[[Mapping[str, Any], Any], Parts]:
    """For wrappers that hold one transformation under `holder`, and keep its state in `field` of their own."""

    def take_apart(found: Mapping[str, Any], state: Any) -> Parts:
        fields = _fields(state)
        inner = fields.pop(field)
        return fields, [("", found[holder], inner)]

    return take_apart


def _chain(found: Mapping[str, Any], state: Any) -> Parts:
    return {}, [("", tx, inner) for tx, inner in zip(closures.members(found), state, strict=True)]


def _named_chain(found: Mapping[str, Any], state: Any) -> Parts:
    return {}, [(name, tx, state[name]) for name, tx in found["transforms"]]


def _partition(found: Mapping[str, Any], state: Any) -> Parts:
    groups = found["transforms"].items()
    return {}, [(f"{label}", tx, state.inner_states[label].inner_state) for label, tx in groups]


def _flatten(found: Mapping[str, Any], state: Any) -> Parts:
    return {}, [("", found["inner"], state)]


def _inject_hyperparams(found: Mapping[str, Any], state: Any) -> Parts:
    """The transformation is made in every update, from hyperparameters that are known only then."""
    made = []

    def make(given: Mapping[str, Any]) -> None:
        made.append(found["inner_factory"](**found["other_hps"], **given))

    abstract = any(isinstance(value, jax.ShapeDtypeStruct) for value in jax.tree.leaves(state.hyperparams))
    jax.eval_shape(make, state.hyperparams) if abstract else make(state.hyperparams)
    return _inside("inner", "inner_state")({"inner": made[0]}, state)


_WRAPPERS: Mapping[str, Callable[[Mapping[str, Any], Any], Parts]] = {
    "chain": _chain,
    "named_chain": _named_chain,
    "partition": _partition,
    "flatten": _flatten,
    "inject_hyperparams": _inject_hyperparams,
    "masked": _inside("inner", "inner_state"),
    "apply_if_finite": _inside("inner", "inner_state"),
    "conditionally_mask": _inside("inner", "inner_state"),
    "conditionally_transform": _inside("inner", "inner_state"),
    "MultiSteps": _inside("opt", "inner_opt_state"),
    "lookahead": _inside("fast_optimizer", "fast_state"),
    "schedule_free": _inside("base_optimizer", "base_optimizer_state"),
}
