"""What each array of a state is: its role, and the parameter it belongs to.

The field that an array stands in says little. Adam's `mu` averages the gradient; with the
same name, LaProp's averages updates that were already divided by their size. So a role is
found from the declarations of links, and from where they stand in the whole.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adam_tx import inside
from adam_tx._core import introspect
from adam_tx._core.leafwise import Leafwise
from adam_tx._core.trees import Walk, is_absent, path_str
from adam_tx.chain import Chain, Parallel, WithGradient
from adam_tx.link import Foreign, declared
from adam_tx.links.basis import InBasis
from adam_tx.state.roles import OfLeaf, OfMany, Part, Role, arrays_of
from adam_tx.training.groups import Groups
from adam_tx.training.guard import Guard


def parts_of(tx: Any, state: Any, params: Any) -> list[Part]:
    """What the leaves of a state are, each in exactly one part.

    Args:
      tx: the transformation that made it.
      state: the state, of arrays or of their shapes.
      params: the parameters, or their shapes.

    Raises:
      ValueError: a state of another transformation, or of other parameters.
    """
    walk = Walk.of_params(params)
    leaves, treedef = jax.tree.flatten(state)
    numbered = treedef.unflatten([_Numbered(leaf, i) for i, leaf in enumerate(leaves)])
    found = list(_Reader(walk, leaves).read(tx, numbered, _Place(frozenset(walk.present))))
    missed = set(range(len(leaves))).difference(i for part in found for i in arrays_of(part))
    if missed:
        where = [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]
        raise ValueError(
            f"opt_state: it has {', '.join(path_str(where[i]) for i in sorted(missed)[:3])}, which is no part of the "
            f"state of this tx. Give the transformation that made it."
        )
    return _distinct(found)


def _distinct(parts: list[Part]) -> list[Part]:
    """The parts, those of one array joined. Of several of a role and parameter all but the fastest are numbered."""
    joined: dict[int, Part] = {}
    for part in parts:
        known = joined.get(part.values)
        if isinstance(part, OfMany) and isinstance(known, OfMany):  # groups may have one state
            part = part._replace(leaves=part.leaves | known.leaves)
        joined[part.values] = part
    taken: dict[tuple[Role, int], int] = {}
    distinct: list[Part] = []
    for part in sorted(joined.values(), key=_decay):
        leaves = [part.leaf] if isinstance(part, OfLeaf) else part.leaves
        key = part.role._replace(rate=1.0)
        number = 1 + max((taken.get((key, leaf), 0) for leaf in leaves), default=0)
        taken |= {(key, leaf): number for leaf in leaves}
        role = part.role if number == 1 else part.role._replace(base=f"{part.role.base}_{number}")
        distinct.append(part._replace(role=role))
    place = {part.values: k for k, part in enumerate(joined.values())}
    return sorted(distinct, key=lambda part: place[part.values])


def _decay(part: Part) -> float:
    """By what averages of one role are told apart, whatever their order: how fast they forget."""
    decay = part.decay_value
    return decay if isinstance(decay, float | int) else math.inf


class _Numbered(jax.ShapeDtypeStruct):
    """In place of an array of a state: its shape, and its number among the leaves."""

    def __init__(self, like: Any, number: int) -> None:
        super().__init__(jnp.shape(like), like.dtype if hasattr(like, "dtype") else jnp.result_type(like))
        self.number = number


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What a link is given, be it as the gradient or as updates: the gradient, and what was done to it.

    Attributes:
      words: the marks that what was done leaves on a role.
      rate: the product of the constants that it was multiplied by; NaN once one of them varies.
    """

    words: frozenset[str] = frozenset()
    rate: float = 1.0

    def marked(self, word: str) -> _Seen:
        return dataclasses.replace(self, words=self.words | {word})

    def times(self, constant: float) -> _Seen:
        return dataclasses.replace(self, rate=self.rate * constant)

    def step(self, rate: Any) -> _Seen:
        """Multiplied by a learning rate, with its sign."""
        return self.marked("steps").times(float(rate) if isinstance(rate, float | int) else math.nan)

    @staticmethod
    def joined(all_: Sequence[_Seen]) -> _Seen:
        """What several links emit for the parameters of each, or as a sum."""
        first = all_[0]
        if all(seen == first for seen in all_):
            return first
        words = frozenset().union(*(seen.words for seen in all_))
        return _Seen(words | {"changed"}, math.nan)

    def role(self, declared: str) -> Role:
        base, _, of = declared.partition("_of_")
        marks = [word for word in ("changed", "basis", "scaled", "steps") if word in self.words]
        return Role(base, (*([of] if of else []), *marks), self.rate)


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a link stands.

    Attributes:
      leaves: the numbers of the parameters that are its own.
      updates: what comes in.
      grad: what it has as the gradient.
    """

    leaves: frozenset[int]
    updates: _Seen = _Seen()
    grad: _Seen = _Seen()


class _Reader:
    """Reads the parts of numbered states."""

    def __init__(self, walk: Walk, leaves: Sequence[Any]) -> None:
        self.walk, self._leaves, self._emitted = walk, leaves, _Seen()

    def read(self, tx: Any, state: Any, place: _Place) -> Iterator[Part]:
        """The parts of the state of a transformation, in the order in which its links act."""
        tx = introspect.unadapted(tx)
        declaration = declared(tx)
        if isinstance(declaration, Foreign):
            tx, declaration = introspect.unadapted(declaration.wrapped), None
        self._emitted = place.updates
        if declaration is None:
            yield from self._foreign(tx, state, dataclasses.replace(place, grad=place.updates))
        elif isinstance(declaration, Leafwise) and not declaration.keeps:
            self._emitted = _after(declaration, place.updates)
        elif state is None and not declaration.keeps:
            yield from self._members(
                declaration, [(name, link, None) for name, link in declaration.links.items()], place
            )
        else:
            yield from self._link(declaration, state, place)

    def _link(self, declaration: Any, state: Any, place: _Place) -> Iterator[Part]:
        if isinstance(declaration, Leafwise):
            yield from self._leafwise(declaration, state, place)
            return
        try:
            own, members = declaration.parts(state)
        except (AttributeError, KeyError):
            raise _of_another(declaration.name, state) from None
        for name, tree in own.items():
            # a link whose members count by themselves may hold steps back from them
            base = ("steps" if _counts_inside(declaration) else "count") if name == "count" else None
            if base:
                yield OfMany(Role(base), place.leaves, tree.number)
            elif isinstance(declaration, InBasis):
                kind = f"{type(declaration.basis).__name__}." if name == "memory" else ""
                yield from self._unknown(f"{kind}{name}", tree, place)
            else:
                yield from self._unknown(f"{declaration.name}.{name}", tree, place)
        if isinstance(declaration, Chain):
            place = dataclasses.replace(place, grad=place.updates)
        if isinstance(declaration, Groups):
            emitted: list[_Seen] = []
            for group, leaves in declaration.leaves_of(self.walk):
                if group.link is not None:
                    yield from self.read(group.link, state.get(group.key), _within(place, leaves))
                    emitted.append(self._emitted)
            self._emitted = _Seen.joined(emitted or [place.updates])
            return
        yield from self._members(declaration, members, place)

    def _members(self, declaration: Any, members: Any, place: _Place) -> Iterator[Part]:
        emitted, side_by_side = place.updates, []
        for name, link, part in members:
            inner = place
            if isinstance(declaration, InBasis):
                inner = dataclasses.replace(
                    place, updates=place.updates.marked("basis"), grad=place.grad.marked("basis")
                )
            elif isinstance(declaration, WithGradient) and name == "member":
                inner = dataclasses.replace(place, grad=place.grad.marked("changed"))
            elif isinstance(declaration, WithGradient):
                inner = dataclasses.replace(place, updates=place.grad)
            elif isinstance(declaration, Chain):
                inner = dataclasses.replace(place, updates=emitted)
            yield from self.read(link, part, inner)
            if not isinstance(declaration, WithGradient) or name == "member":
                emitted = self._emitted
                side_by_side.append(emitted)
        self._emitted = _Seen.joined(side_by_side) if isinstance(declaration, Parallel) else emitted

    def _leafwise(self, link: Leafwise, state: Any, place: _Place) -> Iterator[Part]:
        kind, rule = link.kind, link.rule
        seen = place.grad if link.reads_grad else place.updates
        expected = {*kind.slots, *kind.numbers, *(kind.weights[decay] for decay in rule.debias)}
        if set(getattr(state, "_fields", ())) - {"count", "scales"} != expected:
            raise _of_another(link.name, state)
        if "count" in state._fields:
            yield OfMany(Role("count"), place.leaves, state.count.number)
        for decay in rule.debias:
            weight, (averages, role) = getattr(state, kind.weights[decay]), _debiased_by(link, decay)
            yield OfMany(Role(role), place.leaves, weight.number, link, decay, averages)
        for name in kind.numbers:
            yield OfMany(Role(f"{link.name}.{name}"), place.leaves, getattr(state, name).number)
        for name in kind.slots:
            of_gradient = kind.slots[name].kind in _AVERAGES
            role = (seen if of_gradient else _Seen()).role(_declared_role(link, name, place))
            values = self._column(getattr(state, name), link.name)
            key = link.scaled.get(name)
            scales: list[Any] = [None] * len(values) if key is None else self._column(state.scales.get(key), link.name)
            for i in sorted(place.leaves):
                if not is_absent(values[i]):
                    scale = None if is_absent(scales[i]) else scales[i].number
                    yield OfLeaf(role, i, values[i].number, scale, link, name)
        self._emitted = _after(link, place.updates)

    def _column(self, tree: Any, name: str) -> list[Any]:
        try:
            return self.walk.column(tree, name, optional=True)
        except ValueError as error:
            problem = str(error).partition(". Give")[0]
            raise ValueError(
                f"opt_state: what {name} keeps is not of these params: {problem}. Give the params that it was made "
                "for; old_params, if they are others now."
            ) from None

    def _foreign(self, tx: Any, state: Any, place: _Place) -> Iterator[Part]:
        """What Optax keeps, as far as it is known, and of any other what its fields are called."""
        maker, found = introspect.name(tx.update), introspect.values(tx)
        if not inside.is_optax(tx):
            yield from self._unknown(maker, state, place)
            return
        known = _OPTAX.get(maker)
        if known is not None:
            if not known.keys() <= set(getattr(state, "_fields", ())):
                raise _of_another(maker, state)
            for name, tree in state._asdict().items():
                if name == "count":
                    yield OfMany(Role("count"), place.leaves, tree.number)
                else:
                    role = place.updates.role(known.get(name, f"{maker}.{name}"))
                    yield from self._unknown(role, tree, place)
        elif maker not in _OF_OTHER_TREES and (taken := self._parts(tx, maker, state)) is not None:
            (own, members), emitted = taken, list[_Seen]()
            for name, tree in own.items():
                yield from self._unknown(f"{maker}.{name}" if name else maker, tree, place)
            for key, member, part in members:
                leaves = inside.chosen(tx, key, self.walk)
                yield from self.read(member, part, place if leaves is None else _within(place, leaves))
                if maker in ("chain", "named_chain"):
                    place = dataclasses.replace(place, updates=self._emitted)
                emitted.append(self._emitted)
            if members:
                self._emitted = _Seen.joined(emitted) if maker == "partition" else emitted[-1]
                return
        elif inside.is_wrapper(maker) and maker not in _OF_OTHER_TREES:
            raise _of_another(maker, state)
        else:
            yield from self._unknown(maker, state, place)
        self._emitted = _after_optax(maker, found, known, place.updates)

    def _parts(self, tx: Any, maker: str, state: Any) -> inside.Parts | None:
        """The parts of a wrapper's state; from hyperparameters that are injected, as they are, its inside is made."""
        if maker != "inject_hyperparams":
            return inside.parts(tx, state)
        given = state._replace(hyperparams=jax.tree.map(lambda x: self._leaves[x.number], state.hyperparams))
        taken = inside.parts(tx, given)
        return None if taken is None else (state._replace(inner_state=None)._asdict() | {"inner_state": ()}, taken[1])

    def _unknown(self, role: Role | str, tree: Any, place: _Place) -> Iterator[Part]:
        """The arrays in a tree of which no more is known: by parameter where it is like the params, else by name."""
        known = role if isinstance(role, Role) else Role(role)
        if isinstance(tree, _Numbered) and not self._is_the_parameter(tree, least=0 if known is role else 1):
            yield OfMany(known, place.leaves, tree.number)
        elif (column := self._like_params(tree)) is not None:
            yield from (OfLeaf(known, i, node.number) for i, node in enumerate(column) if not is_absent(node))
        else:
            for path, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)[0]:
                yield from self._unknown(f"{role}.{jax.tree_util.keystr(path, simple=True)}", node, place)

    def _like_params(self, tree: Any) -> list[Any] | None:
        try:
            column = self.walk.column(tree, "", optional=True)
        except ValueError:
            return None
        nodes = [node for node in column if not is_absent(node)]
        return column if nodes and all(isinstance(node, _Numbered) for node in nodes) else None

    def _is_the_parameter(self, array: _Numbered, least: int) -> bool:
        """Whether one array, of at least so many axes, is like the one parameter that is the whole tree."""
        column = self._like_params(array)
        return column is not None and array.shape == jnp.shape(self.walk.leaves[0]) and array.ndim >= least


