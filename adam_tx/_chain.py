"""`chain`, which lets every link see the raw gradient, and the other ways to combine links.

In `optax.chain` a transformation sees only what the one before it emitted. An
RMS that follows a momentum would accumulate m², not g², and the result would
not be Adam; hence the monoliths. Here the gradient is an argument of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_tx._core import hyperparams, numerics, states
from adam_tx._core.abstract_link import AbstractLink, Keyed
from adam_tx._core.call import Call
from adam_tx._core.hyperparams import ScalarOrSchedule
from adam_tx._core.leaves import Column, Leaves, State
from adam_tx._link import Foreign, Link, as_link, link_of, may_change_gradient

Member = optax.GradientTransformation | tuple[str, optax.GradientTransformation]
_FINITE = hyperparams.Range(-float("inf"), float("inf"), low_allowed=False)


@hyperparams.readable
def chain(*members: Member) -> Link:
    """Chain transformations, each of which also receives the raw gradient.

    Every member is called as `update(updates, state, params, *, grad, **extra)`::

        u_0 = grad
        u_k = member_k(u_{k-1}, params, grad=grad)

    with `grad` the gradient as it entered this chain (the innermost chain wins; a
    `grad` from outside is replaced). Inside, gradient, updates and parameters are
    float32 or wider; what leaves has the dtype Optax would give it.

    Args:
      *members: links of adam_tx, Optax transformations, or pairs
        `(name, transformation)`. What changes the gradient itself, such as clipping or
        L2, belongs in front, as in
        `optax.chain(optax.clip_by_global_norm(1.0), adam_tx.chain(...))`.

    Returns:
      A `Link` whose state is a dict: under "count" the number of updates so far, and
      under each member's name what it keeps; a second member of the same name is keyed
      `<name>_2`, and one that keeps nothing has no entry. A chain inside another link
      has no count of its own.

    Raises:
      ValueError: no member; a first member that changes the gradient before one that
        reads it; an average that is corrected twice, or by another decay than its own.
      TypeError: a member that is not a transformation.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.chain(
    ...     adam_tx.scale_by_momentum(0.9),
    ...     adam_tx.scale_by_rms(0.999, eps=1e-7),
    ...     adam_tx.bias_correction(),
    ...     adam_tx.scale_by_learning_rate(1e-3),
    ... )
    >>> params = jnp.array([1.0, 2.0])
    >>> state = tx.init(params)
    >>> list(state)
    ['count', 'scale_by_momentum', 'scale_by_rms', 'bias_correction']
    >>> updates, state = tx.update(jnp.array([0.5, -0.1]), state, params)
    >>> updates
    Array([-0.00099999,  0.00099997], dtype=float32)
    """
    return link_of(Chain(members))


@hyperparams.readable
def parallel(*members: Member, weights: Sequence[ScalarOrSchedule] | None = None) -> Link:
    """Give the same updates to several links and add up what they emit.

    Every member also receives the raw gradient, as in `chain`::

        u <- Σ weight_k · member_k(u)

    Args:
      *members: as for `chain`; none has to come first.
      weights: one for each member, of either sign: number, 0-d array or schedule; all
        one by default.

    Returns:
      A `Link` with state `(count, links)`, the members' states by name.

    Raises:
      ValueError: no member, or as many weights as there are not members.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> import optax
    >>> tx = adam_tx.parallel(optax.scale(1.0), ("other", optax.scale(10.0)), weights=(1.0, -0.5))
    >>> grad = jnp.array([2.0])
    >>> tx.update(grad, tx.init(grad))[0]
    Array([-8.], dtype=float32)
    """
    return link_of(Parallel(members, weights))


@hyperparams.readable
def with_gradient(
    member: optax.GradientTransformation, gradient: Callable[[jax.Array, jax.Array], jax.Array] | Link
) -> Link:
    """Let one link see another gradient than the rest of the chain does.

    With g the raw gradient and u the incoming updates::

        u <- member(u, grad=gradient(g, u))        gradient a function of a leaf of either
        u <- member(u, grad=gradient(g))           gradient a link, which may have a state

    CAME, for instance, averages how far the updates are from their momentum, and Adan
    the square of a gradient to which its change was added.

    Args:
      member: the link that sees it.
      gradient: a function `(grad, updates) -> grad` of one leaf, elementwise, or a link
        that is given the raw gradient as its updates.

    Returns:
      A `Link` with state `(count, member, gradient)`.

    Raises:
      TypeError: a member that is no transformation, or a gradient that is neither function nor link.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.with_gradient(adam_tx.scale_by_rms(0.0), lambda grad, updates: grad - updates)
    >>> tx.update(jnp.array([6.0]), tx.init(jnp.zeros(1)), grad=jnp.array([4.0]))[0]
    Array([3.], dtype=float32)
    """
    return link_of(WithGradient(member, gradient))


class Chain(Keyed):
    """Links in turn."""

    formula = "its links in turn"

    def __init__(self, members: Sequence[Member]) -> None:
        self.name, self.call = "chain", Call(chain, tuple(members), {})
        links = by_name("chain", members)
        if not links:
            raise ValueError("chain: no member; give at least one link of adam_tx.")
        self.links, averages = {}, ()
        for name, link in links.items():
            declaration, averages = link.implementation.resolve(averages)
            self.links[name] = link if declaration is link.implementation else link_of(declaration)
        self.averages = averages
        self._members = {name: link.implementation for name, link in self.links.items()}
        _check_first(self._members)
        _check_last("chain", self._members, list(self._members)[-1:])
        self._keys = {name for name, member in self._members.items() if member.keeps}
        self.keeps = bool(self._keys)
        self.changes_gradient = all(member.changes_gradient for member in self._members.values())
        self.terminal = list(self._members.values())[-1].terminal
        self.elementwise = all(member.elementwise for member in self._members.values())

    def init_leaves(self, leaves: Leaves) -> State:
        """The members' states by name."""
        return _begin(self._members, leaves)

    def update_leaves(self, leaves: Leaves, updates: Column, state: State) -> tuple[Column, State]:
        """Every member in turn, with the updates that entered here as the gradient."""
        state = {} if state is None and not self.keeps else state
        self._check_state(state)
        return self._run(leaves.with_grad(updates), updates, state)

    def _check_state(self, state: State) -> None:
        if not isinstance(state, Mapping):
            raise ValueError(self._of_another(state))
        # an entry without arrays is that of a member that keeps nothing, as earlier versions had
        if {key for key, part in state.items() if key in self._keys or jax.tree.leaves(part)} - {"count"} != self._keys:
            raise ValueError(self._of_another(state))

    def _run(self, leaves: Leaves, updates: Column, state: Mapping[str, Any]) -> tuple[Column, dict[str, Any]]:
        new_state, own = {}, leaves
        leaves = self.full_precision_params(leaves, state)
        for name, member in self._members.items():
            updates, kept = (own if member.terminal else leaves).run_member(name, member, updates, state.get(name))
            if member.keeps:
                new_state[name] = kept
        return updates, new_state

    def full_precision_params(self, leaves: Leaves, state: State) -> Leaves:
        """The parameters as the last link knows them."""
        name, last = list(self._members.items())[-1]
        return last.full_precision_params(leaves, state.get(name)) if last.terminal else leaves

    def state_signature(self) -> Hashable:
        """That of its members."""
        return self._signature_of_members()

    def count_of(self, state: State) -> Any:
        """The count in the dict."""
        if not isinstance(state, Mapping) or "count" not in state:
            raise ValueError(self._of_another(state))
        return state["count"]

    def _of_another(self, state: State) -> str:
        keys = ["count", *(name for name in self._members if name in self._keys)]
        if not isinstance(state, Mapping):
            return (
                f"{self.name}: its state is a dict keyed {keys}, but a {type(state).__name__} came. Give update the "
                "state that this chain's init returned; the order is update(updates, state, params)."
            )
        missing, unknown = [key for key in keys if key not in state], [key for key in state if key not in keys]
        return (
            f"{self.name}: the state is that of another chain: it lacks {missing} and has {unknown} instead. Call "
            "init of this chain; to go on from that state, call adam_tx.migrate(state, <its tx>, tx, params)."
        )


