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
import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from adam_tx._core.call import Call
from adam_tx.describe import closures, source
from adam_tx.describe.allowed import Place

_WORDS = ("name", "key", "links", "unknown")
_DEEPEST = 60  # how far values in values are written


def get_config(tx: optax.GradientTransformation) -> dict[str, Any]:
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
    if not _is_transformation(tx):
        raise TypeError(f"tx must be a transformation, with init and update, got {type(tx).__name__}.")
    return _encoded(tx, 0)


def from_config(config: dict[str, Any], *, allow: Sequence[str] = ()) -> optax.GradientTransformation:
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
        made = _decoded(config, Place("config", tuple(allow)))
    except RecursionError:
        raise ValueError("config: it is no optimizer, but dicts in dicts without end; take another copy.") from None
    if not _is_transformation(made):
        raise TypeError(f"config['name']: {config['name']!r} makes no transformation, but {type(made).__name__}.")
    return made


def _is_transformation(thing: Any) -> bool:
    """Whether it has an init and an update; `optax.MultiSteps` has, and is no `GradientTransformation`."""
    parts = (getattr(thing, "init", None), getattr(thing, "update", None))
    return all(map(callable, parts)) and not isinstance(thing, Mapping | type)


def _encoded(value: Any, depth: int) -> Any:
    """A value as data that JSON can hold."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if np.isfinite(value) else {"float": str(value)}
    if depth > _DEEPEST:
        return {"unknown": f"a {type(value).__name__} in too many others"}
    if type(value) in (list, tuple):
        items = [_encoded(item, depth + 1) for item in value]
        return items if type(value) is list else {"tuple": items}
    if type(value) is dict:
        return _encoded_dict(value, depth)
    if isinstance(value, Tracer):
        return {"unknown": f"a {value.dtype} array that is known only when it runs"}
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _encoded_array(value)
    if (dtype := source.scalar_type_name(value)) is not None:
        return {"dtype": dtype}
    if isinstance(value, np.dtype):
        return {"numpy_dtype": value.name}
    if (address := closures.address(value)) is not None:
        return {"function": ":".join(address)}
    if (call := closures.call_of(value)) is not None:
        return _encoded_call(call, depth)
    return {"unknown": _what(value)}


def _encoded_dict(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    if not all(type(key) is str for key in value):
        return {"items": [[_encoded(key, depth + 1), _encoded(item, depth + 1)] for key, item in value.items()]}
    plain = {key: _encoded(item, depth + 1) for key, item in value.items()}
    return {"dict": plain} if {*_WORDS, *_FORMS} & plain.keys() else plain


def _encoded_array(value: Any) -> dict[str, Any]:
    """The numbers of an array, which float64 holds exactly, and its dtype."""
    dtype, kind = value.dtype, "array"
    if not isinstance(dtype, np.dtype) or jnp.issubdtype(dtype, jnp.complexfloating) or dtype.kind in "OSUM":
        return {"unknown": f"a {dtype} array of shape {np.shape(value)}"}
    plain = np.asarray(value)
    plain = plain.astype(np.float64) if jnp.issubdtype(dtype, jnp.floating) else plain
    if not isinstance(value, jax.Array):
        kind = "numpy_scalar" if isinstance(value, np.generic) else "numpy"
    weak = {"weak_type": True} if getattr(value, "weak_type", False) else {}
    return {kind: _encoded(plain.tolist(), 0), "dtype": dtype.name, **weak}


def _encoded_call(call: Call, depth: int) -> dict[str, Any]:
    """The name of a maker and its arguments."""
    name = _name(call.maker, depth)
    config: dict[str, Any] = {"unknown": _what(call.maker)} if name is None else {"name": name}
    arguments, signature = source.bound_arguments(call)
    for argument, value in arguments.items():
        if signature.parameters[argument].kind is inspect.Parameter.VAR_POSITIONAL and _are_members(value):
            config["links"] = [_encoded_member(member, depth + 1) for member in value]
        else:
            config[_escaped(argument)] = _encoded(value, depth + 1)
    return config


def _are_members(values: Any) -> bool:
    return all(_is_transformation(value[1] if _is_pair(value) else value) for value in values)


def _is_pair(member: Any) -> bool:
    return type(member) is tuple and len(member) == 2 and isinstance(member[0], str)


def _encoded_member(member: Any, depth: int) -> dict[str, Any]:
    return {"key": member[0], **_encoded(member[1], depth)} if _is_pair(member) else _encoded(member, depth)


def _name(maker: Any, depth: int) -> str | dict[str, Any] | None:
    """The name of a maker in a config, or the config of the call that made it."""
    if isinstance(call := getattr(maker, "call", None), Call):
        return _encoded_call(call, depth + 1)
    if (address := closures.address(maker)) is None:
        return None
    dotted = ".".join(address).removeprefix("adam_tx.")
    return dotted if _named(dotted) is maker else ":".join(address)


def _named(name: str) -> Any:
    """What a name in a config stands for, or None."""
    module, colon, qualname = name.partition(":")
    if colon:
        return closures.imported(module, qualname)
    root, _, inside = name.partition(".")
    return closures.imported("optax", inside) if root == "optax" else closures.imported("adam_tx", name)


def _escaped(argument: str) -> str:
    """The argument's name in a config, where some words mean something else."""
    return f"{argument}_" if argument.rstrip("_") in _WORDS else argument


