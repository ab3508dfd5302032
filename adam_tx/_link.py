"""`link`, which makes links from declarations; `Link`, what they are; `as_link`, for transformations from elsewhere.

A link is an Optax transformation that reads the raw gradient beside the updates, and
knows what it is. Adam's second link shows all there is to a declaration::

    @link(slots={"nu": Slot("square", decay="decay")}, debiases=("decay",))
    def scale_by_rms(decay: Decay = 0.999, eps: NonNegative = 1e-8):
        def rule(now, updates, grad, nu):
            nu = ema(nu, abs_sq(grad), now.decay.step)
            return root_and_divide(updates, nu / now.decay.weight, now.eps), nu

        return Rule(rule, formula="u / (sqrt(v̂) + eps)", debias=("decay",))
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, overload

import jax
import jax.numpy as jnp
import optax

from adam_tx._core import hyperparams, numerics
from adam_tx._core.abstract_link import LIFTED, AbstractLink
from adam_tx._core.call import Call
from adam_tx._core.leafwise import Leafwise
from adam_tx._core.leaves import Column, Leaves, State
from adam_tx._core.rule import Declaration, Rule, Slot
from adam_tx.describe import closures, source

P = ParamSpec("P")


class Link(optax.GradientTransformationExtraArgs):
    """An Optax transformation that knows its name, its hyperparameters and its members.

    Use it wherever Optax takes a transformation. It is still the pair `(init, update)`,
    survives being taken apart and rebuilt as a pytree, and is pickled as the code that
    makes it, which is also what it prints.
    """

    __slots__ = ()

    @property
    def implementation(self) -> AbstractLink:
        """What it is, and what it does inside a chain."""
        return implementation_of(self) or Foreign(self)

    @property
    def name(self) -> str:
        """The key of its state in a chain."""
        return self.implementation.name

    @property
    def formula(self) -> str:
        """What it emits, in one line."""
        return self.implementation.formula

    @property
    def hyperparams(self) -> Mapping[str, Any]:
        """Its own hyperparameters by name, as they were given: numbers, arrays or schedules."""
        return self.implementation.hyperparams

    @property
    def links(self) -> Mapping[str, Link]:
        """Its members by name, when it is a chain or another wrapper."""
        return self.implementation.links

    def __repr__(self) -> str:
        """The code that makes it."""
        return source.render(self.implementation.call)


def implementation_of(transformation: Any) -> AbstractLink | None:
    """The declaration behind a transformation or behind its update function, if it is a link's."""
    update = getattr(transformation, "update", transformation)
    owner = getattr(update, "__self__", None)
    return owner if isinstance(owner, AbstractLink) and update.__func__ is AbstractLink.update else None


def may_change_gradient(declaration: AbstractLink) -> bool:
    """Whether it is known to change the gradient itself, or nothing is known of what it does."""
    return declaration.changes_gradient or (isinstance(declaration, Foreign) and not declaration.known)


def link_of(declaration: AbstractLink) -> Link:
    """The link that this declaration stands behind."""
    return Link(declaration.init, declaration.update)