class Parallel(AbstractLink):
    """Links side by side."""

    formula = "Σ weight · link(u)"

    def __init__(self, members: Sequence[Member], weights: Sequence[ScalarOrSchedule] | None) -> None:
        self.name, self.call = (
            "parallel",
            Call(parallel, tuple(members), {} if weights is None else {"weights": weights}),
        )
        self.links = by_name("parallel", members)
        given = (1.0,) * len(self.links) if weights is None else tuple(weights)
        if not self.links or len(given) != len(self.links):
            raise ValueError(f"parallel: needs members and a weight for each, got {len(self.links)} and {len(given)}.")
        self.hyperparams = {"weights": given}
        self._weights = [hyperparams.reader(f"parallel: weights[{k}]", w, _FINITE) for k, w in enumerate(given)]
        self._members = {name: link.implementation for name, link in self.links.items()}
        _check_last("parallel", self._members, [])
        members_averages = [average for member in self._members.values() for average in member.averages]
        self.averages = tuple(a._replace(alone=a.alone and len(self.links) == 1) for a in members_averages)
        self.reads_grad = any(member.reads_grad for member in self._members.values())
        self.elementwise = all(member.elementwise for member in self._members.values())

    def init_leaves(self, leaves: Leaves) -> State:
        """The members' states by name."""
        return _PARALLEL(_begin(self._members, leaves))

    def update_leaves(self, leaves: Leaves, updates: Column, state: State) -> tuple[Column, State]:
        """The weighted sum of what the members emit."""
        weights, emitted, new = [weight(leaves.count) for weight in self._weights], list(updates), {}
        for k, (name, member) in enumerate(self._members.items()):
            column, kept = leaves.run_member(name, member, updates, state.links.get(name))
            if member.keeps:
                new[name] = kept
            for i in leaves.present:
                weighted = numerics.times(column[i], weights[k])
                emitted[i] = emitted[i] + weighted if k else weighted
        return emitted, _PARALLEL(new)

    def replace_members(self, state: State, inside: Mapping[str, Any]) -> State:
        """The members' states are in one field."""
        return state._replace(links={**state.links, **inside})

    def state_signature(self) -> Hashable:
        """That of its members."""
        return self._signature_of_members()

    def split_state(self, state: State) -> tuple[Mapping[str, Any], list[tuple[str, Any, Any]]]:
        """The count, and the members."""
        return states.counts(state), [(name, link, state.links.get(name)) for name, link in self.links.items()]