_OF_OTHER_TREES = ("flatten", "lookahead")
"""Wrappers whose inside does not see the tree of parameters."""


def _of_another(name: str, state: Any) -> ValueError:
    fields = list(state) if isinstance(state, Mapping) else list(getattr(state, "_fields", ()))
    return ValueError(
        f"opt_state: a {type(state).__name__} of {fields} came in the place of what {name} keeps. Give the state and "
        "the transformation that made it."
    )


def _within(place: _Place, leaves: frozenset[int]) -> _Place:
    return dataclasses.replace(place, leaves=place.leaves & leaves)


def _counts_inside(declaration: Any) -> bool:
    """Whether there is a link inside that counts by itself, because it may not see every step."""
    if isinstance(declaration, Guard | InBasis):
        return True
    if isinstance(declaration, Foreign):
        return inside.holds_transformation(introspect.values(introspect.unadapted(declaration.wrapped)))
    return any(_counts_inside(link.declaration) for link in declaration.links.values())


def _declared_role(link: Leafwise, name: str, place: _Place) -> str:
    """The role of a slot by its declaration: what is said there, or what an average of its kind is.

    Of a link that reads both the gradient and updates that are something else, it is not known which of them a signed
    slot averages.
    """
    slots, slot = link.kind.slots, link.kind.slots[name]
    if (said := link.rule.roles.get(name, slot.role)) is not None:
        return said
    alike = [other for other in slots.values() if other.role is None and other[:1] == slot[:1] and other.decay]
    unclear = slot.kind == "gradient" and link.reads_grad and place.grad != place.updates
    role = _AVERAGES[slot.kind] if alike == [slot] and not unclear else f"{link.name}.{name}"
    return f"{role}_of_blocks" if name in link.rule.shape else role


