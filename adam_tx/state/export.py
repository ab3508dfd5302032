"""`export_state`: a state as a flat dict of NumPy arrays, by role and parameter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from adam_tx._core.blocks import Shape
from adam_tx._core.leaves import Leaves
from adam_tx.state.arrays import Array, decoded, same, shapes_of, to_host
from adam_tx.state.entries import Average, LeafEntry, SharedEntry, StateEntry, weighed
from adam_tx.state.reader import entries_of
from adam_tx.state.roles import About, Key, Role


def export_state(opt_state: optax.OptState, params: optax.Params, tx: optax.GradientTransformation) -> dict[str, Array]:
    """The state as a flat dict of NumPy arrays, which no other code has to know adam_tx to read.

    Its keys are roles, and paths of parameters behind them::

        mu/decoder/kernel     the average of gradients
        nu/decoder/kernel     the average of their squares
        count                 the number of updates
        weight_mu, weight_nu  1 - Π decay of these averages, as two numbers to add

    They do not depend on the order of links in a chain, on what links are called, on
    wrappers and groups around them, nor on how moments are stored. Other roles are

        nu_max, nu_max_of_debiased    AMSGrad's maximum of nu, or of nu debiased (Optax)
        nu_inf, nu_inf_of_stored_eps  AdaMax's maximum, or that with epsilon in it
        sum_of_squares, trace, mean   of Adagrad, SGD's momentum, centered RMSprop
        nu_row, nu_col, nu_of_blocks  of Adafactor, Adam-mini
        nu_yogi, nu_belief            of Yogi, AdaBelief
        previous_gradient, start      of MARS, of `decay_to_start`
        average, average.<name>       of `average_weights`, and of Keras's `use_ema`
        residual_of_8_bits, …         of parameters with fewer bits than their updates
        weight_mu_read                1 - Π decay of what NAdam looks ahead with,
        weight_nu_look_ahead          and of what AdaBelief looks ahead with
        steps                         of what may skip updates, where count is of those made
        guard.skipped, …              whatever else, as <link>.<field>

    An average of something else than the gradient says so: `mu_of_scaled` of updates that
    were divided by their size before (LaProp), `trace_of_steps` of such that had been
    multiplied by the learning rate, `_of_basis` in another basis (SOAP), `_of_changed` of what
    another link made of it. The constant that it was multiplied by before stands beside it,
    with its sign, where that is not one: `trace_of_steps.rate`, infinite for a schedule. Of several
    of a role and parameter all but the fastest are numbered, `mu_2`. `mu.decay` is the decay of an
    average that has no weight beside it (Optax), or that is one of several.

    Moments are float32, or wider where they are. What is stored in eight bits is there once
    more as it is, under `<key>@codes_by_128` and `<key>@scales_by_128`. Where a count is not
    the same for all parameters, it is given for each, `count/decoder/kernel`.

    Args:
      opt_state: a state, of adam_tx, of Optax or of both.
      params: the parameters, or their shapes (`jax.eval_shape`).
      tx: the transformation that made the state. Only it knows what stands where: the
        states of Optax's Adam and AdaMax have one type.

    Returns:
      A dict for `import_state`, `numpy.savez`, or code of other frameworks. On several
      hosts every one gets all of it.

    Raises:
      ValueError: a state of another transformation, or of other parameters.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.ones(2)}
    >>> tx = adam_tx.adam(1e-3)
    >>> sorted(adam_tx.export_state(tx.init(params), params, tx))
    ['count', 'mu/kernel', 'nu/kernel', 'weight_mu', 'weight_nu']
    """
    entries = exported_entries(opt_state, params, entries_of(tx, opt_state, params))
    return {str(key): value for key, value in entries.items()}


def exported_entries(
    opt_state: optax.OptState, params: optax.Params, entries: Sequence[StateEntry]
) -> dict[Key, Array]:
    """The dict of a state whose entries are known."""
    leaves = Leaves.of_params(params)
    arrays = jax.tree.leaves(opt_state)
    shapes = shapes_of(leaves)
    of_leaves = [entry for entry in entries if isinstance(entry, LeafEntry)]
    found: dict[Key, Array] = {}
    for entry in of_leaves:
        key = Key(entry.role, leaves.paths[entry.leaf])
        if key in found:
            raise ValueError(f"params: two leaves have the path {key.path}; give one of them another name.")
        found |= _of_leaf(entry, key, shapes[entry.leaf], arrays)
    found |= _rates(of_leaves, leaves)
    found |= _decays(of_leaves, leaves, weighed(entries))
    shared: dict[Role, list[tuple[frozenset[int], Array]]] = {}
    for entry in entries:
        if isinstance(entry, SharedEntry):
            shared.setdefault(entry.role, []).append((entry.leaves, to_host(arrays[entry.values])))
    for role, values in shared.items():
        found |= _of_many(role, leaves, values, found)
    return found


def _of_leaf(entry: LeafEntry, key: Key, shape: Shape, arrays: Sequence[jax.Array]) -> dict[Key, Array]:
    """What is kept of a parameter, and beside it the codes and scales that it is stored as."""
    values = to_host(arrays[entry.values])
    has_its_shape = entry.link is not None and entry.slot not in entry.link.rule.shape
    if has_its_shape and "basis" not in entry.source.words and values.shape != shape:
        raise ValueError(
            f"opt_state: {key.role} of {key.path} has shape {values.shape}, but the parameter has "
            f"{shape}. Give the params that the state was made for."
        )
    if entry.scales is None:
        value = decoded(entry, values, None)
        return {key: value if entry.shape is None else value.reshape(entry.shape)}
    scales = to_host(arrays[entry.scales])
    return {key: decoded(entry, values, scales), **dict(zip(entry.stored_keys(key), (values, scales), strict=True))}


def _rates(entries: Sequence[LeafEntry], leaves: Leaves) -> dict[Key, Array]:
    """The constants that gradients were multiplied by, where they are not one, or could be the number of gradients."""
    told = {entry.role for entry in entries if entry.gathers or entry.source.rate != 1}
    return _about("rate", leaves, [(entry, entry.source.rate) for entry in entries if entry.role in told])


def _decays(entries: Sequence[LeafEntry], leaves: Leaves, weighed: set[Average]) -> dict[Key, Array]:
    """The decays of averages that have no weight beside them, or by which several of a role are told apart."""
    averages = [(entry, entry.decay) for entry in entries if entry.averages and entry.decay is not None]
    several = {entry.role.unnumbered for entry, _ in averages if entry.role.number > 1}

    def is_needed(entry: LeafEntry) -> bool:
        alone = not entry.role.has_owner and entry.average not in weighed
        return alone or entry.role.unnumbered in several

    return _about("decay", leaves, [pair for pair in averages if is_needed(pair[0])])


def _about(about: About, leaves: Leaves, values: Iterable[tuple[LeafEntry, float]]) -> dict[Key, Array]:
    """The entries that say something about others, from what they say of each."""
    by_key: dict[Key, dict[str, Array]] = {}
    for entry, value in values:
        by_key.setdefault(Key(entry.role, about=about), {})[leaves.paths[entry.leaf]] = np.asarray(value)
    return {told: value for key, by_path in by_key.items() for told, value in collapsed(key, by_path).items()}


def _of_many(
    role: Role, leaves: Leaves, values: Sequence[tuple[frozenset[int], Array]], found: Mapping[Key, Array]
) -> dict[Key, Array]:
    """One entry if all parameters have the same, else one for each; none for a second count that is the first."""
    (_, first), *rest = values
    if not all(same(value, first) for _, value in rest):
        return {Key(role, leaves.paths[leaf]): value for owners, value in values for leaf in sorted(owners)}
    before = found.get(Key(role.unnumbered)) if role.is_count and role.number > 1 else None
    return {} if before is not None and same(before, first) else {Key(role): first}


def collapsed(key: Key, values: Mapping[str, Any]) -> dict[Key, Any]:
    """By path of a parameter what each has: one entry if all have the same, else one for each."""
    given = list(values.values())
    if given and all(same(value, given[0]) for value in given):
        return {key: given[0]}
    return {key._replace(path=path): value for path, value in values.items()}


def of_parameter(exported: Mapping[Key, Any], key: Key) -> Any:
    """The entry of a parameter, or the one that all share; None without either."""
    return exported.get(key, exported.get(key.shared))
