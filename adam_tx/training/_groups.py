"""`groups`: other settings, or another optimizer, for some of the parameters, chosen by their paths."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import optax

from adam_tx._chain import unique
from adam_tx._core import hyperparams
from adam_tx._core.abstract_link import AbstractLink, Inside
from adam_tx._core.boxes import leaves_with_paths
from adam_tx._core.call import Call, Reconstructible
from adam_tx._core.facts import combined
from adam_tx._core.leaves import Column, Leaves, is_absent
from adam_tx._core.paths import PathPattern, Pattern, shape_of, slashed
from adam_tx._core.provenance import Provenance, Run
from adam_tx._core.states import State
from adam_tx._link import Link, implementation_in, link_of
from adam_tx.describe import summary, visit

FREEZE = "freeze"
Setting = Mapping[str, object] | optax.GradientTransformation | tuple[str, optax.GradientTransformation] | str
"""What becomes of a group: other arguments, an optimizer, one with a name, or "freeze"."""
PatternT = TypeVar("PatternT", bound=PathPattern)  # the keys of a dict are of one type: all str, all functions, or both


@hyperparams.readable
def groups(
    patterns: Mapping[PatternT, Setting] | Sequence[tuple[PathPattern, Setting]],
    default: Setting | None = None,
    *,
    optimizer: Callable[..., optax.GradientTransformation] | None = None,
    **settings: object,
) -> Link:
    """Treat parameters by their paths: with other settings, another optimizer, or not at all.

    A path is its parts joined by slashes, `encoder/layer_0/kernel`. In a pattern `*` stands
    for any text, also with slashes in it; `|` separates alternatives; `*/` at the beginning
    may stand for nothing; what an alternative after `!` matches is taken away again. A
    function `(path, shape) -> bool` is a pattern too.

    Every leaf must be claimed by one pattern, those that none claims are for `default`.
    What is reduced over the tree inside a group, such as a norm, is reduced over the group.

    Args:
      patterns: a pattern and a setting for each group: a dict of other arguments for
        `optimizer`, a transformation, a pair `(name, transformation)`, or "freeze" for
        parameters that get an update of zero and have no state.
      default: the setting of what no pattern claims, `{}` for `optimizer` as it is; None
        if there must be nothing such.
      optimizer: what makes the optimizer of groups that are a dict, such as `adam_tx.adamw`.
      **settings: its arguments.

    Returns:
      A `Link` whose state is a dict: the count, and under the name of an optimizer what it
      keeps, with an array for every leaf of every group that it serves. So a leaf can
      move from one group to another without a change of the state, as long as both keep
      the same. Groups whose averages have other decays keep their own, under the name
      with a number, or that which a pair gives them.

    Raises:
      ValueError: an unknown setting; at `init` and `update`, a leaf that no pattern or two
        claim, and a pattern that claims none. An alternative in it that matches none is
        warned of.
      TypeError: a setting that is none of these; an argument that `optimizer` does not have.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.groups(
    ...     {"*/bias": {"weight_decay": 0.0}, "embed/*": "freeze"},
    ...     default={},
    ...     optimizer=adam_tx.adamw,
    ...     learning_rate=0.5,
    ...     weight_decay=0.1,
    ... )
    >>> params = {"embed": {"table": jnp.ones(1)}, "dense": {"kernel": jnp.ones(1), "bias": jnp.ones(1)}}
    >>> zero = {"embed": {"table": jnp.zeros(1)}, "dense": {"kernel": jnp.zeros(1), "bias": jnp.zeros(1)}}
    >>> tx.update(zero, tx.init(params), params)[0]["dense"]
    {'bias': Array([-0.], dtype=float32), 'kernel': Array([-0.05], dtype=float32)}
    """
    pairs = _pairs(patterns)
    call = Call(groups, (pairs, default), {"optimizer": optimizer, **settings})
    return link_of(Groups(pairs, default, optimizer, settings, call))


class matching(Reconstructible):  # noqa: N801
    """A mask of the leaves whose paths match a pattern, for `mask=` and `optax.masked`.

    Args:
      pattern: as in `groups`; "!*/bias|!*/scale" marks all but biases and scales.

    Returns:
      A function from params to a tree of booleans.

    Raises:
      TypeError: a pattern that is neither a str nor a function.
      ValueError: when it is called: a pattern that matches no leaf. An alternative in it that
        matches none is warned of.

    >>> import adam_tx
    >>> adam_tx.matching("!*/bias")({"dense": {"kernel": 1.0, "bias": 1.0}})
    {'dense': {'bias': False, 'kernel': True}}
    """

    def __init__(self, pattern: PathPattern) -> None:
        if not isinstance(pattern, str) and not callable(pattern):
            raise TypeError(f"matching: pattern must be a str or a function (path, shape) -> bool, got {pattern!r}.")
        self._pattern = Pattern(pattern)

    def __call__(self, params: optax.Params) -> optax.Params:
        """The mask for these parameters."""
        treedef = jax.tree.structure(params, is_leaf=is_absent)
        named = [(slashed(path), leaf) for path, leaf in leaves_with_paths(params, is_absent)]
        self._pattern.check("matching", named)
        return jax.tree.unflatten(treedef, [self._pattern.matches(path, shape_of(leaf)) for path, leaf in named])


class Group(NamedTuple):
    """Some of the parameters.

    Attributes:
      label: the pattern as text, or "default".
      pattern: what claims leaves; None for those that are left.
      link: what updates them; None if they are frozen.
      key: under which the state has what it keeps.
    """

    label: str
    pattern: Pattern | None
    link: AbstractLink | None
    key: str


class Groups(AbstractLink):
    """Several links, each for leaves of its own.

    Attributes:
      groups: all of them, frozen ones too.
    """

    name = "groups"
    formula = "each leaf by the link of its group"

    def __init__(
        self,
        pairs: Sequence[tuple[PathPattern, Setting]],
        default: Setting | None,
        optimizer: Callable[..., optax.GradientTransformation] | None,
        settings: Mapping[str, object],
        call: Call,
    ) -> None:
        self.call = call
        if optimizer is None and settings:
            raise TypeError(f"groups: {sorted(settings)} are arguments of no optimizer; give optimizer= too.")
        given: list[tuple[Pattern | None, Setting]] = [] if default is None else [(None, default)]
        given += [(Pattern(of), setting) for of, setting in pairs]
        if not given:
            raise ValueError("groups: no pattern and no default; give at least one of them.")
        self.groups: list[Group] = []
        members: dict[str, AbstractLink] = {}
        keys: dict[Hashable, str] = {}
        for pattern, setting in given:
            label = pattern.text if pattern else "default"
            name, link = _made(label, setting, optimizer, settings)
            key = ""
            if link is not None:  # links of one signature have one state
                key = keys.setdefault((name, link.state_signature()), unique(name, members))
                members.setdefault(key, link)
            self.groups.append(Group(label, pattern, link, key))
        self.members = members
        facts = [link.facts for link in self.running().values()]
        self.facts = dataclasses.replace(combined(facts), keeps=True)

    def leaves_of(self, leaves: Leaves) -> list[tuple[Group, frozenset[int]]]:
        """The groups with the numbers of their leaves, absent ones too; each leaf must have one, each group a leaf."""
        arrays = list(zip(leaves.paths, leaves.nodes, strict=True))
        patterns = [(k, group.pattern) for k, group in enumerate(self.groups) if group.pattern is not None]
        rest = [k for k, group in enumerate(self.groups) if group.pattern is None]
        for _, pattern in patterns:
            pattern.check("groups", arrays, of_updates=leaves.given("updates") is not None)
        owned: list[set[int]] = [set() for _ in self.groups]
        for i, (path, leaf) in enumerate(arrays):
            claims = [k for k, pattern in patterns if pattern.matches(path, shape_of(leaf))]
            if (len(claims) > 1 or not (claims or rest)) and i in leaves.present:
                self._refuse_leaf(path, [self.groups[k].label for k in claims])
            owned[(claims or rest or [0])[0]].add(i)
        return list(zip(self.groups, map(frozenset, owned), strict=True))

    def _refuse_leaf(self, path: str, claims: Sequence[str]) -> None:
        if claims:
            raise ValueError(
                f"groups: leaf {path} is claimed by the patterns {claims}; it can have one setting only. Take it out "
                f"of all but one, as in '{claims[0]}|!{path}'."
            )
        raise ValueError(
            f"groups: leaf {path} is claimed by none of the patterns {[group.label for group in self.groups]}. Add one "
            "for it, or say what becomes of all others: default={} for the optimizer as it is."
        )

    def _own(self, leaves: Leaves) -> list[tuple[Group, AbstractLink, Leaves]]:
        """Every group that has a link, with its leaves alone."""
        return [
            (group, group.link, leaves.only(own)) for group, own in self.leaves_of(leaves) if group.link is not None
        ]

    def _merged(self, leaves: Leaves, stepped: Sequence[tuple[str, Leaves, State]]) -> dict[str, State]:
        """The states of all links, each given with its key and leaves, those of one signature as one."""
        merged: dict[str, State] = {}
        for key, member in self.members.items():
            if member.facts.keeps:
                sharing = [(own, state) for of, own, state in stepped if of == key]
                owners = {i: n for n, (own, _) in enumerate(sharing) for i in own.present}
                whose = [owners.get(i, 0) for i in range(len(leaves))]
                merged[key] = member.merge_states(leaves, whose, [state for _, state in sharing])
        return merged

    def init_leaves(self, leaves: Leaves) -> State:
        """The states of all links."""
        begun = [(of.key, own, link.init_leaves(own.within(of.label))) for of, link, own in self._own(leaves)]
        return self._merged(leaves, begun)

    def update_leaves(self, leaves: Leaves, updates: Column, state: State) -> tuple[Column, State]:
        """Every link's step of its own leaves."""
        kept = self._checked(state)
        new: list[tuple[str, Leaves, State]] = []
        emitted: dict[int, jax.Array] = {}
        for group, link, own in self._own(leaves):
            masked = [x if i in own.present else own.updates[i] for i, x in enumerate(updates)]
            column, after = own.run_member(group.label, link, masked, kept.get(group.key))
            new.append((group.key, own, after))
            rounded = self.facts.terminal and not link.facts.terminal
            for i in own.present:
                emitted[i] = leaves.lowered(i, column[i]) if rounded else column[i]
        frozen = set(leaves.present) - emitted.keys()
        # minus zero is the one number that changes no weight
        column = [-jnp.zeros_like(u) if i in frozen else emitted.get(i, u) for i, u in enumerate(updates)]
        return column, self._merged(leaves, new)

    def full_precision_params(self, leaves: Leaves, state: State) -> Leaves:
        """The parameters as the links know them."""
        if leaves.params is None or not self.facts.terminal:
            return leaves
        kept = self._checked(state)
        params = list(leaves.params)
        for group, link, own in self._own(leaves):
            if link.facts.terminal:
                known = link.full_precision_params(own, kept.get(group.key)).params or params
                for i in own.present:
                    params[i] = known[i]
        return leaves.replace(params=params)

    def inside(self, state: State, leaves: Leaves | None) -> Mapping[str, Inside]:
        """Each group with its leaves; where these do not matter, each state once."""
        if leaves is None:
            return super().inside(state, None)
        kept = {} if state is None else self.split_state(state).members
        return {
            group.label: Inside(group.link, kept.get(group.key), own)
            for group, own in self.leaves_of(leaves)
            if group.link is not None
        }

    def running(self) -> Mapping[str, AbstractLink]:
        """The link of each group."""
        return {group.label: group.link for group in self.groups if group.link is not None}

    def trace(self, run: Run, updates: Provenance, grad: Provenance) -> Provenance:
        """What each makes of the updates of its own leaves."""
        emitted = [run(label, updates, grad) for label in self.running()]
        return Provenance.merged(emitted) if emitted else updates

    def state_signature(self) -> Hashable:
        """Those of other groups are of other leaves."""
        return object()

    def _checked(self, state: State, *counted: str) -> Mapping[str, State]:
        keys = [*counted, *(key for key, link in self.members.items() if link.facts.keeps)]
        if not isinstance(state, Mapping) or not state.keys() >= set(keys) or state.keys() - {"count", *keys}:
            got = f"one keyed {list(state)}" if isinstance(state, Mapping) else f"a {type(state).__name__}"
            raise ValueError(
                f"groups: its state is a dict keyed {keys}, but {got} came. Give update the state that init of these "
                "groups returned; the order is update(updates, state, params). To go on from another state, call "
                "adam_tx.migrate(state, <its tx>, tx, params)."
            )
        return cast(Mapping[str, State], state)

    def count_of(self, state: State) -> jax.Array:
        """The count in the dict."""
        return cast(jax.Array, self._checked(state, "count")["count"])

    def basis_obstacles(self) -> Iterator[str]:
        """Its links each have a basis of their own, if any."""
        yield "groups cannot stand in another basis; put the change of basis into the groups that need it."


