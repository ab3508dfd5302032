"""What the functions of others tell of themselves: their closure variables, and the call that made them."""

import dataclasses
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeGuard, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_tx._core.call import Call, maker_name
from adam_tx._core.same import closure_variables, holds_nothing, same, same_code

T = TypeVar("T")

_ADAPTED: Any = optax.with_extra_args_support(optax.identity()).update


def is_transformation(thing: object) -> TypeGuard[optax.GradientTransformation]:
    """Whether it has an init and an update; `optax.MultiSteps` has, and is no `GradientTransformation`."""
    parts = (getattr(thing, "init", None), getattr(thing, "update", None))
    return all(map(callable, parts)) and not isinstance(thing, Mapping | type)


def variables(made: object) -> dict[str, Any]:
    """The closure variables of a schedule or of a transformation's functions, and of the local functions they call."""
    functions: list[object] = [getattr(made, "init", made), getattr(made, "update", made)]
    found: dict[str, Any] = {}
    seen: set[int] = set()
    while functions:
        function = functions.pop(0)
        if id(function) in seen:
            continue
        seen.add(id(function))
        for key, value in closure_variables(function).items():
            found.setdefault(key, value)
            if inspect.isfunction(value) and _local_to(value) == _local_to(function) is not None:
                functions.append(value)
    return {key: _without_support_inside(value) for key, value in found.items()}


def _local_to(function: object) -> tuple[str, str] | None:
    """The module and name of the outermost function in which this one was defined, if in any."""
    outer, local, _ = getattr(function, "__qualname__", "").partition(".<locals>")
    return (getattr(function, "__module__", ""), outer) if local else None


def without_extra_args_support(transformation: T) -> T:
    """The transformation inside of `optax.with_extra_args_support`; any other as it is."""
    update = getattr(transformation, "update", None)
    if inspect.isfunction(update) and same_code(update, _ADAPTED):
        inside = closure_variables(update).get("tx")
        if getattr(inside, "init", None) == getattr(transformation, "init", None):
            return cast(T, inside)
    return transformation


def _without_support_inside(value: object) -> object:
    """A transformation, or a dict of them, without the support of extra arguments."""
    if isinstance(value, optax.GradientTransformation):
        return without_extra_args_support(value)
    if type(value) is dict:
        return {key: _without_support_inside(member) for key, member in cast(dict[object, object], value).items()}
    return value


def address(thing: object) -> tuple[str, str] | None:
    """The module and the name under which this can be imported. For adam_tx and Optax they are the public ones."""
    module = getattr(thing, "__module__", None)
    qualname = getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str) or "<" in qualname:
        return None
    parts = module.split(".")
    modules = [".".join(parts[: n + 1]) for n in range(len(parts))] if parts[0] in ("adam_tx", "optax") else [module]
    return next(((at, qualname) for at in modules if imported(at, qualname) is thing), None)


def imported(module: str, qualname: str) -> object:
    """What can be imported under this module and name, or None."""
    try:
        return pkgutil.resolve_name(f"{module}:{qualname}")
    except (ImportError, AttributeError, ValueError):
        return None


def call_of(made: object) -> Call | None:
    """The call that made this schedule or transformation, if it remembers it or it can be proved.

    Our own remember their call. Optax's are closures. Each of Optax's functions that may
    have made one is called again with the variables of the closure. If that gives closures
    of the same code over the same values, it is the call. What cannot be proved is not
    guessed, and only Optax's functions and data classes are called to try it.
    """
    made = without_extra_args_support(made)
    return _remembered(made) or next((call for guess in _guesses(made) if (call := _proved(guess, made))), None)


def _remembered(made: object) -> Call | None:
    """The call that this, or the object whose methods are its init and update, has under `call`."""
    if isinstance(made, partial):
        return Call(partial, (made.func, *made.args), made.keywords)
    owner, other = (getattr(getattr(made, method, None), "__self__", None) for method in ("update", "init"))
    calls = (getattr(thing, "call", None) for thing in (made, owner if owner is other else None))
    return next((call for call in calls if isinstance(call, Call)), None)


def _proved(guess: Callable[[], Call], made: object) -> Call | None:
    """The call that is guessed, if it provably makes the same."""
    try:
        call = guess()
        again = call()
    except Exception:  # whatever names Optax lacks, and whatever a guess at arguments makes it do
        return None
    if not isinstance(made, optax.GradientTransformation):
        return call if same(made, again) else None
    extra = optax.GradientTransformationExtraArgs
    if not isinstance(again, optax.GradientTransformation) or isinstance(made, extra) != isinstance(again, extra):
        return None
    return call if same(made.init, again.init) and same(made.update, again.update) else None


def _guesses(made: object) -> Iterator[Callable[[], Call]]:
    """The calls of Optax that may have made this, the most specific first."""
    if not isinstance(made, optax.GradientTransformation | type):
        yield from _of_data(made)
    function = made.update if isinstance(made, optax.GradientTransformation) else made
    if inspect.ismethod(function) and maker_name(function) == "MultiSteps":
        yield partial(_call, optax.MultiSteps.gradient_transformation, function.__self__)
    if not inspect.isfunction(function) or _local_to(function) is None:
        return
    found = variables(made)
    # `scale_by_learning_rate` hands a function of its own to `scale_by_schedule`, whose closure it then is
    for inside in [value for value in found.values() if inspect.isfunction(value)]:
        if _local_to(inside) not in (None, _local_to(function)):
            yield from _calls(inside, closure_variables(inside))
    yield from _calls(function, found)