@overload
def link(function: Callable[P, Rule], /) -> Callable[P, Link]: ...
@overload
def link(
    *, slots: Mapping[str, Slot] = ..., numbers: Mapping[str, float] = ..., debiases: Sequence[str] = ...
) -> Callable[[Callable[P, Rule]], Callable[P, Link]]: ...
def link(
    function: Callable[P, Rule] | None = None,
    /,
    *,
    slots: Mapping[str, Slot] = {},
    numbers: Mapping[str, float] = {},
    debiases: Sequence[str] = (),
) -> Callable[..., Any]:
    """Make links from a function that returns the rule of one leaf.

    The function's name is the link's. Its signature says once what the hyperparameters
    are: a parameter annotated with `Decay`, `NonNegative`, `Positive` or `Finite` may be
    a number, a 0-d array or a schedule, is checked, and is found in the rule's `now`; any
    other is handed on as it is. Dtypes, the count of updates, debiasing weights, errors
    that name the leaf, `get_config`, `summary` and `repr` follow from the declaration.

    Args:
      function: `(hyperparameters…) -> Rule`.
      slots: arrays that the link keeps for every leaf, by name.
      numbers: what the link keeps for the whole tree, by name, and what each starts from.
      debiases: the decays by whose weight rules may divide: `now.<decay>.weight`.

    Returns:
      The function that makes the links, with the same signature.

    Raises:
      TypeError: when a link is made: a rule that reads what is not declared.
      ValueError: when a link is made: a number out of range.

    A running average of the p-th power of the gradient's size:

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> from adam_tx.numerics import divide, ema, power
    >>> @adam_tx.link(slots={"nu": adam_tx.Slot("square", decay="decay")}, debiases=("decay",))
    ... def scale_by_pnorm(decay: adam_tx.Decay = 0.999, eps: adam_tx.NonNegative = 1e-8, p: adam_tx.Positive = 1.5):
    ...     def rule(now, updates, grad, nu):
    ...         nu = ema(nu, power(abs(grad), now.p), now.decay.step)
    ...         return divide(updates, nu / now.decay.weight, now.eps, root=lambda v: v ** (1 / now.p)), nu
    ...
    ...     return adam_tx.Rule(rule, debias=("decay",))
    >>> tx = adam_tx.chain(scale_by_pnorm(0.9), adam_tx.scale_by_learning_rate(0.1))
    >>> grad = jnp.array([3.0, -4.0])
    >>> [round(float(update), 5) for update in tx.update(grad, tx.init(grad))[0]]
    [-0.1, 0.1]
    """

    def decorate(function: Callable[..., Rule]) -> Callable[..., Link]:
        kind = Declaration(function, slots, numbers, debiases)

        @functools.wraps(function)
        def make(*args: Any, **kwargs: Any) -> Link:
            arguments = kind.parameters.bind(*args, **kwargs)
            rule: Any = function(**arguments)
            if not isinstance(rule, Rule):
                raise TypeError(f"{kind.name} must return an adam_tx.Rule, got {rule!r}.")
            return link_of(Leafwise(kind, rule, arguments, Call(make, args, kwargs)))

        return hyperparams.readable(make, "Link")

    return decorate if function is None else decorate(function)


def optimizer(function: Callable[P, Link]) -> Callable[P, Link]:
    """Make a function that returns a chain the maker of a link of its own name.

    Its hyperparameters are checked under the names that they have here, by their
    annotations as in `link`; `repr`, `get_config` and pickling know the link by this
    function and its arguments.

    >>> import adam_tx
    >>> @adam_tx.optimizer
    ... def mine(learning_rate: adam_tx.NonNegative, b1: adam_tx.Decay = 0.9):
    ...     return adam_tx.chain(adam_tx.scale_by_momentum(b1), adam_tx.scale_by_learning_rate(learning_rate))
    >>> mine(1e-3, b1=2.0)
    Traceback (most recent call last):
    ValueError: mine: b1 must be in [0, 1), got 2.
    """
    parameters = hyperparams.Parameters(function)

    @functools.wraps(function)
    def make(*args: Any, **kwargs: Any) -> Link:
        arguments = parameters.bind(*args, **kwargs)
        with hyperparams.named(function.__name__, arguments):
            made: Any = function(*args, **kwargs)
        if implementation_of(made) is None:
            raise TypeError(f"{function.__name__} must return a link, got {made!r}; adam_tx.as_link makes one of it.")
        return link_of(made.implementation.made_by(Call(make, args, kwargs)))

    return hyperparams.readable(make, "Link")