_AVERAGES = {"gradient": "mu", "square": "nu"}


def _debiased_by(link: Leafwise, decay: str) -> tuple[str, str]:
    """The kind of the averages whose start from zero the weight of a decay undoes, and the role of the weight."""
    averages = [slot for slot in link.kind.slots.values() if slot.decay is not None]
    kinds = {slot.kind for slot in averages if slot.decay == decay}
    if link.rule.corrects is not None:
        kinds = {_ORDERS.get(decay, "gradient")}
    kind = "square" if "square" in kinds else "gradient" if kinds or not averages else averages[0].kind
    if len([slot for slot in averages if slot.kind == kind]) > 1 or not (kinds or averages):
        return kind if averages else "", f"{link.name}.{link.kind.weights[decay]}"
    return kind, f"weight_{_AVERAGES[kind]}" + ("" if kinds else f"_{decay}")


_ORDERS = {"b1": "gradient", "b2": "square"}


def _after(link: Leafwise, updates: _Seen) -> _Seen:
    """What a link makes of updates, as far as it matters to what comes behind."""
    if link.name == "scale_by_learning_rate":
        seen = updates.step(link.hyperparams["learning_rate"])
        return seen.times(-1.0) if link.hyperparams["flip_sign"] else seen
    kinds = {slot.kind for slot in link.kind.slots.values()}
    if "square" in kinds:
        return updates.marked("scaled")
    # a correction, a decay and a clip leave a gradient what it is
    keeps = link.changes_gradient or link.rule.corrects is not None or "weight_decay" in link.hyperparams
    return updates if keeps or link.terminal else updates.marked("changed")