def _unescaped(key: str) -> str:
    return key[:-1] if key.rstrip("_") in _WORDS and key.endswith("_") else key


def _what(value: Any) -> str:
    """What something is that no config can hold."""
    if isinstance(value, optax.GradientTransformation):
        return f"the transformation {_where(value.update)}"
    if inspect.isroutine(value) or isinstance(value, type):
        return f"the {'class' if isinstance(value, type) else 'function'} {_where(value)}"
    return f"an object of {_where(type(value))}"


def _where(value: Any) -> str:
    return f"{getattr(value, '__module__', '?')}:{getattr(value, '__qualname__', type(value).__qualname__)}"


def _decoded(config: Any, at: Place) -> Any:
    """What an entry of a config stands for; what is no data is itself."""
    if isinstance(config, list):
        return [_decoded(item, at[i]) for i, item in enumerate(config)]
    if not isinstance(config, dict):
        return config
    if "unknown" in config:
        raise ValueError(
            f"{at}: {config['unknown']} cannot be made from a config. Put the object itself there before "
            f"from_config, as in {at} = ..., or give the optimizer what has a name: a function or class that can be "
            "imported, a schedule of optax or adam_tx.schedules, a number."
        )
    if "name" in config:
        return _decoded_call(config, at)
    form = next((form for form in _FORMS if form in config), None)
    if form is None:
        return {key: _decoded(item, at[key]) for key, item in config.items()}
    if extra := config.keys() - {form, "dtype", "weak_type"}:
        raise ValueError(f"{at}: {sorted(extra)} cannot stand beside {form!r}; take one of them away.")
    return _FORMS[form](config, at[form])


def _decoded_call(config: Mapping[str, Any], at: Place) -> Any:
    """What the maker of that name gives for these arguments."""
    maker = _maker(config["name"], at["name"])
    signature = source.signature_of(maker)
    members = next((name for name, p in signature.parameters.items() if p.kind is p.VAR_POSITIONAL), "links")
    arguments = {}
    for key, value in config.items():
        place = at[key]
        if key in ("name", "key"):
            continue
        argument = members if key == "links" else _unescaped(key)
        if argument not in signature.parameters:
            raise ValueError(
                f"{place}: {config['name']} has no argument {argument!r}"
                f"{_instead(argument, signature.parameters)}; it takes {list(signature.parameters)}."
            )
        if key == "links":
            arguments[argument] = [_decoded_member(link, place[i]) for i, link in enumerate(_listed(value, place))]
        else:
            arguments[argument] = _decoded(value, place)
    return _called(maker, signature, arguments, at)


def _called(maker: Callable[..., Any], signature: inspect.Signature, arguments: Mapping[str, Any], at: Place) -> Any:
    """The maker's result, with the place in the config added to what it raises."""
    given = collections.OrderedDict((name, arguments[name]) for name in signature.parameters if name in arguments)
    various = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [name for name, p in signature.parameters.items() if p.default is p.empty and p.kind not in various]
    if missing := [name for name in needed if name not in given]:
        raise ValueError(f"{at}: give the arguments {missing}, which have no default.")
    bound = inspect.BoundArguments(signature, given)
    try:
        return maker(*bound.args, **bound.kwargs)
    except Exception as error:
        error.add_note(f"It was made from {at}.")
        raise


