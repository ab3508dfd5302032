"""Optimizers as plain data: `get_config` writes one down, `from_config` makes it anew.

A config is what JSON can hold. A link, an optimizer or a schedule is the name of the
function that makes it, with all of its arguments::

    {"name": "adam", "learning_rate": {"name": "optax.linear_schedule", "init_value": 0.1, ...}, "b1": 0.9, ...}
    {"name": "chain", "links": [{"name": "scale_by_momentum", ...}, {"key": "mine", "name": "optax.scale", ...}]}

A name stands for what `adam_tx` exports, what Optax does after `optax.`, or, as
`module:name`, for what can be imported from elsewhere, if it is allowed. Numbers, strings, lists and dicts
are themselves; what JSON has no form for is written as one of

    {"tuple": [0.9, 0.999]}                        {"dtype": "bfloat16"}
    {"array": 0.001, "dtype": "float32"}           {"function": "adam_tx:output_unit"}
    {"float": "inf"}                               {"unknown": "the function train:<lambda>"}

the last for what cannot be made again. An argument that is called like one of these
words is written with an underscore behind its name.
"""

from __future__ import annotations

import collections
import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeGuard, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from adam_tx._core.call import Call
from adam_tx.describe import closures, source
from adam_tx.describe.allowed import ConfigPath, address_of, did_you_mean

T = TypeVar("T")
Config = dict[str, object]

_WORDS = ("name", "key", "links", "unknown")
_DEEPEST = 60  # how far values in values are written


def get_config(tx: optax.GradientTransformation) -> dict[str, object]:
    """Write an optimizer down as plain data that `json.dumps` accepts and `from_config` reads.

    Args:
      tx: a link or chain of adam_tx, or a transformation of Optax, also around links.

    Returns:
      A dict with the `name` of the function that makes it and all of its arguments by
      name, those that were left at their defaults too. The members of a chain are in
      the list `links`; one that was given as `(name, tx)` has its name under `key`.
      Schedules and transformations of Optax do not remember how they were made: their
      call is found from what they hold, and is written only if making it again gives
      the same. What cannot be made from a config, such as a lambda, is
      `{"unknown": "<what it is>"}`.

    Raises:
      TypeError: what is no transformation.

    >>> import adam_tx
    >>> tx = adam_tx.chain(adam_tx.scale_by_momentum(0.9), ("step", adam_tx.scale_by_learning_rate(1e-3)))
    >>> for link in adam_tx.get_config(tx)["links"]:
    ...     print(link)
    {'name': 'scale_by_momentum', 'decay': 0.9, 'nesterov': False, 'read': None, 'debias': False, 'dtype': None}
    {'key': 'step', 'name': 'scale_by_learning_rate', 'learning_rate': 0.001, 'flip_sign': True}
    """
    if not closures.is_transformation(tx):
        raise TypeError(f"tx must be a transformation, with init and update, got {type(tx).__name__}.")
    return cast(Config, _encoded(tx, 0))


def from_config(config: dict[str, object], *, allow: Sequence[str] = ()) -> optax.GradientTransformation:
    """Make the optimizer that `get_config` has written down.

    The config may have come from JSON, and may be written by hand: arguments that are
    left out have their defaults. Where it is to hold what JSON cannot, such as a lambda,
    put the object itself there.

    A config names functions, which are imported and called. Only parts of optimizers from
    adam_tx and Optax are. Functions of your own, such as `my_package.masks:no_biases`, need
    `allow=["my_package"]`. Allow only modules that do no harm when a stranger calls what is
    in them, or read only configs that come from where you trust.

    Args:
      config: a dict as `get_config` returns it.
      allow: names of modules that may be imported beside adam_tx and Optax, with those
        inside them: `"my_package"`, `"__main__"`, `"jax.numpy"`.

    Returns:
      The transformation, which does to the last bit what the original did.

    Raises:
      TypeError: a config that is no dict, or that makes no transformation.
      ValueError: a name or an argument that is not known or not allowed, with its place in
        the config; something that a config cannot hold.

    >>> import adam_tx
    >>> tx = adam_tx.from_config({"name": "adam", "learning_rate": 1e-3, "b1": 0.8})
    >>> tx
    adam_tx.adam(0.001, b1=0.8)
    >>> adam_tx.from_config(adam_tx.get_config(tx))
    adam_tx.adam(0.001, b1=0.8)
    """
    if not isinstance(config, dict):
        raise TypeError(f"config must be a dict, as get_config returns it, got {type(config).__name__}.")
    if "name" not in config and "unknown" not in config:
        raise ValueError(f"config has no 'name' of what to make, only {sorted(map(str, config))}.")
    if isinstance(allow, str):
        raise TypeError(f"config: allow must be a list of modules, such as [{allow!r}], got a str.")
    try:
        made = _decoded(config, ConfigPath("config", tuple(allow)))
    except RecursionError:
        raise ValueError("config: it is no optimizer, but dicts in dicts without end; take another copy.") from None
    if not closures.is_transformation(made):
        raise TypeError(f"config['name']: {config['name']!r} makes no transformation, but {type(made).__name__}.")
    return made


