"""`chain`, which lets every link see the raw gradient, and `Link`, what it chains.

In `optax.chain` a transformation sees only what the one before it emitted. An
RMS that follows a momentum would accumulate m², not g², and the result would
not be Adam; hence the monoliths. Here the gradient is an argument of its own.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import optax

from adam_tx import _introspect, _trees


class Description(NamedTuple):
    """What a link can say of itself.

    Attributes:
      name: the key of its state in a chain.
      formula: what it emits, in one line.
      hyperparams: its arguments, as they were given.
      links: its members by name, when it is a chain.
      wraps: the transformation from elsewhere that it stands for, which is then
        described by what it holds on to.
    """

    name: str
    formula: str
    hyperparams: Mapping[str, Any]
    links: Mapping[str, "Link"]
    wraps: optax.GradientTransformation | None = None


class Link(optax.GradientTransformationExtraArgs):
    """An Optax transformation that knows its name and its hyperparameters.

    Use it wherever Optax takes a transformation. It is still the pair
    `(init, update)`, and survives being taken apart and rebuilt as a pytree.
    """

    __slots__ = ()

    @property
    def description(self) -> Description:
        """Name, formula, hyperparameters and members."""
        unknown = Description(_introspect.name(self.update), "its update was replaced", {}, {})
        return describe(self.update) or unknown


# Keyed by the update function, because that is what wrappers such as
# optax.chain keep of a transformation.
_DESCRIPTIONS: WeakKeyDictionary[Callable[..., Any], Description] = WeakKeyDictionary()


def describe(update: Callable[..., Any]) -> Description | None:
    """The description of the link with this update function, if it is a link's."""
    try:
        return _DESCRIPTIONS.get(update)
    except TypeError:  # not weakly referable, so not ours
        return None


_OBSERVE: ContextVar[Callable[[Link, Any], None] | None] = ContextVar("observe", default=None)


@contextlib.contextmanager
def observing(observe: Callable[[Link, Any], None]) -> Iterator[None]:
    """Call `observe(link, state)` whenever a link's `init` has run in this thread, in whatever wrapper."""
    token = _OBSERVE.set(observe)
    try:
        yield
    finally:
        _OBSERVE.reset(token)


def make_link(
    name: str,
    init: Callable[[Any], Any],
    update: Callable[..., tuple[Any, Any]],
    *,
    formula: str,
    hyperparams: Mapping[str, Any],
    links: Mapping[str, Link] | None = None,
    reads_grad: bool = False,
    wraps: optax.GradientTransformation | None = None,
) -> Link:
    """Make a link from an `update` that works in the working precision.

    Args:
      name: the key of its state in a chain.
      init: `params -> state`.
      update: `update(updates, state, params=, grad=, **extra) -> (updates, state)`;
        its trees come lifted to the working dtype, and what it emits is lowered.
      formula: what it emits, in one line.
      hyperparams: its arguments, as they were given.
      links: its members, when it is a chain.
      reads_grad: whether `grad` must be there.
      wraps: the transformation from elsewhere that it stands for.
    """

    def init_fn(params: Any) -> Any:
        state = init(params)
        if observe := _OBSERVE.get():
            observe(link, state)
        return state

    def update_fn(updates: Any, state: Any, params: Any = None, *, grad: Any = None, **extra: Any) -> tuple[Any, Any]:
        if reads_grad and grad is None and updates is not None:
            raise TypeError(
                f"{name} reads the gradient, and update was called without grad. Put the link in adam_tx.chain, "
                "which passes it on, or call update(updates, state, params, grad=g)."
            )
        lifted, lifted_grad, lifted_params = _trees.lift(updates, grad, params)
        emitted, new_state = update(lifted, state, params=lifted_params, grad=lifted_grad, **extra)
        return _trees.lower(emitted, updates, params), new_state

    link = Link(init_fn, update_fn)
    _DESCRIPTIONS[update_fn] = Description(name, formula, hyperparams, links or {}, wraps)
    return link


