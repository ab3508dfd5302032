"""`explain`: one update link by link, and the first place where a number stopped being finite."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from adam_tx._core.abstract_link import implementation_of
from adam_tx._core.boxes import leaves_with_paths, unboxed
from adam_tx._core.call import is_optax, maker_name
from adam_tx._core.leaves import WATCH, Column, Leaves, Tree, is_absent
from adam_tx._core.paths import slashed
from adam_tx.describe import visit
from adam_tx.describe.arrays import arrays_of
from adam_tx.describe.table import aligned

Tx = optax.GradientTransformation
_IN_JIT = "explain: inside jit there are no numbers to look at; call it outside."
_STATE, _NEW_STATE, _INTO = "state", "new state", "into "
_HEADER = ("", "leaf", "from", "to", "rms", "zero", "NaN", "Inf")


class Row(NamedTuple):
    """What a link emitted for a leaf.

    Attributes:
      link: where the link stands, such as `adam/scale_by_rms`; "gradient" and "params" for what came in.
      leaf: the path of the leaf.
      low: the least of its finite numbers; of complex ones of their sizes.
      high: the largest.
      rms: the root of their mean square.
      zeros: the share of all its numbers that are zero.
      nans: that are NaN.
      infs: that are infinite.
    """

    link: str
    leaf: str
    low: float
    high: float
    rms: float
    zeros: float
    nans: float
    infs: float

    @property
    def finite(self) -> bool:
        """Whether all numbers are."""
        return self.nans == self.infs == 0.0


class Explanation(NamedTuple):
    """One update, link by link.

    Attributes:
      rows: what came in, and what each link emitted for each leaf, in the order in which they acted.
      first: the first row with a number that is not finite, be it of the state that came ("state") or of the one
        after this update ("new state"); "into …" is what came into a link. None if there is none.
    """

    rows: Sequence[Row]
    first: Row | None

    def __str__(self) -> str:
        """A table, and in words where a number stopped being finite."""
        return f"{_table(self.rows)}\n{_in_words(self.first)}"


def explain(
    tx: optax.GradientTransformation,
    grads: optax.Updates,
    state: optax.OptState,
    params: optax.Params | None = None,
    *,
    show: bool = True,
    **extra: object,
) -> Explanation:
    """Run one update outside of jit, and say what every link of it emitted.

    Nothing is changed: the update and the new state are dropped.

    Args:
      tx: a link or chain, or an Optax transformation; in chains of Optax each member has
        its rows, of other wrappers the links of adam_tx inside.
      grads: as for its `update`.
      state: as for its `update`.
      params: as for its `update`.
      show: whether to print the explanation too.
      **extra: what else its `update` is given, such as `value`.

    Returns:
      An `Explanation`, which prints as a table.

    Raises:
      TypeError: inside jit, where there are no numbers to look at.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.adam(1e-3)
    >>> params = {"w": jnp.ones(2)}
    >>> found = adam_tx.explain(tx, {"w": jnp.array([1.0, jnp.nan])}, tx.init(params), params, show=False)
    >>> print(str(found).splitlines()[-1])
    The first number that is not finite came in with the gradient: leaf w, NaN 50 %.
    >>> [row.link for row in found.rows if row.nans][:2]
    ['gradient', 'scale_by_momentum']
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((grads, state, params))):
        raise TypeError(_IN_JIT)
    grads, state, params = unboxed((grads, state, params))
    before = [*_rows_of("gradient", grads), *(() if params is None else _rows_of("params", params))]
    rows = [*before, *_updated(tx, grads, state, params, (), extra)]
    _, new = optax.with_extra_args_support(tx).update(grads, state, params, **extra)
    came, left = (_spoilt(tx, of, params, link) for link, of in ((_STATE, state), (_NEW_STATE, new)))
    first = next((row for row in [*before, *came, *rows[len(before) :], *left] if not row.finite), None)
    # what comes into a link is what the one before it emitted, unless that is not known from inside
    explanation = Explanation([row for row in rows if row is first or not row.link.startswith(_INTO)], first)
    if show:
        print(explanation)
    return explanation


def _spoilt(tx: Tx, state: Tree, params: optax.Params | None, link: str) -> list[Row]:
    """A row for every part of a state that has numbers which are not finite, though they were so at first."""

    def found(state: Tree) -> list[Row]:
        every = [kept for kept in arrays_of(tx, state) if kept.storage.finite(kept.stored) is not None]
        return [row for row in (_row(link, kept.path, kept.numbers) for kept in every) if not row.finite]

    rows = found(state)
    begun = {row.leaf for row in found(tx.init(params))} if rows and params is not None else ()
    return [row for row in rows if row.leaf not in begun]