def _encoded(value: object, depth: int) -> object:
    """A value as data that JSON can hold."""
    if value is None or type(value) in (bool, int, str) or (type(value) is float and np.isfinite(value)):
        return value
    if depth > _DEEPEST:
        return {"unknown": f"a {type(value).__name__} in too many others"}
    if type(value) is list:
        return _encoded_items(cast(list[object], value), depth + 1)
    if _has_names(value) and not {*_WORDS, *_FORMS} & value.keys():
        return _encoded_dict(value, depth + 1)
    for name, form in _FORMS.items():
        if form.holds(value):
            return {name: form.encode(value, depth + 1), **_dtype_beside(value)}
    if (call := closures.call_of(value)) is not None:
        return _encoded_call(call, depth)
    return {"unknown": _what(value)}


def _encoded_items(items: Iterable[object], depth: int) -> list[object]:
    return [_encoded(item, depth) for item in items]


def _encoded_dict(named: Mapping[str, object], depth: int) -> Config:
    return {name: _encoded(value, depth) for name, value in named.items()}


def _has_names(value: object) -> TypeGuard[Config]:
    """Whether it is a dict with text for keys."""
    return type(value) is dict and all(type(key) is str for key in cast(Config, value))


def _encoded_call(call: Call, depth: int) -> Config:
    """The name of a maker and its arguments."""
    name = _name(call.maker, depth)
    config: Config = {"unknown": _what(call.maker)} if name is None else {"name": name}
    arguments, signature = source.bound_arguments(call)
    for argument, value in arguments.items():
        various = signature.parameters[argument].kind is inspect.Parameter.VAR_POSITIONAL
        members = list(map(_keyed, value)) if various else []
        if various and all(closures.is_transformation(member) for _, member in members):
            config["links"] = [key | cast(Config, _encoded(member, depth + 1)) for key, member in members]
        else:
            config[_escaped(argument)] = _encoded(value, depth + 1)
    return config


def _keyed(member: Any) -> tuple[Config, object]:
    """The key that a member of a chain was given, if it was, and the member."""
    given = type(member) is tuple and len(member) == 2 and isinstance(member[0], str)
    return ({"key": member[0]}, member[1]) if given else ({}, member)


def _name(maker: object, depth: int) -> str | Config | None:
    """The name of a maker in a config, or the config of the call that made it."""
    if isinstance(call := getattr(maker, "call", None), Call):
        return _encoded_call(call, depth + 1)
    if (address := closures.address(maker)) is None:
        return None
    dotted = ".".join(address).removeprefix("adam_tx.")
    return dotted if closures.imported(*address_of(dotted)) is maker else ":".join(address)


def _escaped(argument: str) -> str:
    """The argument's name in a config, in which some words have a meaning of their own."""
    return f"{argument}_" if argument.rstrip("_") in _WORDS else argument


def _unescaped(key: str) -> str:
    return key[:-1] if key.rstrip("_") in _WORDS and key.endswith("_") else key


def _what(value: object) -> str:
    """The description of a value that no config can hold."""
    if isinstance(value, Tracer):
        return f"a {value.dtype} array that is known only when it runs"
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return f"a {value.dtype} array of shape {np.shape(value)}"
    if isinstance(value, optax.GradientTransformation):
        return f"the transformation {_where(value.update)}"
    if inspect.isroutine(value) or isinstance(value, type):
        return f"the {'class' if isinstance(value, type) else 'function'} {_where(value)}"
    return f"an object of {_where(type(value))}"