def _decoded_member(config: Any, at: Place) -> Any:
    made = _decoded(config, at)
    return (config["key"], made) if isinstance(config, dict) and "key" in config else made


def _maker(name: Any, at: Place) -> Callable[..., Any]:
    """The function of this name."""
    if isinstance(name, dict) and callable(made := _decoded(name, at)):
        return made
    if isinstance(name, str) and (found := at.named(name)) is not None:
        return found
    if isinstance(name, str) and ":" in name:
        raise ValueError(
            f"{at}: {name!r} cannot be imported here; make the module {name.partition(':')[0]!r} importable."
        )
    known = [*closures.imported("adam_tx", "__all__"), *(f"optax.{public}" for public in dir(optax))]
    raise ValueError(f"{at}: {name!r} is neither a name of adam_tx nor one of Optax's{_instead(str(name), known)}.")


def _instead(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _listed(value: Any, at: Place) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{at}: it must be a list, got a {type(value).__name__}.")
    return cast(list[Any], value)


def _converted(convert: Callable[..., Any], at: Place, *given: Any) -> Any:
    """What plain data stands for."""
    try:
        return convert(*given)
    except Exception as error:  # whatever NumPy makes of what is no data of this form
        raise ValueError(f"{at}: {given[0]!r} must be as get_config writes it, but {error}.") from None


def _decoded_array(config: Mapping[str, Any], at: Place) -> Any:
    form = next(form for form in ("array", "numpy", "numpy_scalar") if form in config)
    dtype = _decoded_scalar_dtype(config.get("dtype", "missing"), at)
    numbers = _decoded(config[form], at)
    _converted(np.array, at, numbers, dtype)
    if form != "array":
        plain = np.array(numbers, dtype)
        return plain if form == "numpy" else plain[()]
    weak = config.get("weak_type", False)  # as are arrays from Python's own numbers, in the precision that is enabled
    if (jnp.asarray(numbers).dtype if weak else jax.dtypes.canonicalize_dtype(dtype)) != dtype:
        raise ValueError(f"{at}: an array of {dtype} needs jax_enable_x64 to be as it was when it was made.")
    return jnp.asarray(numbers) if weak else jnp.array(numbers, dtype)


def _decoded_scalar_dtype(name: Any, at: Place) -> Any:
    """A dtype of single numbers: one of text or of subarrays could ask for any memory."""
    dtype = _converted(jnp.dtype, at, name)
    if dtype.subdtype is not None or not (jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_):
        raise ValueError(f"{at}: {name!r} must be a dtype of numbers, such as 'float32'.")
    return dtype


def _decoded_function(config: Mapping[str, Any], at: Place) -> Any:
    name = config["function"]
    found = at.named(name) if isinstance(name, str) and ":" in name else None
    if found is None:
        raise ValueError(f"{at}: {name!r} cannot be imported here; a function is written as 'module:name'.")
    return found


def _decoded_dtype(config: Mapping[str, Any], at: Place) -> Any:
    name = config["dtype"]
    found = getattr(jnp, name, None) if isinstance(name, str) else None
    if source.scalar_type_name(found) is None:
        raise ValueError(f"{at}: {name!r} must be a dtype of JAX, such as 'bfloat16'.")
    return found


def _decoded_dict(config: Mapping[str, Any], at: Place) -> dict[Any, Any]:
    plain = _converted(dict, at, config["dict"])
    return {key: _decoded(item, at[key]) for key, item in plain.items()}


_FORMS: Mapping[str, Callable[[Mapping[str, Any], Place], Any]] = {
    "array": _decoded_array,
    "numpy": _decoded_array,
    "numpy_scalar": _decoded_array,
    "tuple": lambda config, at: tuple(_decoded(_listed(config["tuple"], at), at)),
    "dict": _decoded_dict,
    "items": lambda config, at: _converted(dict, at, _decoded(_listed(config["items"], at), at)),
    "float": lambda config, at: _converted(float, at, config["float"]),
    "function": _decoded_function,
    "numpy_dtype": lambda config, at: _decoded_scalar_dtype(config["numpy_dtype"], at),
    "dtype": _decoded_dtype,
}