def _pairs(patterns: Any) -> list[tuple[PathPattern, Setting]]:
    pairs = list(patterns.items()) if isinstance(patterns, Mapping) else list(patterns)
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not (isinstance(pair[0], str) or callable(pair[0])):
            raise TypeError(
                "groups: patterns must be a dict {pattern: setting} or a list of such pairs, each pattern a str or a "
                f"function (path, shape) -> bool, got {pair!r}."
            )
    return [tuple(pair) for pair in pairs]


def _made(
    label: str,
    setting: Any,
    optimizer: Callable[..., optax.GradientTransformation] | None,
    settings: Mapping[str, object],
) -> tuple[str, AbstractLink | None]:
    """The name and link that a setting stands for; no link if it freezes."""
    if isinstance(setting, str):
        if setting != FREEZE:
            raise ValueError(f"groups: the setting of {label!r} must be 'freeze' where it is a str, got {setting!r}.")
        return "", None
    name = None
    if isinstance(setting, tuple) and len(setting) == 2 and isinstance(setting[0], str):
        name, setting = setting
    if isinstance(setting, Mapping):
        if optimizer is None:
            raise TypeError(
                f"groups: the setting of {label!r} is a dict of arguments, but there is no optimizer= they are for."
            )
        try:
            setting = optimizer(**{**settings, **setting})
        except (TypeError, ValueError) as error:
            error.add_note(f"It was made for the group {label!r}.")
            raise
    if not isinstance(setting, optax.GradientTransformation):
        raise TypeError(
            f"groups: the setting of {label!r} must be a dict of arguments, a transformation or 'freeze', got "
            f"{setting!r}."
        )
    link = implementation_in(setting)
    maker = link.call.maker.__name__
    name = name or (link.name if maker == "as_link" else maker)
    if name == "count":
        raise ValueError(f"groups: name that of {label!r} otherwise than 'count', which is the number of updates.")
    return name, link


@summary.rows_of.register(Groups)
def _(tx: Groups, part: visit.Part, params: optax.Params) -> Iterator[summary.Row]:
    """A row for each group with its leaves, and one for what the links of each signature keep."""
    depth = len(part.place) + 1
    own, kept = tx.split_state(part.state)
    yield summary.Row(summary.label_of("groups", part.name), tx.formula, {}, own, depth - 1)
    leaves = Leaves.of_params(params)
    for group, numbers in tx.leaves_of(leaves):
        made = FREEZE if group.link is None else summary.made_by(group.link)
        hyperparams = {} if group.link is None else summary.hyperparams_of(group.link)
        paths = "; ".join(summary.alike([leaves.paths[i] for i in sorted(numbers)]))
        yield summary.Row(f"{group.label}: {made}", paths, hyperparams, {}, depth)
    for name, state in kept.items():
        own = dict(summary.named_parts(tx.members[name], state))
        yield summary.Row(f"state of {name}", "", {}, own, depth)