def _where(value: object) -> str:
    return f"{getattr(value, '__module__', '?')}:{getattr(value, '__qualname__', type(value).__qualname__)}"


def _decoded(config: object, at: ConfigPath) -> object:
    """The value of an entry of a config. An object that a user put there is its own value."""
    if isinstance(config, list):
        return _decoded_items(config, at)
    if not isinstance(config, dict):
        return config
    entry = cast(Config, config)
    if "unknown" in entry:
        raise ValueError(
            f"{at}: {entry['unknown']} cannot be made from a config. Put the object itself there before "
            f"from_config, as in {at} = ..., or give the optimizer what has a name: a function or class that can be "
            "imported, a schedule of optax or adam_tx.schedules, a number."
        )
    if "name" in entry:
        return _decoded_call(entry, at)
    name = next((name for name in _FORMS if name in entry), None)
    if name is None:
        return _decoded_dict(entry, at)
    beside = {key: value for key, value in entry.items() if key != name}
    if extra := beside.keys() - {*_FORMS[name].beside}:
        raise ValueError(f"{at}: {sorted(extra)} cannot stand beside {name!r}; take one of them away.")
    return _FORMS[name].decode(entry[name], at[name], beside)


def _decoded_items(items: object, at: ConfigPath) -> list[object]:
    if not isinstance(items, list):
        raise ValueError(f"{at}: it must be a list, got a {type(items).__name__}.")
    return [_decoded(item, at[i]) for i, item in enumerate(cast(list[object], items))]


def _decoded_dict(named: Mapping[str, object], at: ConfigPath) -> Config:
    return {key: _decoded(value, at[key]) for key, value in named.items()}


def _decoded_call(config: Config, at: ConfigPath) -> object:
    """The result of calling the maker of that name with these arguments."""
    name = config["name"]
    maker = _decoded(name, at["name"]) if isinstance(name, dict) else None
    if not callable(maker):
        maker = at["name"].import_maker(name)
    signature = source.signature_of(maker)
    members = next((name for name, p in signature.parameters.items() if p.kind is p.VAR_POSITIONAL), "links")
    arguments: Config = {}
    for key, value in config.items():
        if key in ("name", "key"):
            continue
        argument = members if key == "links" else _unescaped(key)
        if argument not in signature.parameters:
            raise ValueError(
                f"{at[key]}: {name} has no argument {argument!r}"
                f"{did_you_mean(argument, signature.parameters)}; it takes {list(signature.parameters)}."
            )
        decode = _decoded_members if key == "links" else _decoded
        arguments[argument] = decode(value, at[key])
    return _called(maker, signature, arguments, at)


def _decoded_members(configs: object, at: ConfigPath) -> list[object]:
    """The members of a chain, a pair where one has a key."""
    made = zip(cast(list[object], configs), _decoded_items(configs, at), strict=True)
    return [
        (of["key"], member) if isinstance(of, dict) and of.get("key") is not None else member for of, member in made
    ]


def _called(maker: Callable[..., object], signature: inspect.Signature, given: Config, at: ConfigPath) -> object:
    """The maker's result, with the place in the config added to what it raises."""
    various = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [name for name, p in signature.parameters.items() if p.default is p.empty and p.kind not in various]
    if missing := [name for name in needed if name not in given]:
        raise ValueError(f"{at}: give the arguments {missing}, which have no default.")
    bound = inspect.BoundArguments(signature, collections.OrderedDict(given))
    try:
        return maker(*bound.args, **bound.kwargs)
    except Exception as error:
        error.add_note(f"It was made from {at}.")
        raise


@dataclasses.dataclass(frozen=True)
class _Form:
    """A form in which a config holds what JSON cannot: which values, as which data, beside which keys."""

    holds: Callable[[object], object]
    encode: Callable[[Any, int], object]
    decode: Callable[[Any, ConfigPath, Config], object]
    beside: tuple[str, ...] = ()


def _is(kind: type) -> Callable[[object], bool]:
    return lambda value: type(value) is kind