class Foreign(AbstractLink):
    """A transformation from elsewhere: its own `init` and `update`, and its own count.

    Its state is made from lifted parameters, so that inside a chain, where it will
    see float32, the state keeps the dtypes it starts with.
    """

    def __init__(
        self, transformation: optax.GradientTransformation, name: str | None = None, formula: str | None = None
    ) -> None:
        self.wrapped = transformation
        self._inner = optax.with_extra_args_support(transformation)
        self.name = name or closures.name(transformation.update)
        self.formula = formula or "as in its own documentation"
        self.known = formula is not None
        self.elementwise, self.keeps = False, self._inner.init is not optax.init_empty_state
        given = {"name": name, "formula": formula}
        self.call = Call(as_link, (transformation,), {key: value for key, value in given.items() if value is not None})

    def init_leaves(self, leaves: Leaves) -> State:
        """The transformation's own state."""
        column = list(leaves.params)
        for i in leaves.present:
            column[i] = numerics.cast(column[i], leaves.dtypes[i])
        lifted = any(numerics.dtype_of(leaves.params[i]) == jnp.bfloat16 for i in leaves.present)
        token = LIFTED.set(self.name if lifted else LIFTED.get())  # once lifted they stay so, however deep
        try:
            return self._inner.init(leaves.tree(column))
        finally:
            LIFTED.reset(token)

    def update_leaves(self, leaves: Leaves, updates: Column, state: State) -> tuple[Column, State]:
        """Its own update, on trees in working precision."""
        state = state if self.keeps else optax.EmptyState()
        params = None if leaves.params is None else leaves.tree(leaves.params)
        extra = leaves.extra if leaves.grad is None else leaves.extra | {"grad": leaves.tree(leaves.grad)}
        try:
            emitted, state = self._inner.update(leaves.tree(updates), state, params, **extra)
        except FloatingPointError as error:  # under jax_debug_nans
            raise FloatingPointError(f"{self.name}: {error}") from error
        return leaves.column(emitted, self.name), state

    def state_signature(self) -> Hashable:
        """Known only where there is no state."""
        try:
            state = self._state_of_one()
        except Exception:  # whatever it makes of parameters that are not its own
            return object()
        return object() if jax.tree.leaves(state) else jax.tree.structure(state)

    def merge_states(self, leaves: Leaves, owners: Sequence[int], states: Sequence[State]) -> State:
        """There is nothing in it; see `layout`."""
        del leaves, owners
        return states[0]

    def _state_of_one(self) -> Any:
        return jax.eval_shape(self._inner.init, jax.ShapeDtypeStruct((1,), jnp.float32))

    def basis_obstacles(self) -> Iterator[str]:
        """Nothing is known of its state."""
        if jax.tree.leaves(self._state_of_one()):
            yield (
                f"the state of {self.name}, which is not a link of adam_tx, cannot follow a change of basis, because "
                "what it holds is not known. Use a link for it (adam_tx.chain for optax.chain), or write one with "
                "adam_tx.link."
            )

    def map_slots(self, leaves: Leaves, state: State, move: Any) -> State:
        """There is nothing to move; see `basis_obstacles`."""
        del leaves, move
        return state

    def count_of(self, state: State) -> Any:
        """It counts itself, if at all."""
        del state

    def with_count(self, state: State, count: Any) -> State:
        """It counts itself, if at all."""
        del count
        return state

    def split_state(self, state: State) -> tuple[Mapping[str, Any], list[tuple[str, Any, Any]]]:
        """All of its state is its own."""
        return {"": state}, []


@hyperparams.readable
def as_link(
    transformation: optax.GradientTransformation, *, name: str | None = None, formula: str | None = None
) -> Link:
    """A transformation from anywhere as a link; a link as it is.

    In a chain any transformation can stand, but not in first place before links that
    read the raw gradient: what it did to the gradient they would not see. Where that is
    meant, because the transformation is a part of the algorithm, say so with this and
    a formula.

    Args:
      transformation: a pair of `init` and `update`; its `update` also receives `grad`.
      name: the key of its state in a chain; by default what made it, such as "scale_by_sign".
      formula: what it emits, in one line.

    Returns:
      A `Link` with the state of the transformation.

    Raises:
      TypeError: what is no transformation.

    >>> import adam_tx
    >>> import optax
    >>> adam_tx.as_link(optax.scale_by_sign(), formula="sign(u)").formula
    'sign(u)'
    """
    if not isinstance(transformation, optax.GradientTransformation):
        raise TypeError(
            f"a transformation is needed, such as adam_tx.adam(1e-3), got {transformation!r}. That of an "
            "optax.MultiSteps is its .gradient_transformation()."
        )
    if implementation_of(transformation) and isinstance(transformation, Link):
        return transformation
    return link_of(Foreign(transformation, name, formula))
