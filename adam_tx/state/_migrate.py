"""`migrate`: go on with the state of one recipe under another."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

import optax

from adam_tx.state.arrays import Array
from adam_tx.state.entries import LeafEntry
from adam_tx.state.export import exported_entries
from adam_tx.state.imports import imported
from adam_tx.state.policy import ImportPolicy
from adam_tx.state.reader import entries_of
from adam_tx.state.roles import Key


def migrate(
    old_state: optax.OptState,
    old_tx: optax.GradientTransformation,
    new_tx: optax.GradientTransformation,
    params: optax.Params,
    *,
    old_params: optax.Params | None = None,
    rename: Mapping[str, str] | None = None,
    fresh: str = "",
    report: Callable[[str], object] | None = print,
) -> optax.OptState:
    """The state for a changed recipe, with all that has the same meaning in both.

    Moments, counts and debiasing weights are kept, to the last bit where both sides store
    them alike, whatever stands around them: schedules, decay, clipping, masks, groups, a
    guard, a monitor, `optax.chain`. What only the new recipe has starts as its `init`
    starts it, and what only the old one had is dropped. An account of all that is printed::

        kept:           mu (2), nu (2), count, weight_mu, weight_nu
        started fresh:  nu_max (2)

    A quantity that looks alike and is another is converted where that is exact: a momentum
    with a constant learning rate inside it, Adam's nu to Adam-mini's. Where it is not, as
    for AMSGrad's maximum of nu and that of nu debiased, migrate refuses, and says why. The
    numbers of a recipe are no state: those of `optax.inject_hyperparams` are the new ones, and
    the account says what the old ones were.

    Args:
      old_state: the state.
      old_tx: the transformation that made it.
      new_tx: the one that is to go on.
      params: the parameters of the new one.
      old_params: those of the old one, or their shapes (`jax.eval_shape`), where they were
        others.
      rename: new paths of parameters by old ones; of a part of the tree all below it move:
        `{"encoder/old": "encoder/new"}`.
      fresh: a pattern as for `adam_tx.groups`, of roles or whole keys of the new recipe that
        start fresh, whatever the old state has: `"nu_max_of_debiased"`; `"*"` for all.
      report: what to do with the account; None for nothing.

    Returns:
      A state of `new_tx`, with the structure, dtypes and shardings of `new_tx.init(params)`.

    Raises:
      ValueError: a state that is not of `old_tx` and `old_params`; a quantity that cannot be
        converted; moments of another shape than their parameter; a rename of nothing; a
        migration that would keep nothing.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.ones(2)}
    >>> old, new = adam_tx.adamw(1e-3), adam_tx.guard(adam_tx.lion(1e-4))
    >>> state = adam_tx.migrate(old.init(params), old, new, params)
    kept:           mu (1), count
    converted:      steps from count
    started fresh:  guard.skipped, guard.skipped_in_a_row, guard.norm
    dropped:        nu (1), weight_nu, weight_mu
    """
    old_params = params if old_params is None else old_params
    entries = entries_of(old_tx, old_state, old_params)
    exported = exported_entries(old_state, old_params, entries)
    if rename:
        exported = _renamed(exported, rename)
    state, importer = imported(new_tx, params, exported, ImportPolicy(fresh, recipe=True))
    roles = dict.fromkeys(entry.role for entry in entries if isinstance(entry, LeafEntry))
    lost = [str(role) for role in roles if importer.exported.is_left(role)]
    missing = [str(role) for role in importer.missing]
    if lost and missing and not importer.filled:
        raise ValueError(
            f"migrate: nothing that the old state keeps of a parameter would be kept: {', '.join(lost)} would be "
            f"dropped, and {', '.join(missing)} start fresh. Are the parameters others? Then give old_params "
            f"and rename. If it is meant, say so: fresh='{'|'.join(missing)}', or fresh='*' to begin anew."
        )
    if report is not None:
        report(str(importer.report))
    return state


def _renamed(exported: Mapping[Key, Array], rename: Mapping[str, str]) -> dict[Key, Array]:
    """The dict with other paths; a path is moved by the longest part of it that is named."""
    unused = set(rename)
    moved: dict[Key, Array] = {}
    for key, value in exported.items():
        path = key.path
        ends = [n for n, letter in enumerate(path) if letter == "/"] + [len(path)]
        named = [path[:end] for end in ends if path[:end] in rename]
        if path and named:
            unused.discard(named[-1])
            path = rename[named[-1]] + path[len(named[-1]) :]
        new = key._replace(path=path)
        if new in moved:
            raise ValueError(f"rename: two parameters would be called {path}; give the other one a new name, too.")
        moved[new] = value
    if unused:
        paths = sorted({key.path for key in exported if key.path})
        close = difflib.get_close_matches(min(unused), paths, cutoff=0.3) or paths[:3]
        raise ValueError(f"rename: there is no parameter {min(unused)!r}; there are, for example, {', '.join(close)}.")
    return moved
