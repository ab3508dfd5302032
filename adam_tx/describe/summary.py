"""`summary`: an optimizer as a table of its links, with what each keeps in the state."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

from adam_tx._core.abstract_link import AbstractLink
from adam_tx._core.call import Call, is_optax, maker_name
from adam_tx._core.provenance import GRADIENT, Provenance
from adam_tx.describe import closures, source, visit
from adam_tx.describe.by_leaf import by_leaf
from adam_tx.describe.table import aligned, arrays_in, bytes_of, shapes, short

_HEADER = ("link", "formula", "hyperparameters", "state", "bytes")


def summary(tx: optax.GradientTransformation, params: optax.Params, *, by: str = "link") -> str:
    """Describe an optimizer as a table with a row for each link, in the order they act, or for each leaf.

    Nothing is computed: of the parameters only shapes and dtypes are used. The rows
    follow from what the links declare, and add up to the bytes of the state. The
    members of a chain or another wrapper stand indented below it. Wrappers of Optax are
    looked into where it is known how their state is made up. What another wrapper holds
    is one row, "opaque".

    Args:
      tx: a link, a chain, or an Optax transformation, also around links.
      params: the tree of parameters: arrays or `jax.ShapeDtypeStruct`.
      by: "link", or "leaf" to see which leaf gets what.

    Returns:
      The table: link, formula (u the incoming updates, g the gradient),
      hyperparameters, state with dtypes and shapes, bytes. At the end the total and,
      beside it, the bytes of the parameters and of their gradients. By leaf: path, shape,
      the group that it is in (see `groups`) and what that gives it, bytes of what is kept of it.
      Leaves that are alike but for numbers in their paths have one row, and in a large tree all of a
      group. What is kept of the whole tree, or by transformations from elsewhere, is in the row "of no leaf alone".

    Raises:
      TypeError: what is no transformation.
      ValueError: by is neither.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.chain(adam_tx.scale_by_momentum(0.9), adam_tx.scale_by_learning_rate(1e-3))
    >>> print(adam_tx.summary(tx, jnp.zeros((3, 4))))
    link                      formula                    hyperparameters      state            bytes
    ------------------------------------------------------------------------------------------------
    chain                     its links in turn                               count int32[]        4
      scale_by_momentum       mu += (1 - decay)(u - mu)  decay=0.9            mu float32[3,4]     48
                              mu
      scale_by_learning_rate  -learning_rate · u         learning_rate=0.001
    ------------------------------------------------------------------------------------------------
    state                     4.333 bytes per parameter                                           52
    parameters                                                                12 numbers          48
    gradients                 as the parameters                                                   48
    """
    if not closures.is_transformation(tx):
        raise TypeError(f"tx must be a transformation, with init and update, got {type(tx).__name__}.")

    def begun(params: optax.Params) -> tuple[optax.OptState, optax.Params]:
        return tx.init(params), params

    if by not in ("link", "leaf"):
        raise ValueError(f"summary: by must be 'link' or 'leaf', got {by!r}.")
    state, params = jax.eval_shape(begun, params)
    if by == "leaf":
        return by_leaf(tx, state, params)
    rows = _rows(tx, state, params)
    count = sum(math.prod(leaf.shape) for leaf in arrays_in(params))
    each = f"{bytes_of(state) / count:.4g} bytes per parameter" if count else "no parameters"
    footer = [
        [["state"], [each], [], [], [f"{bytes_of(state)}"]],
        [["parameters"], [], [], [f"{count} numbers"], [f"{bytes_of(params)}"]],
        [["gradients"], ["as the parameters"], [], [], [f"{bytes_of(params)}"]],
    ]
    return _table([row.cells() for row in rows], footer)


class Row(NamedTuple):
    """What the table says of one link.

    Attributes:
      label: its name, after its key where that is another.
      formula: what it emits.
      hyperparams: its hyperparameters by name, those worth showing.
      state: what it keeps itself, by name.
      depth: in how many wrappers it is.
    """

    label: str
    formula: str
    hyperparams: Mapping[str, object]
    state: Mapping[str, object]
    depth: int

    def cells(self) -> Cells:
        """The lines of each column."""
        kept = {name: value for name, value in self.state.items() if arrays_in(value)}
        return [
            ["  " * self.depth + self.label],
            self.formula.split("; "),
            [f"{name}={short(value)}" for name, value in self.hyperparams.items()],
            [f"{name} {shapes(value)}".strip() for name, value in kept.items()],
            [f"{bytes_of(value)}" for value in kept.values()],
        ]


def _rows(tx: Any, state: Any, params: Any) -> list[Row]:
    """The rows of a transformation and of its members."""
    rows: list[Row] = []

    def enter(part: visit.Part) -> Provenance | None:
        rows.extend(rows_of(part.tx, part, params))
        return None if rows_of.dispatch(type(part.tx)) in without_members else GRADIENT

    without_members = (rows_of.dispatch(object), rows_of.dispatch(AbstractLink))

    visit.visit(tx, state, enter)
    return rows


@functools.singledispatch
def rows_of(tx: Any, part: visit.Part, params: Any) -> Iterator[Row]:
    """The rows of a transformation, but for those of its members.

    Register a function for a class that needs others. It gives the rows of the members, too.
    """
    del params
    maker = maker_name(tx)
    call = closures.call_of(tx)
    label = label_of(f"optax.{maker}" if is_optax(tx) else maker, part.name)
    hyperparams = {} if call is None else _worth_showing(*source.bound_arguments(call))
    own = {} if part.apart is None else part.apart.own
    yield Row(label, part.formula, hyperparams, own, len(part.place))
    if part.apart is None:
        yield Row("opaque", f"what {maker} keeps is not known", {}, {"": part.state}, len(part.place) + 1)


@rows_of.register(AbstractLink)
def _(tx: AbstractLink, part: visit.Part, params: Any) -> Iterator[Row]:
    del params
    assert part.apart is not None
    yield Row(label_of(_maker(tx.call), part.name), tx.formula, hyperparams_of(tx), part.apart.own, len(part.place))


def named_parts(link: AbstractLink, state: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All that a link and its members keep, by names with dots."""
    own, members = link.split_state(state)
    yield from ((f"{name}.{part}".strip("."), kept) for part, kept in own.items())
    for key, kept in members.items():
        if kept is not None:
            yield from named_parts(link.members[key], kept, f"{name}.{key}")


