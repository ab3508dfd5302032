"""What an optimizer consists of: `get_config` as data, `summary` as a table.

Links describe themselves. To find the links inside a wrapper from elsewhere,
its `update` is asked for the transformations it holds on to. Where that leads
nowhere the description says so, rather than pretend that nothing is there.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from adam_tx import _introspect
from adam_tx.chain import Description, Link, describe, observing

_DEPTH = 4  # how far containers and schedules made of schedules are followed


def get_config(tx: optax.GradientTransformation) -> dict[str, Any]:
    """Describe an optimizer as plain data that `json.dumps` accepts.

    Args:
      tx: a link or chain of adam_tx, or a transformation around some: `optax.chain`,
        `masked`, `partition` and whatever else holds on to what it wraps.

    Returns:
      A dict with `name`, the hyperparameters by name and, for a wrapper, `links`:
      the description of each member. A schedule becomes its maker's name and
      arguments. A transformation from elsewhere is described by what it holds on
      to; `unseen` names what of that could not be looked into, such as the
      `inner_factory` of `optax.inject_hyperparams`.

    >>> import adam_tx
    >>> tx = adam_tx.chain(adam_tx.scale_by_momentum(0.9), adam_tx.bias_correction(0.9))
    >>> for link in get_config(tx)["links"]:
    ...     print(link)
    {'name': 'scale_by_momentum', 'decay': 0.9, 'read': None, 'nesterov': False, 'debias': False, 'dtype': None}
    {'name': 'bias_correction', 'b1': 0.9, 'b2': None}
    """
    return _config(*_pair(tx))


def summary(tx: optax.GradientTransformation, params: Any) -> str:
    """Describe an optimizer as a table with a row for each link, in the order they act.

    Args:
      tx: as for `get_config`; here the links inside any wrapper are found, because
        a wrapper has to call their `init`.
      params: the tree of parameters, arrays or `jax.ShapeDtypeStruct`; only shapes
        and dtypes are used.

    Returns:
      The table: link, formula (u the incoming updates, g the gradient),
      hyperparameters, state with dtypes and shapes, bytes; then the total, and
      what of the state belongs to a transformation from elsewhere.

    >>> import jax.numpy as jnp
    >>> import adam_tx
    >>> print(summary(adam_tx.scale_by_momentum(0.9), jnp.zeros((3, 4))))
    link               formula                    hyperparameters  state                  bytes
    -------------------------------------------------------------------------------------------
    scale_by_momentum  mu += (1 - decay)(u - mu)  decay=0.9        count int32[]              4
                       mu                                          log_decay 2×float32[]      8
                                                                   mu float32[3,4]           48
    -------------------------------------------------------------------------------------------
    total              5 bytes per parameter                       12 parameters             60
    """
    seen: list[tuple[Description, Any]] = []

    def observe(link: Link, state: Any) -> None:
        if not link.description.links:
            seen.append((link.description, state))

    config = get_config(tx)
    with observing(observe):
        whole = jax.eval_shape(tx.init, params)

    rows = [_row(description, state) for description, state in seen]
    elsewhere = _bytes(whole) - sum(_bytes(state) for _, state in seen)
    foreign = [name for name in _foreign(config) if name not in {description.name for description, _ in seen}]
    if elsewhere or foreign:
        rows.append([["(elsewhere)"], foreign or ["not a link of adam_tx"], [], ["its state"], [f"{elsewhere}"]])
    count = sum(int(np.prod(jnp.shape(leaf))) for leaf in jax.tree.leaves(params))
    per_parameter = f"{_bytes(whole) / count:.4g} bytes per parameter" if count else "no parameters"
    total = [["total"], [per_parameter], [], [f"{count} parameters"], [f"{_bytes(whole)}"]]
    return _table(["link", "formula", "hyperparameters", "state", "bytes"], rows, total)


def _pair(tx: Any) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
    """The update and init of a transformation, or of what has both, such as `optax.MultiSteps`."""
    if not callable(getattr(tx, "update", None)) or isinstance(tx, Mapping):
        raise TypeError(f"tx must be an Optax transformation, with init and update, got {type(tx).__name__}.")
    return tx.update, getattr(tx, "init", None)


def _foreign(config: Mapping[str, Any]) -> Iterator[str]:
    """The names of the members of a description that are neither links nor wrappers."""
    for member in config.get("links", []):
        yield from _foreign(member) if "links" in member else [member["name"]]


def _config(update: Callable[..., Any], init: Callable[..., Any] | None = None) -> dict[str, Any]:
    description = describe(update)
    if description is not None and description.wraps is not None:
        return _config(*_pair(description.wraps)) | {"name": description.name}
    if description is not None:
        config = {"name": description.name, **{key: _plain(value) for key, value in description.hyperparams.items()}}
        if description.links:
            config["links"] = [_config(link.update) | {"name": name} for name, link in description.links.items()]
        return config

    held = _introspect.held(update) | ({} if init is None else _introspect.held(init))
    if _introspect.name(update) == "with_extra_args_support":  # Optax's adapter, not a transformation
        return _config(*_pair(held["tx"]))
    links = [_config(*member) for value in held.values() for member in _members(value)]
    unseen = [key for key, value in held.items() if callable(value)]
    config = {"name": _introspect.name(update)}
    config |= {key: _plain(value) for key, value in held.items() if not callable(value) and not list(_members(value))}
    if links:
        return config | {"links": links}
    return config | ({"unseen": unseen} if unseen else {})


def _members(value: Any, depth: int = _DEPTH) -> Iterator[tuple[Callable[..., Any], Callable[..., Any] | None]]:
    """The update and, where it is there, the init of each transformation in what a wrapper holds on to."""
    if isinstance(value, optax.GradientTransformation):
        yield value.update, value.init
    elif isinstance(value, Mapping) and depth:
        yield from (found for member in value.values() for found in _members(member, depth - 1))
    elif isinstance(value, tuple | list) and depth:
        for member in value:
            is_update = callable(member) and getattr(member, "__name__", "").startswith("update")
            yield from [(member, None)] if is_update else _members(member, depth - 1)


def _plain(value: Any, depth: int = _DEPTH) -> Any:
    """The value as data that JSON can hold."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    if isinstance(value, Tracer):
        return f"{value.dtype}, known when it runs"
    if isinstance(value, jax.Array | np.ndarray | np.generic) and jnp.issubdtype(value.dtype, np.number):
        return _plain(value.tolist(), depth)
    if isinstance(value, type | np.dtype) and jnp.issubdtype(value, np.generic):
        return jnp.dtype(value).name
    if isinstance(value, Mapping) and depth:
        return {str(key): _plain(member, depth - 1) for key, member in value.items()}
    if isinstance(value, tuple | list) and depth:
        return [_plain(member, depth - 1) for member in value]
    if callable(value) and depth:
        held = {key: _plain(member, depth - 1) for key, member in _introspect.held(value).items()}
        return {"name": _introspect.name(value), **held}
    return str(value) if isinstance(value, complex) else type(value).__name__


