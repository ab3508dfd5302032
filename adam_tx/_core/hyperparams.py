"""Hyperparameters: a number, a 0-d array or a schedule, wherever one stands.

The signature of a link says once what each may be: `b1: Decay = 0.9`. A number is
checked when the link is made and stays a Python float, so that `1 - decay` is taken
in float64. An array or the value of a schedule is float32 (or float64) and may
change from step to step.
"""

import contextlib
import functools
import inspect
import math
import numbers
import typing
from collections.abc import Callable, Generator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, TypeGuard, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from optax import ScalarOrSchedule

from adam_tx._core.bias import DecayNow
from adam_tx._core.numerics import Scalar

Maker = TypeVar("Maker", bound=Callable[..., Any])


class Range(NamedTuple):
    """An interval of allowed values, open at `high`, and at `low` unless that is said to be allowed."""

    low: float
    high: float
    low_allowed: bool = True

    def __contains__(self, value: object) -> bool:
        return isinstance(value, float) and (self.low < value < self.high or (self.low_allowed and value == self.low))

    def __str__(self) -> str:
        return f"{'[' if self.low_allowed else '('}{self.low:g}, {self.high:g})"


_DECAY = Range(0.0, 1.0)
NOT_NEGATIVE = Range(0.0, math.inf)
POSITIVE = Range(0.0, math.inf, low_allowed=False)
FINITE = Range(-math.inf, math.inf, low_allowed=False)

Decay = Annotated[ScalarOrSchedule, _DECAY]
"""A decay of an average, in [0, 1): number, 0-d array or schedule `count -> value`."""
NonNegative = Annotated[ScalarOrSchedule, NOT_NEGATIVE]
"""At least 0: number, 0-d array or schedule."""
Positive = Annotated[ScalarOrSchedule, POSITIVE]
"""Above 0: number, 0-d array or schedule."""
Finite = Annotated[ScalarOrSchedule, FINITE]
"""Any number: number, 0-d array or schedule."""