def chain(
    *members: optax.GradientTransformation | tuple[str, optax.GradientTransformation],
) -> Link:
    """Chain transformations, each of which also receives the raw gradient.

    Every member is called as `update(updates, state, params, *, grad, **extra)`::

        u_0 = grad
        u_k = member_k(u_{k-1}, params, grad=grad)

    with `grad` the gradient as it entered this chain (the innermost chain wins; a
    `grad` from outside is replaced). Inside, gradient, updates and parameters are
    float32 or wider; what leaves has the dtype Optax would give it.

    Args:
      *members: links of adam_tx, Optax transformations, or pairs
        `(name, transformation)`. The first must be a link of adam_tx: what changes
        the gradient itself, such as clipping or L2, belongs in front, as in
        `optax.chain(optax.clip_by_global_norm(1.0), adam_tx.chain(...))`.

    Returns:
      A `Link` whose state is a dict keyed by the members' names; a second member
      of the same name is keyed `<name>_2`.

    Raises:
      ValueError: no member, or a first member that is not a link of adam_tx.
      TypeError: a member that is not a transformation.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> import optax
    >>> tx = adam_tx.chain(
    ...     adam_tx.scale_by_momentum(0.9),
    ...     adam_tx.scale_by_rms(0.999, eps=1e-7),
    ...     adam_tx.bias_correction(0.9, 0.999),
    ...     optax.scale_by_learning_rate(1e-3),
    ... )
    >>> params = jnp.array([1.0, 2.0])
    >>> state = tx.init(params)
    >>> list(state)
    ['scale_by_momentum', 'scale_by_rms', 'bias_correction', 'scale']
    >>> updates, state = tx.update(jnp.array([0.5, -0.1]), state, params)
    >>> updates
    Array([-0.00099999,  0.00099997], dtype=float32)
    """
    links = by_name(members)
    if not links:
        raise ValueError("chain: no member; give at least one link of adam_tx.")
    _, first = _name_and_transformation(0, members[0])
    if not isinstance(first, Link):
        raise ValueError(
            f"chain: the first member must be a link of adam_tx, got {_introspect.name(first.update)!r}. Put what "
            "changes the gradient in front of the chain: optax.chain(<that member>, adam_tx.chain(...))."
        )

    def init(params: Any) -> dict[str, Any]:
        return {name: link.init(params) for name, link in links.items()}

    def update(updates: Any, state: Mapping[str, Any], **extra: Any) -> tuple[Any, dict[str, Any]]:
        check_state(links, state)
        new_state = {}
        extra["grad"] = updates
        for name, link in links.items():
            updates, new_state[name] = link.update(updates, state[name], **extra)
        return updates, new_state

    return make_link("chain", init, update, formula="its links in turn", hyperparams={}, links=links)


def by_name(members: Sequence[Any]) -> dict[str, Link]:
    """The members as links, keyed by their names; a second one of a name is numbered."""
    links: dict[str, Link] = {}
    for position, member in enumerate(members):
        name, transformation = _name_and_transformation(position, member)
        link = as_link(transformation)
        links[_unique(name or link.description.name, links)] = link
    return links


def _name_and_transformation(position: int, member: Any) -> tuple[str | None, optax.GradientTransformation]:
    pair = isinstance(member, tuple) and len(member) == 2 and isinstance(member[0], str)
    name, transformation = member if pair else (None, member)
    if not isinstance(transformation, optax.GradientTransformation):
        raise TypeError(
            f"chain: member {position} must be a transformation or a pair (name, transformation), got {member!r}."
        )
    return name, transformation


def check_state(links: Mapping[str, Link], state: Any) -> None:
    """Raise ValueError unless the state has exactly the names of the links."""
    if not isinstance(state, Mapping) or set(state) != set(links):
        raise ValueError(_of_another_chain(links, state))


def _of_another_chain(links: Mapping[str, Link], state: Any) -> str:
    if not isinstance(state, Mapping):
        return (
            f"chain: its state is a dict keyed {list(links)}, but a {type(state).__name__} came. Give update the state "
            "that this chain's init returned; the order is update(updates, state, params)."
        )
    missing, unknown = [key for key in links if key not in state], [key for key in state if key not in links]
    return (
        f"chain: the state is that of another chain: it lacks {missing} and has {unknown} instead. Call init of this "
        "chain; or, to go on from that state, rename or add the keys: tx.init(params) | {...}."
    )


def _unique(name: str, taken: Mapping[str, Any]) -> str:
    if name not in taken:
        return name
    return next(key for n in range(2, len(taken) + 3) if (key := f"{name}_{n}") not in taken)


def named(
    name: str,
    transformation: optax.GradientTransformation,
    *,
    formula: str,
    hyperparams: Mapping[str, Any],
    wraps: optax.GradientTransformation | None = None,
) -> Link:
    """A transformation from elsewhere as a link: its own `init` and `update`, plus a description.

    Its state is made from lifted parameters, so that inside a chain, where it
    will see float32, the state keeps the dtypes it starts with.
    """
    inner = optax.with_extra_args_support(transformation)

    def init(params: Any) -> Any:
        return inner.init(_trees.lift(params, None, None)[0])

    def update(updates: Any, state: Any, **extra: Any) -> tuple[Any, Any]:
        return inner.update(updates, state, **extra)

    return make_link(name, init, update, formula=formula, hyperparams=hyperparams, wraps=wraps)


def as_link(transformation: optax.GradientTransformation) -> Link:
    """A transformation from anywhere as a link, described as far as it can be seen into; a link as it is."""
    if isinstance(transformation, Link):
        return transformation
    if not isinstance(transformation, optax.GradientTransformation):
        raise TypeError(f"a transformation is needed, such as adam_tx.adam(1e-3), got {transformation!r}.")
    name, held = _introspect.name(transformation.update), _introspect.held(transformation.update)
    shown = {key: value for key, value in held.items() if value is None or isinstance(value, bool | int | float | str)}
    return named(name, transformation, formula="as in its own documentation", hyperparams=shown, wraps=transformation)