def _updated(
    tx: Tx, grads: Any, state: Any, params: Any, place: tuple[str, ...], extra: Mapping[str, object]
) -> Iterator[Row]:
    """The rows of a transformation's links, and of those of Optax that are known from inside."""
    maker = maker_name(tx)
    known = implementation_of(tx) is None and is_optax(tx)
    apart = visit.taken_apart(tx, state, None) if known and maker in _LOOKED_INTO else None
    in_turn = apart is not None and not apart.side_by_side
    members: Sequence[Any] = apart.members if apart else ()
    for name, member, part, _ in members:
        mask = visit.mask_of_member(tx, name, grads)
        own, of_own = (None if tree is None else _only(mask, tree) for tree in (grads, params))
        yield from _updated(member, own, part, of_own, (*place, name or _name(member)), extra)
        if in_turn:
            grads, _ = optax.with_extra_args_support(member).update(grads, part, params, **extra)
    if in_turn:
        return
    rows: list[Row] = []
    token = WATCH.set((functools.partial(_watch, rows if apart is None else None), place))
    try:
        emitted, _ = optax.with_extra_args_support(tx).update(grads, state, params, **extra)
    finally:
        WATCH.reset(token)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(emitted)):
        raise TypeError(_IN_JIT)
    yield from rows
    if implementation_of(tx) is None:
        yield from _rows_of("/".join(place) or maker, emitted)


_LOOKED_INTO = {"chain", "named_chain", "masked", "partition"}


def _watch(
    rows: list[Row] | None, at: tuple[str, ...], link: Any, leaves: Leaves, column: Column, emitted: bool
) -> None:
    """Take down what came into a link, or what it emitted."""
    if rows is None or (emitted and link.emits_last):  # a row of that is there
        return
    own = link.call.maker.__name__ if link.emits_last else link.name
    name = ("" if emitted else _INTO) + ("/".join(at) or own)
    found = ((leaves.paths[i], column[i]) for i in leaves.present)
    rows.extend(_row(name, path, leaf) for path, leaf in found if not isinstance(leaf, Tracer))


def _only(mask: Tree, tree: Tree) -> Tree:
    """The tree as Optax masks it for a member: what is not its own is absent, also whole parts."""

    def own(marked: object, part: Tree) -> Tree:
        return part if marked else optax.MaskedNode()

    return tree if mask is None else jax.tree.map(own, mask, tree)


def _name(member: Tx) -> str:
    link = implementation_of(member)
    return maker_name(member) if link is None else link.name


def _rows_of(link: str, tree: Tree) -> Iterator[Row]:
    """A row for every leaf of numbers."""
    for path, leaf in leaves_with_paths(tree, is_absent):
        if not is_absent(leaf) and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            yield _row(link, slashed(path), leaf)


def _row(link: str, path: str, leaf: jax.Array) -> Row:
    wide = np.asarray(leaf)
    x = np.abs(wide) if np.iscomplexobj(wide) else wide.astype(np.float64)
    finite, size = x[np.isfinite(x)].astype(np.float64), max(x.size, 1)
    low, high, rms = (finite.min(), finite.max(), np.sqrt(np.mean(finite**2))) if finite.size else (np.nan,) * 3
    shares = [float(np.sum(of)) / size for of in (x == 0, np.isnan(x), np.isinf(x))]
    return Row(link, path, float(low), float(high), float(rms), *shares)


def _table(rows: Sequence[Row]) -> str:
    """Aligned text; a link is named in the first of its rows."""
    cells: list[Sequence[str]] = [_HEADER]
    for last, row in zip((None, *rows), rows, strict=False):
        numbers = [f"{x:.4g}" for x in (row.low, row.high, row.rms)]
        shares = [f"{x:.0%}" if x in (0.0, 1.0) or x >= 0.01 else f"{x:.1e}" for x in (row.zeros, row.nans, row.infs)]
        cells.append(["" if last and row.link == last.link else row.link, row.leaf, *numbers, *shares])
    return "\n".join(aligned(cells, texts=2))


def _in_words(first: Row | None) -> str:
    if first is None:
        return "All numbers are finite."
    shares = " and ".join(f"{what} {100 * of:.3g} %" for what, of in (("NaN", first.nans), ("Inf", first.infs)) if of)
    came = {
        "gradient": "came in with the gradient",
        "params": "is in the params",
        _STATE: "is in the state that came",
        _NEW_STATE: "is in the state after this update",
    }
    into = f"came into {first.link.removeprefix(_INTO)} from what stands before it"
    whence = came.get(first.link, into if first.link.startswith(_INTO) else f"was emitted by {first.link}")
    return f"The first number that is not finite {whence}: leaf {first.leaf}, {shares}."