def _calls(function: object, found: Mapping[str, object]) -> Iterator[Callable[[], Call]]:
    """The calls of the function of Optax in which this one was defined."""
    module, name = _local_to(function) or ("", "")
    maker = imported(module, name) if module.split(".")[0] == "optax" else None
    if not inspect.isfunction(maker):
        return
    for guess in _GUESSES.get(name, ()):
        yield partial(guess, found)
    yield partial(_call, maker, **{key: found[key] for key in inspect.signature(maker).parameters if key in found})


def _of_data(made: object) -> Iterator[Callable[[], Call]]:
    """The calls that make an object that is nothing but data, if it is one."""
    kind: type[object] = type(made)
    if dataclasses.is_dataclass(made):
        fields = [field.name for field in dataclasses.fields(made) if field.init]
        yield partial(_call, kind, **{name: getattr(made, name) for name in fields})
    elif (as_dict := getattr(made, "_asdict", None)) is not None:
        yield partial(_call, kind, **as_dict())
    elif isinstance(made, Mapping):
        yield partial(_call, kind, dict(cast(Mapping[object, object], made)))
    elif holds_nothing(made):
        yield partial(_call, kind)
    elif maker_name(made) == "MultiSteps":
        yield partial(_multi_steps, vars(made))


def _call(maker: Callable[..., object], /, *args: object, **kwargs: object) -> Call:
    return Call(maker, args, kwargs)


def held(transformation: object) -> list[optax.GradientTransformation]:
    """The transformations that one of others holds on to; those of an `optax.chain` in turn."""
    found = variables(transformation)
    return members(found) if "update_fns" in found else list(transformations_in(found))


def transformations_in(value: object, depth: int = 4) -> Iterator[optax.GradientTransformation]:
    """The transformations that this is, or contains."""
    if isinstance(value, optax.GradientTransformation):
        yield value
    elif depth:
        inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        for member in inside:
            yield from transformations_in(member, depth - 1)


def members(found: Mapping[str, Any]) -> list[optax.GradientTransformation]:
    """The members of an `optax.chain`, from its closure variables."""
    pairs = zip(found["init_fns"], found["update_fns"], strict=True)
    return [without_extra_args_support(optax.GradientTransformationExtraArgs(*pair)) for pair in pairs]


def _multi_steps(found: Mapping[str, Any]) -> Call:
    every = found["_every_k_schedule"]
    skip = found["_should_skip_update_fn"]
    dtype = found["_accumulator_dtype"]
    return _call(
        optax.MultiSteps,
        opt=without_extra_args_support(found["_opt"]),
        every_k_schedule=closure_variables(every).get("every_k_schedule", every),
        use_grad_mean=found["_use_grad_mean"],
        should_skip_update_fn=None if maker_name(skip) == "__init__" else skip,
        accumulator_dtype=jnp.float32 if dtype == jnp.float32 else dtype,
    )


def _inject_hyperparams(found: Mapping[str, Any]) -> Call:
    # what would have been injected, had it not been named in static_args
    injectable = int | float | jax.Array | np.ndarray
    static = tuple(
        key
        for key, value in found["other_hps"].items()
        if not isinstance(value, bool) and (callable(value) or isinstance(value, injectable))
    )
    scheduled = {key: getattr(value, "schedule_fn", value) for key, value in found["sched_hps"].items()}
    options: dict[str, Any] = {"static_args": static, "hyperparam_dtype": found["hyperparam_dtype"]}
    factory: Any = optax.inject_hyperparams(found["inner_factory"], **options)
    factory.call = _call(optax.inject_hyperparams, found["inner_factory"], **options)
    return _call(factory, **(found["other_hps"] | found["numeric_hps"] | scheduled))


def _warmup_cosine(found: Mapping[str, Any]) -> Call:
    up, down = map(closure_variables, found["schedules"])
    (warmup,) = found["boundaries"]
    peak = up["end_value"]
    return _call(
        optax.warmup_cosine_decay_schedule,
        init_value=up["init_value"],
        peak_value=peak,
        warmup_steps=warmup,
        decay_steps=down["decay_steps"] + warmup,
        end_value=down["alpha"] * peak,
        exponent=down["exponent"],
    )


# By maker: where a closure has other variables than its maker's arguments, or a public function says the same in fewer.
_GUESSES: Mapping[str, Sequence[Callable[[Mapping[str, Any]], Call]]] = {
    "chain": [lambda v: _call(optax.chain, *members(v))],
    "named_chain": [
        lambda v: _call(optax.named_chain, *((key, without_extra_args_support(tx)) for key, tx in v["transforms"]))
    ],
    "inject_hyperparams": [_inject_hyperparams],
    "scale_by_learning_rate": [
        lambda v: _call(optax.scale_by_learning_rate, learning_rate=v["learning_rate"], flip_sign=v["m"] < 0)
    ],
    "polynomial_schedule": [
        lambda v: _call(optax.linear_schedule, **{key: v[key] for key in _OF_LINEAR_SCHEDULE}),
        lambda v: _call(
            optax.linear_schedule, init_value=v["init_value"], end_value=v["init_value"], transition_steps=0
        ),
    ],
    "join_schedules": [_warmup_cosine],
    "piecewise_interpolate_schedule": [
        lambda v: _call(
            optax.piecewise_interpolate_schedule,
            v["interpolate_fn"].__name__.strip("_").removesuffix("_interpolate"),
            v["init_value"],
            dict(zip(v["boundaries"], v["scales"], strict=True)),
        )
    ],
}
_OF_LINEAR_SCHEDULE = ("init_value", "end_value", "transition_steps", "transition_begin")
