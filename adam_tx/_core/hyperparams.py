"""Hyperparameters: a number, a 0-d array or a schedule, wherever one stands.

The signature of a link says once what each may be: `b1: Decay = 0.9`. A number is
checked when the link is made and stays a Python float, so that `1 - decay` is taken
in float64. An array or the value of a schedule is float32 (or float64) and may
change from step to step.
"""

import contextlib
import inspect
import math
import numbers
import typing
from collections.abc import Callable, Generator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
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
        if not isinstance(value, float):
            return False
        return self.low < value < self.high or (self.low_allowed and value == self.low)

    def __str__(self) -> str:
        return f"{'[' if self.low_allowed else '('}{self.low:g}, {self.high:g})"


_DECAY = Range(0.0, 1.0)

Decay = Annotated[ScalarOrSchedule, _DECAY]
"""A decay of an average, in [0, 1): number, 0-d array or schedule `count -> value`."""
NonNegative = Annotated[ScalarOrSchedule, Range(0.0, math.inf)]
"""At least 0: number, 0-d array or schedule."""
Positive = Annotated[ScalarOrSchedule, Range(0.0, math.inf, low_allowed=False)]
"""Above 0: number, 0-d array or schedule."""
Finite = Annotated[ScalarOrSchedule, Range(-math.inf, math.inf, low_allowed=False)]
"""Any number: number, 0-d array or schedule."""


Value = Scalar | DecayNow | None
"""A hyperparameter at one update; None where none was given."""
Reader = Callable[[jax.Array], Any]
"""From the count of earlier updates to the value of a hyperparameter."""
_ANY_COUNT: Any = None  # of which what does not vary knows nothing
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
        self._ranges: dict[str, Range] | None = None
        self._optional: set[str] = set()

    @property
    def ranges(self) -> Mapping[str, Range]:
        """The allowed values of each hyperparameter, that is, of each parameter with such an annotation."""
        if self._ranges is None:
            hints = typing.get_type_hints(self._function, include_extras=True)
            found = {name: _range(hints[name]) for name in self.signature.parameters if name in hints}
            self._ranges = {name: allowed for name, allowed in found.items() if allowed is not None}
            self._optional = {name for name in self._ranges if type(None) in typing.get_args(hints[name])}
        return self._ranges

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
            if not is_schedule(value) and not (value is None and name in self._optional):
                check(_label(self._function.__name__, name, value), value, allowed)
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
                fixed[name] = _decay_now(value) if value is not None and allowed is _DECAY else value
                continue
            read = reader(_label(self._function.__name__, name, value), value, allowed)
            if is_schedule(value):
                varying[name] = read
            else:
                fixed[name] = read(_ANY_COUNT)
        return fixed, varying


def _range(annotation: Any) -> Range | None:
    """The range in an annotation such as `Decay` or `Decay | None`."""
    metadata = getattr(annotation, "__metadata__", ())
    found = next((entry for entry in metadata if isinstance(entry, Range)), None)
    inside = typing.get_args(annotation) if found is None else ()
    return found or next((allowed for part in inside if (allowed := _range(part))), None)


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


def _label(function: str, name: str, value: Any) -> str:
    return (_NAMES.get().get(id(value)) if _has_identity(value) else None) or f"{function}: {name}"


def _has_identity(value: Any) -> bool:
    return is_schedule(value) or isinstance(value, jax.Array | np.ndarray)


def reader(label: str, value: Any, allowed: Range) -> Callable[[jax.Array], Any]:
    """The function `count -> value` of a hyperparameter, `count` the number of earlier updates; a decay as `DecayNow`.

    Args:
      label: what to call it in an error.
      value: a number, a 0-d array, or a schedule `count -> value`.
      allowed: the range that a number or a concrete array must lie in.

    Raises:
      TypeError: the value is none of these, or an array of 16-bit floats.
      ValueError: a number outside its range, or an array that is not 0-d.
    """
    present = _decay_now if allowed is _DECAY else lambda value: value
    if is_schedule(value):
        return lambda count: present(check(label, value(count), allowed))
    checked = present(check(label, value, allowed))
    return lambda _: checked