def _after_optax(maker: str, found: Mapping[str, Any], known: Mapping[str, str] | None, updates: _Seen) -> _Seen:
    if maker == "scale_by_schedule":
        return updates.step(None)
    if maker == "scale":
        rate = found.get("step_size")
        if not isinstance(rate, float | int):
            return updates.step(rate)
        # what makes smaller and turns round is a learning rate
        return updates.step(rate) if rate < 0 and not math.isclose(rate, -1.0) else updates.times(float(rate))
    if known is not None and any(role.startswith(("nu", "sum")) for role in known.values()):
        return updates.marked("scaled")
    return updates.marked("changed") if known or maker in _OTHER_DIRECTION else updates


_OTHER_DIRECTION = {
    *("scale_by_sign", "scale_by_trust_ratio", "normalize_by_update_norm"),
    *("scale_by_param_block_norm", "scale_by_param_block_rms"),
}


# what Optax's transformations keep, by the function that makes them; several share the type of their state
_OPTAX: Mapping[str, Mapping[str, str]] = {
    "scale_by_adam": {"mu": "mu", "nu": "nu"},
    "scale_by_radam": {"mu": "mu", "nu": "nu"},
    "scale_by_yogi": {"mu": "mu", "nu": "nu_yogi"},
    "scale_by_belief": {"mu": "mu", "nu": "nu_belief"},
    "scale_by_amsgrad": {"mu": "mu", "nu": "nu", "nu_max": "nu_max_of_debiased"},
    "scale_by_adamax": {"mu": "mu", "nu": "nu_inf_of_stored_eps"},
    "scale_by_rms": {"nu": "nu"},
    "scale_by_stddev": {"mu": "mean", "nu": "nu"},
    "scale_by_rss": {"sum_of_squares": "sum_of_squares"},
    "scale_by_lion": {"mu": "mu"},
    "trace": {"trace": "trace"},
    "ema": {"ema": "mu"},
    "scale_by_schedule": {},
}