def _row(description: Description, state: Any) -> list[list[str]]:
    fields = state._asdict() if hasattr(state, "_asdict") else {"state": state}
    slots = {name: value for name, value in fields.items() if jax.tree.leaves(value)}
    shown = {key: value for key, value in description.hyperparams.items() if value is not None and value is not False}
    return [
        [description.name],
        description.formula.split("; "),
        [f"{key}={_short(_plain(value))}" for key, value in shown.items()],
        [f"{name} {_shapes(value)}" for name, value in slots.items()],
        [f"{_bytes(value)}" for value in slots.values()],
    ]


def _short(value: Any) -> str:
    return value["name"] if isinstance(value, dict) and "name" in value else str(value)


def _shapes(tree: Any, most: int = 3) -> str:
    """The leaves of a tree by dtype and shape, `float32[10,2] 3×float32[2]`."""
    counts = Counter(f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for leaf in jax.tree.leaves(tree))
    shapes = [f"{n}×{shape}" if n > 1 else shape for shape, n in counts.items()]
    more = [f"(+{len(shapes) - most} more)"] if len(shapes) > most else []
    return " ".join(shapes[:most] + more)


def _bytes(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _table(header: list[str], rows: list[list[list[str]]], total: list[list[str]]) -> str:
    cells = [[[title] for title in header], *rows, total]
    widths = [max(len(line) for row in cells for line in row[column] or [""]) for column in range(len(header))]

    def lines(row: list[list[str]]) -> Iterator[str]:
        for line in itertools.zip_longest(*row, fillvalue=""):
            *texts, number = line
            padded = [text.ljust(width) for text, width in zip(texts, widths, strict=False)]
            yield "  ".join([*padded, number.rjust(widths[-1])]).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    body = [line for row in rows for line in lines(row)]
    return "\n".join([*lines(cells[0]), rule, *body, rule, *lines(total)])
