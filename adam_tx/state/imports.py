"""`import_state`: the state of a transformation from a flat dict of arrays, by role and parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adam_tx._core.leaves import Leaves
from adam_tx.state.arrays import Array
from adam_tx.state.averages import Averages
from adam_tx.state.entries import LeafEntry, SharedEntry, weighed
from adam_tx.state.exported import Exported
from adam_tx.state.importer import StateImporter
from adam_tx.state.policy import ImportPolicy
from adam_tx.state.reader import entries_of
from adam_tx.state.report import Report
from adam_tx.state.roles import COUNT, Key
from adam_tx.state.shared import SharedImporter


def import_state(
    tx: optax.GradientTransformation,
    params: optax.Params,
    exported: Mapping[str, object],
    *,
    fresh: str = "",
    drop: str = "",
    report: Callable[[str], object] | None = print,
) -> optax.OptState:
    """The state of a transformation from what `export_state` or another framework gave.

    Its structure, dtypes and shardings are those of `tx.init(params)`. Moments go through
    float32; eight-bit ones are taken as they are if both sides store them so.

    A debiasing weight that is not there is computed from the count and the decay that made
    the average, `nu.decay`, whatever the decay from now on is; where the dict does not say
    it, it is asked for. An average that Optax will correct by its count and another decay is
    multiplied by a factor, so that its corrected value stays. Numbers of the recipe, such as
    injected hyperparameters, are those of `tx`. What a wrapper counts and measures begins as
    `init` begins it where nothing came for it.

    Args:
      tx: the transformation that is to go on.
      params: the parameters.
      exported: the dict; see `export_state` for its keys.
      fresh: a pattern as for `adam_tx.groups`, of roles or whole keys that start as `init`
        starts them, whatever came: `"nu_max"`, `"*/new_head/*"`.
      drop: such a pattern of what may be left over.
      report: what to do with the text that says what was started fresh, converted or
        dropped, and which numbers of the recipe are others now; None for nothing. It is called
        only if there is any.

    Returns:
      The state.

    Raises:
      ValueError: what is missing, left over, of another shape or no number, each named; a
        quantity that looks alike but is another; parameters of one link with different counts;
        gathered gradients of more steps than `optax.MultiSteps` gathers; an unknown decay.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> import optax
    >>> params = {"kernel": jnp.ones(2)}
    >>> old, new = optax.adam(1e-3), adam_tx.adamw(1e-3)
    >>> state = adam_tx.import_state(new, params, adam_tx.export_state(old.init(params), params, old))
    >>> list(state)
    ['bias_correction', 'count', 'scale_by_momentum', 'scale_by_rms']
    """
    if not isinstance(exported, Mapping):
        raise TypeError(f"exported: it must be a dict as export_state gives it, got a {type(exported).__name__}.")
    if wrong := [key for key in exported if not isinstance(key, str)]:
        raise TypeError(f"exported: its keys must be str, as export_state gives them, got {wrong[0]!r}.")
    state, importer = imported(tx, params, exported, ImportPolicy(fresh, drop))
    if report is not None and importer.report.is_worth_telling:
        report(str(importer.report))
    return state


def imported(
    tx: optax.GradientTransformation,
    params: optax.Params,
    given: Mapping[str, object] | Mapping[Key, object],
    policy: ImportPolicy,
) -> tuple[optax.OptState, StateImporter]:
    """The state, and the importer that knows what became of everything."""
    if not isinstance(tx, optax.GradientTransformation):
        raise TypeError(f"tx must be a transformation, such as adam_tx.adam(1e-3), got {tx!r}.")
    template = tx.init(params)
    entries = entries_of(tx, template, params)
    arrays, treedef = jax.tree.flatten(template)
    own = {entry.role for entry in entries}
    came = {key if isinstance(key, Key) else Key.parse(key, own): value for key, value in given.items()}
    report = Report()
    exported = Exported(came, policy, report)
    averages = Averages(exported, weighed(entries), count_restarts=policy.starts(Key(COUNT)))
    importer = StateImporter(Leaves.of_params(params), exported, policy, report, arrays, averages)
    of_leaves = [entry for entry in entries if isinstance(entry, LeafEntry)]
    # what is there under its own name is no look-alike of anything else
    for entry in sorted(of_leaves, key=lambda entry: importer.key(entry) not in exported.entries):
        importer.take(entry)
    shared = SharedImporter(importer)
    for entry in entries:
        if isinstance(entry, SharedEntry):
            shared.take(entry)
    shared.finish()
    importer.finish(shared.figures)
    keys = [importer.key(entry) if isinstance(entry, LeafEntry) else Key(entry.role) for entry in entries]
    idle = policy.idle(keys, came)
    if report.wrong:
        raise _misfits([*report.wrong, *idle], len(report.wrong), policy)
    report.notes += idle
    placed = [_placed(importer.new[i], old) if i in importer.new else old for i, old in enumerate(arrays)]
    return treedef.unflatten(placed), importer


def _misfits(problems: Sequence[str], number: int, policy: ImportPolicy) -> ValueError:
    listing = "".join(f"\n  {problem}" for problem in problems)
    if policy.recipe:
        return ValueError(
            f"migrate: {number} of what the old state keeps does not fit new_tx:{listing}\nSay "
            "what may start as init does, as in fresh='nu_max|*/new_head/*'; what came for it is then dropped."
        )
    return ValueError(
        f"exported: {number} of the entries do not fit the state of this tx:{listing}\nMend them, or "
        "say what may start as init does, as in fresh='nu_max|*/new_head/*', and what may be left over, as in "
        "drop='trace'."
    )


def _placed(new: Array | jax.Array, old: jax.Array) -> jax.Array:
    """The array in the dtype and the place of the one that `init` made."""
    if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(new), impl=jax.random.key_impl(old))
    new = new if isinstance(new, jax.Array) else np.asarray(new).astype(old.dtype)
    # an array that init leaves free to go where it is needed must stay so
    return jax.device_put(new, old.sharding) if old.committed else jnp.asarray(new)