def made_by(link: AbstractLink) -> str:
    """What made a link, or the transformation from elsewhere that it stands for."""
    tx = visit.uncovered(link)
    return _maker(tx.call) if isinstance(tx, AbstractLink) else maker_name(tx)


def _maker(call: Call) -> str:
    """What made a link, as users of adam_tx know it."""
    module, name = closures.address(call.maker) or ("", call.maker.__name__)
    return f"{module}.{name}".removeprefix("adam_tx.") if module.startswith("adam_tx.") else name


def label_of(made_by: str, key: str) -> str:
    """What a link is called, after its key where that says something else."""
    name = made_by.split(".")[-1]
    if key.startswith(name) and key.removeprefix(name).removeprefix("_").isdigit():
        return key
    return made_by if key in ("", name) else f"{key}: {made_by}"


def hyperparams_of(link: AbstractLink) -> dict[str, Any]:
    """The hyperparameters of a link; of an optimizer, whose members have them too, those that are not its defaults."""
    call = link.call
    given, signature = source.bound_arguments(call)
    if call.maker.__name__ != link.name:
        first = next(iter(given), None)
        given = {name: v for name, v in given.items() if name == first or not _is_default(v, signature, name)}
    elif not link.members:
        given = link.hyperparams
    return _worth_showing(given, signature)


def _worth_showing(given: Mapping[str, Any], signature: inspect.Signature) -> dict[str, Any]:
    """Hyperparameters without transformations, and without those that say that nothing is done."""
    shown = {}
    for name, value in given.items():
        idle = value is None or value is False or (isinstance(value, tuple) and not value)
        plain = isinstance(value, bool | int | float) and (value is True or value == 0)
        usual = plain and _is_default(value, signature, name)
        if not idle and not usual and not any(closures.transformations_in(value)):
            shown[name] = value
    return shown


def _is_default(value: Any, signature: inspect.Signature, name: str) -> bool:
    return name in signature.parameters and source.is_default(value, signature.parameters[name])


Cells = list[list[str]]
"""The lines of each column of a row."""


def _table(body: Sequence[Cells], footer: Sequence[Cells]) -> str:
    blocks = [[line for row in block for line in itertools.zip_longest(*row, fillvalue="")] for block in (body, footer)]
    head, *lines = aligned([_HEADER, *blocks[0], *blocks[1]], texts=len(_HEADER) - 1)
    rule = "-" * max(map(len, lines))  # the number at the right end of a line of the footer
    return "\n".join([head, rule, *lines[: len(blocks[0])], rule, *lines[len(blocks[0]) :]])