class WithGradient(AbstractLink):
    """A link that sees another gradient."""

    reads_grad = True

    def __init__(self, member: optax.GradientTransformation, gradient: Any) -> None:
        self.name, self.call = "with_gradient", Call(with_gradient, (member, gradient), {})
        if not isinstance(gradient, optax.GradientTransformation) and not callable(gradient):
            raise TypeError(f"with_gradient: gradient must be a function (grad, updates) or a link, got {gradient!r}.")
        self.links, made = {"member": as_link(member)}, gradient
        self._of_leaf = not isinstance(gradient, optax.GradientTransformation)
        if isinstance(gradient, optax.GradientTransformation):
            self.links["gradient"] = as_link(gradient)
            made = self.links["gradient"].implementation
        self._gradient: Any = made
        self._member = self.links["member"].implementation
        self.formula = "member(u), which sees another gradient"
        self.averages, self.elementwise = self._member.averages, self._member.elementwise
        self.terminal = self._member.terminal

    def full_precision_params(self, leaves: Leaves, state: State) -> Leaves:
        """The parameters as the link knows them."""
        return self._member.full_precision_params(leaves, state.member)

    def init_leaves(self, leaves: Leaves) -> State:
        """The state of the link, and of the one that makes its gradient."""
        return _WITH_GRADIENT(
            self._member.init_leaves(leaves), None if self._of_leaf else self._gradient.init_leaves(leaves)
        )

    def update_leaves(self, leaves: Leaves, updates: Column, state: State) -> tuple[Column, State]:
        """Make the gradient, and the link's update with it."""
        if self._of_leaf:
            grad, made = list(leaves.grad), None
            for i in leaves.present:
                grad[i] = self._gradient(leaves.grad[i], updates[i])
                if jnp.shape(grad[i]) != updates[i].shape:
                    raise ValueError(
                        f"with_gradient: the gradient that the function made for leaf {leaves.path(i)} has shape "
                        f"{jnp.shape(grad[i])}, but must have the leaf's, {updates[i].shape}."
                    )
        else:
            grad, made = leaves.run_member("gradient", self._gradient, leaves.grad, state.gradient)
        emitted, inner = leaves.with_grad(grad).run_member("member", self._member, updates, state.member)
        return emitted, _WITH_GRADIENT(inner, made)

    def state_signature(self) -> Hashable:
        """That of both."""
        return self._signature_of_members()

    def split_state(self, state: State) -> tuple[Mapping[str, Any], list[tuple[str, Any, Any]]]:
        """The count, and the members."""
        return states.counts(state), [(name, link, getattr(state, name)) for name, link in self.links.items()]