Value = Scalar | DecayNow | None
"""A hyperparameter at one update; None where none was given."""
Reader = Callable[[jax.Array], Any]
"""From the count of earlier updates to the value of a hyperparameter."""
_UNNAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Parameters:
    """The parameters of a function that makes links: their order, defaults and allowed values, from its signature."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self.signature = function, inspect.signature(function)
        variadic = [p.name for p in self.signature.parameters.values() if p.kind in _UNNAMED]
        if variadic or not function.__name__.isidentifier():
            raise TypeError(
                f"{function.__name__}: what makes links must be a function with a name, whose arguments can all be "
                "given by name" + (f", unlike {variadic}." if variadic else ".")
            )
        for name in ("count", "next"):
            if name in self.signature.parameters:
                raise TypeError(f"{function.__name__}: name the argument {name!r} otherwise; that is in `now` already.")

    @functools.cached_property
    def _hints(self) -> Mapping[str, Any]:
        return typing.get_type_hints(self._function, include_extras=True)

    @functools.cached_property
    def ranges(self) -> Mapping[str, Range]:
        """The allowed values of each hyperparameter, that is, of each parameter with such an annotation."""
        found = {name: _range(self._hints.get(name)) for name in self.signature.parameters}
        return {name: allowed for name, allowed in found.items() if allowed is not None}

    def is_decay(self, name: str) -> bool:
        """Whether the parameter of this name is annotated with `Decay`."""
        return self.ranges.get(name) is _DECAY

    def bind(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The arguments of a call by name, defaults included, each hyperparameter checked."""
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._function.__name__}: {error}") from None
        bound.apply_defaults()
        for name, allowed in self.ranges.items():
            value = bound.arguments[name]
            if type(value) is float and value in allowed:
                continue
            if not is_schedule(value) and not (value is None and type(None) in typing.get_args(self._hints[name])):
                check(self._label(name, value), value, allowed)
        return dict(bound.arguments)

    def given(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that are not what they would be if nobody gave them."""
        usual = {name: parameter.default for name, parameter in self.signature.parameters.items()}
        return {name: value for name, value in arguments.items() if value is not usual[name]}

    def read(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Value], dict[str, Reader]]:
        """The hyperparameters that stay what they are, and for each schedule the function `count -> value`."""
        fixed: dict[str, Value] = {}
        varying: dict[str, Reader] = {}
        for name, allowed in self.ranges.items():
            value = arguments[name]
            if value is None or type(value) is float:  # which was checked when it was bound
                fixed[name] = _present(value, allowed)
            elif is_schedule(value):
                varying[name] = reader(self._label(name, value), value, allowed)
            else:
                fixed[name] = _present(check(self._label(name, value), value, allowed), allowed)
        return fixed, varying

    def _label(self, name: str, value: object) -> str:
        """What an argument is called in an error."""
        function = self._function.__name__
        return (_NAMES.get().get(id(value)) if _has_identity(value) else None) or f"{function}: {name}"


def _range(annotation: object) -> Range | None:
    """The range in an annotation such as `Decay` or `Decay | None`."""
    if isinstance(annotation, Range):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := _range(part))), None)


# What the arguments of the optimizer that is being made are called, by the identity of their values: a schedule
# that an optimizer hands on to a link is then refused under the name by which the user gave it.
_NAMES: ContextVar[Mapping[int, str]] = ContextVar("names", default=MappingProxyType({}))


@contextlib.contextmanager
def named(function: str, arguments: Mapping[str, Any]) -> Generator[None]:
    """Call these arguments, and not those they are handed on to, by their names in errors."""
    names = {id(value): f"{function}: {name}" for name, value in arguments.items() if _has_identity(value)}
    token = _NAMES.set({**names, **_NAMES.get()})
    try:
        yield
    finally:
        _NAMES.reset(token)


def _has_identity(value: object) -> bool:
    return is_schedule(value) or isinstance(value, jax.Array | np.ndarray)


def reader(label: str, value: Any, allowed: Range) -> Reader:
    """The function `count -> value` of a hyperparameter, `count` the number of earlier updates; a decay as `DecayNow`.

    Args:
      label: what to call it in an error.
      value: a number, a 0-d array, or a schedule `count -> value`.
      allowed: the range that a number or a concrete array must lie in.

    Raises:
      TypeError: the value is none of these, or an array of 16-bit floats.
      ValueError: a number outside its range, or an array that is not 0-d.
    """
    if is_schedule(value):
        return lambda count: _present(check(label, value(count), allowed), allowed)
    checked = _present(check(label, value, allowed), allowed)
    return lambda _: checked


def _present(value: Scalar | None, allowed: Range) -> Value:
    """The value as it is in `now`."""
    return DecayNow(value, 1.0 - value) if allowed is _DECAY and value is not None else value


def fixed(name: str, value: Any) -> None:
    """Refuse what is no number of at least zero, or varies with the count."""
    if is_schedule(value):
        raise TypeError(f"{name} must be a number, not a schedule.")
    check(name, value, NOT_NEGATIVE)


def at(value: Any, count: jax.typing.ArrayLike) -> Scalar:
    """A number as it is, or what a schedule says of this count."""
    return value(count) if is_schedule(value) else value


def product(one: Scalar, other: Scalar) -> Scalar:
    """The product of two numbers that are checked, in the wider of their dtypes; of two Python floats, one of these."""
    if isinstance(one, jax.Array) and isinstance(other, jax.Array):
        dtype = jnp.promote_types(one.dtype, other.dtype)
        return one.astype(dtype) * other.astype(dtype)
    return one * other


def check_int(name: str, value: Any, least: int = 1) -> int:
    """A whole number that does not vary."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        hint = "; under optax.inject_hyperparams name it in static_args" if isinstance(value, jax.Array) else ""
        raise TypeError(f"{name} must be a whole number, got {type(value).__name__}: {value!r}{hint}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
    return int(value)


def is_schedule(value: object) -> TypeGuard[Callable[[jax.typing.ArrayLike], Any]]:
    """Whether a hyperparameter is a function of the count; arrays are not, though JAX's can be called."""
    return callable(value) and not isinstance(value, jax.Array | np.ndarray | np.generic)


def check(label: str, value: Any, allowed: Range) -> Scalar:
    """The value as a Python float or a 0-d array of at least float32, if it is one and in range."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{label} must be a number, a 0-d array or a schedule, got the boolean {value}.")
    if isinstance(value, numbers.Real):
        return _check_range(label, float(value), allowed)
    if not isinstance(value, jax.Array | np.ndarray):
        raise TypeError(f"{label} must be a number, a 0-d array or a schedule, got {type(value).__name__}: {value!r}.")
    if value.shape:
        raise ValueError(
            f"{label} must be a 0-d array, got shape {value.shape}. To try several values at once, jax.vmap over them."
        )
    if jnp.issubdtype(value.dtype, jnp.integer):
        value = value.astype(jnp.float32)
    if value.dtype not in (jnp.float32, jnp.float64):
        why = "."
        if jnp.issubdtype(value.dtype, jnp.floating):
            why = (
                ", because in so few bits b2 = 0.999 is 1 or eps = 1e-8 is 0. With optax.inject_hyperparams pass "
                "hyperparam_dtype=jnp.float32."
            )
        raise TypeError(f"{label} came as a {value.dtype} array; it must be float32 or float64{why}")
    if not isinstance(value, Tracer):
        _check_range(label, float(value), allowed)
    return jnp.asarray(value)


def _check_range(label: str, value: float, allowed: Range) -> float:
    if value not in allowed:
        raise ValueError(f"{label} must be in {allowed}, got {value:g}.")
    return value


class _Written(str):
    """An annotation as it is written, which `help` shows without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


_ALIASES: Mapping[str, Any] = {"Decay": Decay, "NonNegative": NonNegative, "Positive": Positive, "Finite": Finite}


def _written(annotation: Any) -> Any:
    """An annotation as short as its source: `Decay`, not all that a decay may be."""
    for name, alias in _ALIASES.items():
        if annotation == alias or annotation == alias | None:
            return _Written(name if annotation == alias else f"{name} | None")
    return _Written(annotation) if isinstance(annotation, str) else annotation


def readable(function: Maker, returns: str | None = None) -> Maker:
    """The function, with a signature that `help` shows as it is written, and with what it returns."""
    made: Any = function
    signature = inspect.signature(function)
    parameters = [p.replace(annotation=_written(p.annotation)) for p in signature.parameters.values()]
    result = _written(signature.return_annotation if returns is None else returns)
    made.__signature__ = signature.replace(parameters=parameters, return_annotation=result)
    return function