def _converted(convert: Callable[..., T], at: ConfigPath, *given: object) -> T:
    """The value of plain data, or an error that names its place."""
    try:
        return convert(*given)
    except Exception as error:  # whatever NumPy makes of what is no data of this form
        raise ValueError(f"{at}: {given[0]!r} must be as get_config writes it, but {error}.") from None


def _of_numbers(kind: type, convert: Callable[[np.ndarray[Any, Any], object], Any]) -> _Form:
    """The form of an array: its numbers, which float64 holds exactly, beside its dtype."""

    def holds(value: object) -> bool:
        dtype = getattr(value, "dtype", None)
        known = isinstance(value, kind) and not isinstance(value, Tracer)
        return known and isinstance(dtype, np.dtype) and dtype.kind not in "cOSUM"

    def encode(value: Any, _: int) -> object:
        plain = np.asarray(value)
        exact = plain.astype(np.float64) if jnp.issubdtype(plain.dtype, jnp.floating) else plain
        return _encoded(exact.tolist(), 0)

    def decode(numbers: object, at: ConfigPath, beside: Config) -> object:
        dtype = _decoded_numpy_dtype(beside.get("dtype", "missing"), at, {})
        plain = _converted(np.array, at, _decoded(numbers, at), dtype)
        made = convert(plain, beside.get("weak_type", False))
        if made.dtype != plain.dtype:
            raise ValueError(f"{at}: an array of {plain.dtype} needs jax_enable_x64 to be as it was when it was made.")
        return made

    return _Form(holds, encode, decode, ("dtype", "weak_type"))


def _dtype_beside(value: object) -> Config:
    """The keys beside the numbers of an array."""
    dtype = {"dtype": value.dtype.name} if isinstance(value, jax.Array | np.ndarray | np.generic) else {}
    return {**dtype, **({"weak_type": True} if getattr(value, "weak_type", False) else {})}


def _decoded_numpy_dtype(name: object, at: ConfigPath, _: Config) -> np.dtype[Any]:
    """A dtype of single numbers: one of text or of subarrays could ask for any memory."""
    dtype = _converted(jnp.dtype, at, name)
    if dtype.subdtype is not None or not (jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_):
        raise ValueError(f"{at}: {name!r} must be a dtype of numbers, such as 'float32'.")
    return dtype


def _decoded_dtype(name: object, at: ConfigPath, _: Config) -> object:
    found = getattr(jnp, name, None) if isinstance(name, str) else None
    if source.scalar_type_name(found) is None:
        raise ValueError(f"{at}: {name!r} must be a dtype of JAX, such as 'bfloat16'.")
    return found


def _decoded_function(name: object, at: ConfigPath, _: Config) -> object:
    found = at.import_name(name) if isinstance(name, str) and ":" in name else None
    if found is None:
        raise ValueError(f"{at}: {name!r} cannot be imported here; a function is written as 'module:name'.")
    return found


_FORMS: Mapping[str, _Form] = {
    # weak are arrays of Python's own numbers, in the precision that is enabled
    "array": _of_numbers(jax.Array, lambda plain, weak: jnp.asarray(plain.tolist() if weak else plain)),
    "numpy": _of_numbers(np.ndarray, lambda plain, _: plain),
    "numpy_scalar": _of_numbers(np.generic, lambda plain, _: plain[()]),
    "tuple": _Form(_is(tuple), _encoded_items, lambda items, at, _: tuple(_decoded_items(items, at))),
    "dict": _Form(_has_names, _encoded_dict, lambda named, at, _: _decoded_dict(_converted(dict, at, named), at)),
    "items": _Form(
        lambda value: type(value) in (dict, collections.Counter),  # as PyTorch keeps milestones
        lambda value, depth: [_encoded_items(pair, depth) for pair in value.items()],
        lambda items, at, _: _converted(dict[object, object], at, _decoded_items(items, at)),
    ),
    "float": _Form(_is(float), lambda value, _: str(value), lambda text, at, _: _converted(float, at, text)),
    "numpy_dtype": _Form(lambda value: isinstance(value, np.dtype), lambda value, _: value.name, _decoded_numpy_dtype),
    "dtype": _Form(source.scalar_type_name, lambda value, _: source.scalar_type_name(value), _decoded_dtype),
    "function": _Form(closures.address, lambda value, _: ":".join(closures.address(value) or ()), _decoded_function),
}
