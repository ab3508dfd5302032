"""What functions that are not ours tell of themselves: their maker's name, its arguments, what they hold on to."""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_tx._core.abstract_link import AbstractLink
from adam_tx._core.call import Call
from adam_tx._core.same import closure_variables, holds_nothing, same, same_code

_ADAPTED = optax.with_extra_args_support(optax.identity()).update


def name(function: Any) -> str:
    """The name of what made this function: `scale` for `scale.<locals>.update_fn`, a method's class."""
    if isinstance(function, optax.GradientTransformation):
        function = function.update
    if inspect.ismethod(function):
        return type(function.__self__).__name__
    qualname = getattr(function, "__qualname__", type(function).__name__)
    return qualname.split(".<locals>")[0].split(".")[-1]


def values(made: Any) -> dict[str, Any]:
    """What the functions of a transformation or schedule hold on to, and the local functions that they call."""
    functions = [made.init, made.update] if hasattr(made, "update") else [made]
    found, seen = {}, set()
    while functions:
        function = functions.pop(0)
        if id(function) in seen:
            continue
        seen.add(id(function))
        for key, value in closure_variables(function).items():
            found.setdefault(key, value)
            if inspect.isfunction(value) and _local_to(value) == _local_to(function) is not None:
                functions.append(value)
    return {key: _unadapted_in(value) for key, value in found.items()}


def _local_to(function: Any) -> tuple[str, str] | None:
    """The module and name of the outermost function in which this one was defined, if in any."""
    outer, local, _ = getattr(function, "__qualname__", "").partition(".<locals>")
    return (function.__module__, outer) if local else None


def unadapted(transformation: Any) -> Any:
    """The transformation inside Optax's adapter to extra arguments; any other as it is."""
    update = getattr(transformation, "update", None)
    if inspect.isfunction(update) and same_code(update, _ADAPTED):
        inside = closure_variables(transformation.update)["tx"]
        return inside if inside.init == transformation.init else transformation
    return transformation


def _unadapted_in(value: Any) -> Any:
    if isinstance(value, optax.GradientTransformation):
        return unadapted(value)
    return {key: _unadapted_in(member) for key, member in value.items()} if type(value) is dict else value


def address(thing: Any) -> tuple[str, str] | None:
    """The module and the name in it under which this can be imported; of ours and Optax's the public ones."""
    module, qualname = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str) or "<" in qualname:
        return None
    parts = module.split(".")
    modules = [".".join(parts[: n + 1]) for n in range(len(parts))] if parts[0] in ("adam_tx", "optax") else [module]
    return next(((at, qualname) for at in modules if find(at, qualname) is thing), None)


def find(module: str, qualname: str) -> Any:
    """What can be imported under this module and name, or None."""
    try:
        return functools.reduce(getattr, qualname.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError):
        return None


def remake(made: Any) -> Call | None:
    """The call that made this schedule or transformation, if it remembers it or it can be proved.

    Our own remember their call. A closure of Optax is described by the function that
    made it and what it closed over. That is the call that made it if, called so, the
    function gives closures of the same code over the same values. What cannot be proved
    is not guessed, and only Optax's functions and data classes are called to try it.
    """
    made = unadapted(made)
    if (call := _remembered(made)) is not None:
        return call
    for maker, args, kwargs in _guesses(made):
        try:
            again = maker(*args, **kwargs)
        except Exception:  # whatever a guess at its arguments makes it do
            continue
        if _proved(made, again):
            return Call(maker, args, kwargs)
    return None


def _remembered(made: Any) -> Call | None:
    if isinstance(call := getattr(made, "call", None), Call):
        return call
    owner = getattr(getattr(made, "update", None), "__self__", None)
    if isinstance(owner, AbstractLink):
        return owner.call
    if isinstance(made, functools.partial):
        return Call(functools.partial, (made.func, *made.args), made.keywords)
    return None


def _proved(made: Any, again: Any) -> bool:
    if not isinstance(made, optax.GradientTransformation):
        return same(made, again)
    extra = optax.GradientTransformationExtraArgs
    if not isinstance(again, optax.GradientTransformation) or isinstance(made, extra) != isinstance(again, extra):
        return False
    return same(made.init, again.init) and same(made.update, again.update)


Guess = tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]]


def _guesses(made: Any) -> Iterator[Guess]:
    """The calls of Optax that may have made this, the most specific first."""
    if isinstance(made, optax.MultiSteps):
        yield from _tried(_multi_steps, vars(made))
        return
    if not isinstance(made, optax.GradientTransformation) and not isinstance(made, type):
        yield from _of_data(made)
    function = made.update if isinstance(made, optax.GradientTransformation) else made
    owner = getattr(function, "__self__", None)
    if isinstance(owner, optax.MultiSteps):
        yield optax.MultiSteps.gradient_transformation, (owner,), {}
    if not inspect.isfunction(function) or _local_to(function) is None:
        return
    found = values(made)
    # `scale_by_learning_rate` hands a function of its own to `scale_by_schedule`, whose closure it then is
    for inside in [value for value in found.values() if inspect.isfunction(value)]:
        if _local_to(inside) not in (None, _local_to(function)):
            yield from _calls(inside, closure_variables(inside))
    yield from _calls(function, found)