def _decay_now(value: Scalar) -> DecayNow:
    return DecayNow(value, 1.0 - value)


def number(name: str, value: Any, allowed: Range = Range(0.0, math.inf)) -> Callable[[jax.Array], Scalar]:  # noqa: B008
    """As `reader`, for an argument that no annotation declares."""
    return reader(name, value, allowed)


def fixed(name: str, value: Any) -> None:
    """Refuse what is no number of at least zero, or varies with the count."""
    if is_schedule(value):
        raise TypeError(f"{name} must be a number, not a schedule.")
    check(name, value, Range(0.0, math.inf))


def check_int(name: str, value: Any, least: int = 1) -> int:
    """A whole number that does not vary."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        hint = "; under optax.inject_hyperparams name it in static_args" if isinstance(value, jax.Array) else ""
        raise TypeError(f"{name} must be a whole number, got {type(value).__name__}: {value!r}{hint}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
    return int(value)


def is_schedule(value: object) -> bool:
    """Whether a hyperparameter is a function of the count; arrays are not, though JAX's can be called."""
    return callable(value) and not isinstance(value, jax.Array | np.ndarray | np.generic)


def check_moment_dtype(moment: str, dtype: DTypeLike | None, decay: Any, *, squares: bool) -> None:
    """Refuse a storage dtype in which the moving average would stand still.

    Rounding to nearest, bfloat16 drops a change of less than 1/512 to 1/256 of
    the value. An average with decay 0.999 changes by 1/1000 a step, so it can
    grow but never decays. Whether an array or schedule stays clear of that cannot
    be known; a second moment, where it does harm, is then refused too.

    Args:
      moment: what to call it, such as "mu".
      dtype: its storage dtype, or None.
      decay: the average's decay, as it was given; None if it is no average.
      squares: whether it averages squares.
    """
    if dtype is None:
        return
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"the dtype of {moment} must be a floating-point or complex dtype or None, got {jnp.dtype(dtype)}. For "
            "eight bits give adam_tx.storage.EightBit()."
        )
    if jnp.finfo(dtype).bits >= 32:
        return
    if jnp.finfo(dtype).bits < 16:
        raise ValueError(
            f"{moment} cannot be stored as {jnp.dtype(dtype)}: rounded to so few bits it would stand still. "
            "Use adam_tx.storage.EightBit()."
        )
    stored = jnp.dtype(dtype).name
    if squares and jnp.finfo(dtype).minexp > -100:
        raise ValueError(
            f"{moment} cannot be stored as {stored}: the squares of small gradients are zero in it. Use float32, or "
            "bfloat16 with a decay (b2) of at most 0.99."
        )
    if decay is None:
        return
    known = isinstance(decay, float | int)
    if (known and decay > 0.99) or (squares and not known):
        raise ValueError(
            f"{moment} stored as {stored} needs a decay that is a number of at most 0.99, got {decay}. A step changes "
            f"the average by 1 - decay of its value; below half a unit in the last place of {stored}, rounding to "
            "nearest undoes that and the moment never decays. Use adam_tx.storage.StochasticBFloat16(), float32 or a "
            "smaller decay; under optax.inject_hyperparams name the decay in static_args, so that it stays a number."
        )


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
        narrow = jnp.issubdtype(value.dtype, jnp.floating)
        raise TypeError(
            f"{label} came as a {value.dtype} array; it must be float32 or float64"
            + (
                ", because in so few bits b2 = 0.999 is 1 or eps = 1e-8 is 0. With optax.inject_hyperparams pass "
                "hyperparam_dtype=jnp.float32."
                if narrow
                else "."
            )
        )
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
