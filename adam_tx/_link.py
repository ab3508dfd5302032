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

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, overload

import optax

from adam_tx._core import hyperparams
from adam_tx._core.abstract_link import AbstractLink, implementation_of
from adam_tx._core.call import Call, is_optax, maker_name
from adam_tx._core.foreign import Foreign
from adam_tx._core.foreign_chain import ForeignChain
from adam_tx._core.leafwise import Leafwise
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
        """What runs behind it."""
        return implementation_of(self) or Foreign(self, None, None, Call(as_link, (self,), {}))

    @property
    def name(self) -> str:
        """The key of its state in a chain."""
        return self.implementation.name

    @property
    def formula(self) -> str:
        """What it emits, in one line."""
        return self.implementation.formula

    @property
    def hyperparams(self) -> Mapping[str, object]:
        """Its own hyperparameters by name, as they were given: numbers, arrays or schedules."""
        return self.implementation.hyperparams

    @property
    def links(self) -> Mapping[str, Link]:
        """Its members by name, when it is a chain or another wrapper."""
        return {name: link_of(member) for name, member in self.implementation.members.items()}

    def __repr__(self) -> str:
        """The code that makes it."""
        return source.render_call(self.implementation.call)


def link_of(implementation: AbstractLink) -> Link:
    """The link that this stands behind."""
    return Link(implementation.init, implementation.update)


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
        declaration = Declaration(function, slots, numbers, debiases)

        @functools.wraps(function)
        def make(*args: Any, **kwargs: Any) -> Link:
            arguments = declaration.parameters.bind(*args, **kwargs)
            rule: Any = function(**arguments)
            if not isinstance(rule, Rule):
                raise TypeError(f"{declaration.name} must return an adam_tx.Rule, got {rule!r}.")
            return link_of(Leafwise(declaration, rule, arguments, Call(make, args, kwargs)))

        declaration.maker = hyperparams.readable(make, "Link")
        return declaration.maker

    return decorate if function is None else decorate(function)


def optimizer(function: Callable[P, optax.GradientTransformation | AbstractLink]) -> Callable[P, Link]:
    """Make a function that returns a chain, or a `Wrapper`, the maker of a link of its own name.

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
    def make(*args: P.args, **kwargs: P.kwargs) -> Link:
        arguments = parameters.bind(*args, **kwargs)
        with hyperparams.named(function.__name__, arguments):
            made = function(*args, **kwargs)
        implementation = made if isinstance(made, AbstractLink) else implementation_of(made)
        if implementation is None:
            raise TypeError(f"{function.__name__} must return a link, got {made!r}; adam_tx.as_link makes one of it.")
        if not implementation.name:
            of_class = type(implementation).__name__
            raise TypeError(f"{function.__name__}: a {of_class} has no name: call super().__init__ in its __init__.")
        return link_of(implementation.changed(call=Call(make, args, kwargs)))

    return hyperparams.readable(make, "Link")


@hyperparams.readable
def as_link(
    transformation: optax.GradientTransformation,
    *,
    name: str | None = None,
    formula: str | None = None,
    elementwise: bool = False,
) -> Link:
    """A transformation from anywhere as a link; a link as it is, but for what is said of it here.

    In a chain any transformation can stand, but not in first place before links that
    read the raw gradient: what it did to the gradient they would not see. Where that is
    meant, because the transformation is a part of the algorithm, say so with this and
    a formula. The same goes for links that change the gradient, such as a clip.

    Args:
      transformation: a pair of `init` and `update`; its `update` also receives `grad`.
      name: the key of its state in a chain; by default what made it, such as "scale_by_sign".
      formula: what it emits, in one line.
      elementwise: say so of a transformation from elsewhere that steps each element by
        itself, or all together: then `stacked` takes it. A link of adam_tx says it itself.

    Returns:
      A `Link` with the state of the transformation.

    Raises:
      TypeError: what is no transformation; a link of which `elementwise` is said.

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
    given = {key: value for key, value in {"name": name, "formula": formula}.items() if value is not None}
    call = Call(as_link, (transformation,), {**given, "elementwise": True} if elementwise else given)
    implementation = implementation_of(transformation)
    if implementation is None:
        held = [implementation_in(inside) for inside in closures.held(transformation)]
        in_turn = held and is_optax(transformation) and maker_name(transformation) == "chain"
        make = ForeignChain if in_turn else Foreign
        return link_of(make(transformation, name, formula, call, held, elementwise=elementwise))
    if elementwise:
        raise TypeError(
            f"as_link: {implementation.name} is a link of adam_tx, which says itself whether it steps each element by "
            "itself. Leave elementwise=True out."
        )
    if not given:
        return transformation if isinstance(transformation, Link) else link_of(implementation)
    if formula is not None:
        implementation = as_part(implementation)
    return link_of(implementation.changed(call=call, relabelled=given, **given))


def as_part(implementation: AbstractLink) -> AbstractLink:
    """The same as a part of an algorithm: what it does to the gradient is meant."""
    facts = dataclasses.replace(implementation.facts, changes_gradient=False)
    return implementation.changed(facts=facts)


def implementation_in(transformation: optax.GradientTransformation) -> AbstractLink:
    """What runs behind a transformation, as a member of a link: its own implementation, if it has one."""
    return as_link(transformation).implementation
