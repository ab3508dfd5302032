"""`export_state`: a state as a flat dict of NumPy arrays, by role and parameter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from adam_tx._core import numerics
from adam_tx._core.leaves import Leaves
from adam_tx._core.storage import Stored
from adam_tx.state.parts import parts_of
from adam_tx.state.roles import OfLeaf, OfMany, Part, Role


def export_state(opt_state: optax.OptState, params: optax.Params, tx: optax.GradientTransformation) -> dict[str, Any]:
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
    return written(opt_state, params, parts_of(tx, opt_state, params))


def written(state: Any, params: Any, parts: list[Part]) -> dict[str, Any]:
    """The dict of a state whose parts are known."""
    leaves, arrays, found = Leaves.of_params(params), jax.tree.leaves(state), {}
    scalars: dict[Role, list[tuple[frozenset[int], np.ndarray[Any, Any]]]] = {}
    rates: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
    gathered: set[str] = set()
    for part in parts:
        values = to_host(arrays[part.values])
        if isinstance(part, OfMany):
            scalars.setdefault(part.role._replace(rate=1.0), []).append((part.leaves, values))
            continue
        key = key_of(part.role, leaves.paths[part.leaf])
        _check_shape(part, leaves, values)
        if key in found:
            raise ValueError(
                f"params: two leaves have the path {leaves.paths[part.leaf]}; give one of them another name."
            )
        value = decoded(part, values, None if part.scales is None else to_host(arrays[part.scales]))
        found[key] = value if part.shape is None else value.reshape(part.shape)
        if part.scales is not None:
            found |= dict(zip(raw_keys(part, key), (values, to_host(arrays[part.scales])), strict=True))
        rates.setdefault(str(part.role), {})[leaves.paths[part.leaf]] = np.asarray(part.role.rate)
        gathered |= {str(part.role)} if part.gathers else set()
    for role, values in rates.items():
        if role in gathered or any(value != 1.0 for value in values.values()):
            found |= collapsed(values, f"{role}.rate")
    found |= _decays(parts, leaves)
    for role, values in scalars.items():
        found |= _of_many(role, leaves, values, found)
    return found


def _decays(parts: list[Part], leaves: Leaves) -> dict[str, Any]:
    """The decays of averages that have no weight beside them, or by which several of a role are told apart."""
    averages = [part for part in parts if isinstance(part, OfLeaf) and part.averages and part.decay is not None]
    weighed = {
        (part.averages, leaf) for part in parts if isinstance(part, OfMany) and part.link for leaf in part.leaves
    }
    numbered = {str(part.role) for part in averages if NUMBERED.search(str(part.role))}
    numbered |= {NUMBERED.sub("", role) for role in numbered}
    decays: dict[str, dict[str, Any]] = {}
    for part in averages:
        role = str(part.role)
        own = "." in role  # of one link alone, to which nothing else is compared
        if role in numbered or not (own or (part.averages, part.leaf) in weighed):
            decays.setdefault(role, {})[leaves.paths[part.leaf]] = np.asarray(part.decay)
    return {key: value for role, values in decays.items() for key, value in collapsed(values, f"{role}.decay").items()}


def _check_shape(part: OfLeaf, leaves: Leaves, values: Any) -> None:
    """Refuse what a link keeps of a parameter of another shape."""
    whole = part.link is not None and part.slot not in part.link.rule.shape and "basis" not in part.role.of
    if whole and values.shape != np.shape(leaves.params[part.leaf]):
        raise ValueError(
            f"opt_state: {part.role} of {leaves.paths[part.leaf]} has shape {values.shape}, but the parameter has "
            f"{np.shape(leaves.params[part.leaf])}. Give the params that the state was made for."
        )


def _of_many(
    role: Role, leaves: Leaves, values: list[tuple[frozenset[int], Any]], found: Mapping[str, Any]
) -> dict[str, Any]:
    """One entry if all parameters have the same, else one for each; none for a second count that is the first."""
    (_, first), *rest = values
    if not all(same(value, first) for _, value in rest):
        return {key_of(role, leaves.paths[leaf]): value for arrays, value in values for leaf in sorted(arrays)}
    before = _NUMBERED_COUNT.fullmatch(str(role))
    return {} if before and before[1] in found and same(found[before[1]], first) else {str(role): first}


RAW = re.compile(r"@(codes|scales)\w*$")
"""How the keys of what is stored in codes and scales end."""
NUMBERED = re.compile(r"_\d+(?=$|_of_)")
"""The number of a second one of a role."""
ABOUT = (".rate", ".decay")
"""How the roles of entries end that say something about others."""
_NUMBERED_COUNT = re.compile(r"(count|steps)_\d+")


def keys_of_count(name: str) -> tuple[str, ...]:
    """The keys to look for a shared number under: a second count may be the first, and steps the updates made."""
    numbered = _NUMBERED_COUNT.fullmatch(name)
    first = numbered[1] if numbered else name
    return tuple(dict.fromkeys((name, first, "count" if first == "steps" else first)))


def same(one: Any, other: Any) -> bool:
    """Whether two shared numbers are the same, be they NaN."""
    return np.array_equal(one, other, equal_nan=np.asarray(one).dtype.kind in "fc")


def collapsed(values: Mapping[str, Any], role: str) -> dict[str, Any]:
    """By path of a parameter what each has: one entry if all have the same, else one for each."""
    given = list(values.values())
    if given and all(same(value, given[0]) for value in given):
        return {role: given[0]}
    return {key_of(role, path): value for path, value in values.items()}


def of_parameter(exported: Mapping[str, Any], role: str, path: str) -> Any:
    """The entry of a parameter, or the one that all share; None without either."""
    return exported.get(key_of(role, path), exported.get(role))


def key_of(role: Role | str, path: str) -> str:
    """The key of what has this role for the parameter at this path, which is empty where there is only one."""
    return f"{role}/{path}" if path else str(role)


def to_host(array: Any) -> np.ndarray[Any, Any]:
    """The array as NumPy's, all of it on every host."""
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.array(array)


def decoded(part: OfLeaf, values: Any, scales: Any) -> np.ndarray[Any, Any]:
    """What is stored, in float32 or wider; whole numbers as they are."""
    if part.link is None or (scales is None and values.dtype.kind in "iu"):
        return values.astype(np.float32) if values.dtype in NARROW else values
    stored = Stored(jnp.asarray(values), None if scales is None else jnp.asarray(scales))
    dtype = jnp.dtype(jnp.float32) if scales is not None else numerics.working(values.dtype)
    decoded = part.link.storage[part.slot].decode(stored, dtype)
    return np.array(decoded)


NARROW = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))


def raw_keys(part: OfLeaf, key: str) -> tuple[str, str]:
    """The keys of what is stored in codes and scales."""
    assert part.link is not None
    format_ = part.link.storage[part.slot].scales_of("")
    return f"{key}@codes{format_}", f"{key}@scales{format_}"
