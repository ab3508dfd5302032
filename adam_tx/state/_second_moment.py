"""`second_moment`: what an optimizer knows of the size of each element's gradient, as a tree like the parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adam_tx._core import blocks
from adam_tx._core.blocks import Shape
from adam_tx._core.leaves import Leaves, Tree, is_absent
from adam_tx._core.paths import some
from adam_tx.state.arrays import read, shapes_of
from adam_tx.state.entries import LeafEntry, SharedEntry, StateEntry
from adam_tx.state.reader import entries_of
from adam_tx.state.roles import NU, NU_COL, NU_MAX, NU_ROW, Role

_REFUSED = {
    "basis": "it is kept in another basis, in which no element belongs to one of the parameter",
    "sums": "it is a sum over each block, which says nothing of one element",
}
"""Why what is kept says nothing of an element, by the words of its role."""


def second_moment(
    opt_state: optax.OptState, params: optax.Params, tx: optax.GradientTransformation, role: str | None = None
) -> Tree:
    """The average of the squared gradient that an optimizer keeps, as a tree like the parameters.

    It is nu, debiased as the optimizer debiases it: `sqrt` of it, plus epsilon, is what Adam
    divides by at its next step if no gradient comes. It is found by its role, as
    `adam_tx.export_state` finds it, in any chain, wrapper or group and in any storage. So it works for
    our optimizers and for Optax's, also under `jax.jit`. By role this is

        nu                    of Adam and most others; of centered RMSprop with the mean still in it
        nu, as row and column of Adafactor: row · column / mean of the row
        nu_of_blocks          of Adam-mini: the mean of a block, at each of its elements
        nu_max                of AMSGrad, which has nu too, so say which: the maximum of nu, debiased
                              as nu is; `nu_max_of_debiased` (Optax) as it is kept
        nu_yogi, nu_belief    of Yogi and AdaBelief, the latter of what the momentum did not foresee
        sum_of_squares        of Adagrad: the sum over all updates
        nu_of_scaled, …       of something else than the gradient, as the words behind `of` say

    An average that its optimizer does not debias (RMSprop) is as it is kept.

    Args:
      opt_state: a state, of adam_tx, of Optax or of both.
      params: the parameters, or their shapes.
      tx: the transformation that made the state.
      role: which one, as text, where a parameter has several: "nu", "nu_max". A role that is no
        second moment may be named, too. None for the only one.

    Returns:
      A tree like params, of non-negative arrays of their shapes, float32 or wider; zero before
      the first update. A parameter of which no second moment is kept, such as a frozen one, has
      `optax.MaskedNode()` in its place. What is absent in params stays as it is.

    Raises:
      ValueError: no second moment of any parameter, or several of one; one that says nothing of
        elements (SOAP's in its basis, NovoGrad's sum over a tensor); a correction by a decay that is
        not known; a state of another transformation or of other parameters.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.ones(2), "bias": jnp.zeros(1)}
    >>> tx = adam_tx.groups({"bias": "freeze"}, adam_tx.adam(1e-3))
    >>> grads = {"kernel": jnp.array([3.0, -4.0]), "bias": jnp.ones(1)}
    >>> _, state = tx.update(grads, tx.init(params), params)
    >>> adam_tx.second_moment(state, params, tx)
    {'bias': MaskedNode(), 'kernel': Array([ 9., 16.], dtype=float32)}
    """
    entries = entries_of(tx, opt_state, params)
    leaves = Leaves.of_params(params)
    wanted = _wanted(entries, leaves, role)
    shapes = shapes_of(leaves)
    reading = _Reading(jax.tree.leaves(opt_state), entries)
    column: list[Any] = [node if is_absent(node) else optax.MaskedNode() for node in leaves.nodes]
    for leaf, parts in wanted.items():
        column[leaf] = reading.whole(parts, shapes[leaf], leaves.path(leaf))
    return leaves.tree(column)


def _wanted(entries: Sequence[StateEntry], leaves: Leaves, role: str | None) -> dict[int, list[LeafEntry]]:
    """By parameter the entries of its one second moment: one, or those of its rows and columns."""
    kept: dict[int, dict[str, list[LeafEntry]]] = {}
    others: dict[str, None] = {}
    for entry in entries:
        if isinstance(entry, LeafEntry):
            name = _name(entry.role)
            if name == role or (role is None and _is_second_moment(entry)):
                kept.setdefault(entry.leaf, {}).setdefault(name, []).append(entry)
            others[name] = None
    if not kept:
        raise ValueError(
            f"second_moment: tx keeps no {role or 'second moment'} of any parameter, only "
            f"{some(list(others)) or 'nothing'}. Give another role, if that is what you need."
        )
    for leaf, by_name in kept.items():
        if len(by_name) > 1:
            names = list(by_name)
            raise ValueError(f"second_moment: leaf {leaves.path(leaf)} has {names}; say which: role={names[-1]!r}.")
    return {leaf: parts for leaf, by_name in kept.items() for parts in by_name.values()}


def _is_second_moment(entry: LeafEntry) -> bool:
    return entry.is_square and entry.role.known.power in (2, None) and not entry.of_basis


def _name(role: Role) -> str:
    """The role as text, that of the whole for rows and columns."""
    return str(role._replace(base=NU.base) if role.base in (NU_ROW.base, NU_COL.base) else role)


class _Reading:
    """Reads what is kept of parameters, debiased."""

    def __init__(self, arrays: Sequence[jax.Array], entries: Sequence[StateEntry]) -> None:
        self._arrays = arrays
        shared = [entry for entry in entries if isinstance(entry, SharedEntry)]
        self._weights = [entry for entry in shared if entry.is_of_average]

    def whole(self, parts: Sequence[LeafEntry], shape: Shape, where: str) -> jax.Array:
        """What is kept of a parameter, in its shape."""
        values = {part.role.base: self._debiased(part, where) for part in parts}
        if NU_ROW.base in values:
            value = blocks.outer(values[NU_ROW.base], values[NU_COL.base])
        else:
            (value,) = values.values()
        if not blocks.divides(value.shape, shape):
            raise ValueError(
                f"opt_state: {parts[0].role} of leaf {where} has shape {value.shape}, but the parameter has {shape}. "
                "Give the params that the state was made for."
            )
        return jnp.broadcast_to(blocks.expand(value, shape), shape)

    def _debiased(self, entry: LeafEntry, where: str) -> jax.Array:
        """What is kept, without what is left of its start from zero."""
        if reason := next((reason for word, reason in _REFUSED.items() if word in entry.role.words), ""):
            raise ValueError(
                f"second_moment: {entry.role} of leaf {where} cannot be given: {reason}. adam_tx.export_state gives it "
                "as it is."
            )
        scales = None if entry.scales is None else self._arrays[entry.scales]
        value = read(entry, self._arrays[entry.values], scales)
        value = value if entry.shape is None else value.reshape(entry.shape)
        if "debiased" in entry.role.words or (weight := self._weight(entry, where)) is None:
            return value
        weight = weight.astype(value.dtype)
        return value / jnp.where(weight > 0, weight, 1.0)

    def _weight(self, entry: LeafEntry, where: str) -> jax.Array | None:
        """The weight that an average has put on gradients so far; None if the optimizer does not correct it."""
        if entry.corrected_by is not None:
            return self._weight_by_count(entry, self._arrays[entry.corrected_by], where)
        # the maximum of an average is corrected as that is
        kind = "square" if entry.role.base == NU_MAX.base else entry.averages
        weights = [weight for weight in self._weights if weight.averages == kind and entry.leaf in weight.leaves]
        own = [weight for weight in weights if weight.decay == entry.decay] or weights
        return jnp.sum(self._arrays[own[0].values]) if own else None

    def _weight_by_count(self, entry: LeafEntry, count: jax.Array, where: str) -> jax.Array:
        """`1 - decay^count`, by which Optax corrects."""
        if entry.decay is None:
            raise ValueError(
                f"second_moment: {entry.role} of leaf {where} is debiased by the number of updates and a decay that is "
                "not known here: it is a schedule, or injected. Take the optimizer of adam_tx, which keeps the weight, "
                "or name the decay in static_args of optax.inject_hyperparams."
            )
        updates = jnp.asarray(count).astype(jnp.result_type(float))
        return -jnp.expm1(updates * math.log(entry.decay)) if entry.decay else jnp.minimum(updates, 1.0)