def _calls(function: Any, found: Mapping[str, Any]) -> Iterator[Guess]:
    module, maker_name = _local_to(function) or ("", "")
    maker = find(module, maker_name) if module.split(".")[0] == "optax" else None
    if not inspect.isfunction(maker):
        return
    for guess in _GUESSES.get(maker_name, ()):
        yield from _tried(guess, found)
    yield maker, (), {key: found[key] for key in inspect.signature(maker).parameters if key in found}


def _of_data(made: Any) -> Iterator[Guess]:
    """The calls that make an object that is nothing but data, if it is one."""
    kind = type(made)
    if dataclasses.is_dataclass(made):
        yield kind, (), {field.name: getattr(made, field.name) for field in dataclasses.fields(made) if field.init}
    elif hasattr(made, "_asdict"):
        yield kind, (), made._asdict()
    elif isinstance(made, Mapping):
        yield kind, (dict(made),), {}
    elif holds_nothing(made):
        yield kind, (), {}


def _tried(guess: Callable[[Mapping[str, Any]], Guess], found: Mapping[str, Any]) -> Iterator[Guess]:
    """The guess, if what was found has the parts that it is made of."""
    try:
        made = guess(found)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return
    yield made


def _multi_steps(found: Mapping[str, Any]) -> Guess:
    every, skip, dtype = (found[key] for key in ("_every_k_schedule", "_should_skip_update_fn", "_accumulator_dtype"))
    arguments = {
        "opt": unadapted(found["_opt"]),
        "every_k_schedule": closure_variables(every).get("every_k_schedule", every),
        "use_grad_mean": found["_use_grad_mean"],
        "should_skip_update_fn": None if name(skip) == "__init__" else skip,
        "accumulator_dtype": jnp.float32 if dtype == jnp.float32 else dtype,
    }
    return optax.MultiSteps, (), arguments


def members(found: Mapping[str, Any]) -> list[Any]:
    """The members of an `optax.chain`, from what its functions hold on to."""
    pairs = zip(found["init_fns"], found["update_fns"], strict=True)
    return [unadapted(optax.GradientTransformationExtraArgs(*pair)) for pair in pairs]


def _chain(found: Mapping[str, Any]) -> Guess:
    return optax.chain, tuple(members(found)), {}


def _named_chain(found: Mapping[str, Any]) -> Guess:
    return optax.named_chain, tuple((key, unadapted(member)) for key, member in found["transforms"]), {}


def injected(found: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments under `optax.inject_hyperparams`, from what its functions hold on to."""
    scheduled = {key: getattr(value, "schedule_fn", value) for key, value in found["sched_hps"].items()}
    return {**found["other_hps"], **found["numeric_hps"], **scheduled}


def _inject_hyperparams(found: Mapping[str, Any]) -> Guess:
    # what would have been injected, had it not been named in static_args
    injectable = int | float | jax.Array | np.ndarray
    static = tuple(
        key
        for key, value in found["other_hps"].items()
        if not isinstance(value, bool) and (callable(value) or isinstance(value, injectable))
    )
    options: dict[str, Any] = {"static_args": static, "hyperparam_dtype": found["hyperparam_dtype"]}
    factory: Any = optax.inject_hyperparams(found["inner_factory"], **options)
    factory.call = Call(optax.inject_hyperparams, (found["inner_factory"],), options)
    return factory, (), injected(found)


def _scale_by_learning_rate(found: Mapping[str, Any]) -> Guess:
    arguments = {"learning_rate": found["learning_rate"], "flip_sign": found["m"] < 0}
    return optax.scale_by_learning_rate, (), arguments


def _linear_schedule(found: Mapping[str, Any]) -> Guess:
    keys = ("init_value", "end_value", "transition_steps", "transition_begin")
    return optax.linear_schedule, (), {key: found[key] for key in keys}


def _no_transition(found: Mapping[str, Any]) -> Guess:
    value = found["init_value"]
    return optax.linear_schedule, (), {"init_value": value, "end_value": value, "transition_steps": 0}


def _warmup_cosine(found: Mapping[str, Any]) -> Guess:
    up, down = map(closure_variables, found["schedules"])
    (warmup,), peak = found["boundaries"], up["end_value"]
    arguments = {"init_value": up["init_value"], "peak_value": peak, "warmup_steps": warmup}
    arguments["decay_steps"] = down["decay_steps"] + warmup
    arguments |= {"end_value": down["alpha"] * peak, "exponent": down["exponent"]}
    return optax.warmup_cosine_decay_schedule, (), arguments


def _piecewise_interpolate(found: Mapping[str, Any]) -> Guess:
    kind = found["interpolate_fn"].__name__.strip("_").removesuffix("_interpolate")
    scales = dict(zip(found["boundaries"], found["scales"], strict=True))
    return optax.piecewise_interpolate_schedule, (kind, found["init_value"], scales), {}


# where what a closure holds has other names than its maker's arguments, or a public function says the same in fewer
_GUESSES: Mapping[str, tuple[Callable[[Mapping[str, Any]], Guess], ...]] = {
    "chain": (_chain,),
    "named_chain": (_named_chain,),
    "inject_hyperparams": (_inject_hyperparams,),
    "scale_by_learning_rate": (_scale_by_learning_rate,),
    "polynomial_schedule": (_linear_schedule, _no_transition),
    "join_schedules": (_warmup_cosine,),
    "piecewise_interpolate_schedule": (_piecewise_interpolate,),
}