_PARALLEL = states.wrapper_type("parallel", "links")
_WITH_GRADIENT = states.wrapper_type("with_gradient", "member", "gradient")


def _begin(members: Mapping[str, AbstractLink], leaves: Leaves) -> dict[str, Any]:
    """The states of members that keep one, by name."""
    return {name: member.init_leaves(leaves) for name, member in members.items() if member.keeps}


def by_name(what: str, members: Sequence[Any]) -> dict[str, Link]:
    """The members as links, keyed by their names; a second one of a name is numbered."""
    links: dict[str, Link] = {}
    for position, member in enumerate(members):
        pair = isinstance(member, tuple) and len(member) == 2 and isinstance(member[0], str)
        name, transformation = member if pair else (None, member)
        if not isinstance(transformation, optax.GradientTransformation):
            raise TypeError(
                f"{what}: member {position} must be a transformation or a pair (name, transformation), got {member!r}."
            )
        if name == "count":
            raise ValueError(f"{what}: name member {position} otherwise than 'count', which is the number of updates.")
        link = as_link(transformation)
        links[unique(name or link.name, links)] = link
    return links


def unique(name: str, taken: Mapping[str, Any]) -> str:
    """The name, with a number behind it if it is taken."""
    if name not in taken:
        return name
    return next(key for n in range(2, len(taken) + 3) if (key := f"{name}_{n}") not in taken)


def _check_first(members: Mapping[str, AbstractLink]) -> None:
    """Refuse a first member that changes the gradient when a link behind it reads the raw one."""
    (name, first), *rest = members.items()
    readers = [name for name, member in rest if member.reads_grad]
    stranger = isinstance(first, Foreign) and not first.known
    if readers and may_change_gradient(first):
        raise ValueError(
            f"chain: {name!r} stands first, but {readers[0]!r} reads the gradient as it entered the chain, so it would "
            f"not see what {name!r} does to it. Put that in front of the chain: optax.chain(<{name}>, "
            "adam_tx.chain(...))."
            + (" If it is a part of the algorithm, say so: as_link(<it>, formula=...)." * stranger)
        )


def _check_last(what: str, members: Mapping[str, AbstractLink], allowed: Sequence[str]) -> None:
    """Refuse a link whose updates have to be added as they are, where another would change them."""
    for name, member in members.items():
        if member.terminal and name not in allowed:
            raise ValueError(
                f"{what}: {name!r} emits the difference to the new parameters, to the last bit, so nothing may change "
                "it. Make it the last link of the outermost chain, behind the learning rate."
            )
