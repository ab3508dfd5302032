"""PyTorch: what `swa_utils.AveragedModel.state_dict()` holds, from and to the form of `adam_tx.export_state`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optax

from adam_tx._core.boxes import leaves_with_paths
from adam_tx._core.leaves import is_absent
from adam_tx._core.paths import slashed, some
from adam_tx.interop._parameters import Axes, Entries, Parameters
from adam_tx.interop._torch_state import as_array
from adam_tx.state import roles
from adam_tx.state.arrays import Array
from adam_tx.state.policy import names as matches
from adam_tx.state.roles import Key, Role

_WHAT = "torch.optim.swa_utils.AveragedModel"
_COUNT, _MODULE = "n_averaged", "module."


def from_averaged_model(
    state_dict: Mapping[str, object],
    params: optax.Params,
    *,
    names: Mapping[str, str] | None = None,
    axes: Axes = None,
    uniform: bool = False,
    name: str = "average",
    drop: str = "",
) -> dict[str, object]:
    """What PyTorch's averaged model keeps, for `adam_tx.import_state`.

    It goes beside the optimizer's own state, into that of `adam_tx.average_weights` with
    `start=1`, or the update after which PyTorch averaged first::

        exported = from_state_dict(optimizer.state_dict(), params) | from_averaged_model(ema.state_dict(), params)

    Args:
      state_dict: `averaged_model.state_dict()`, of tensors or of NumPy arrays.
      params: our parameters, or their shapes.
      names: the paths of our parameters by PyTorch's names, without "module."; None, or for
        names that are not there, the names with slashes for dots.
      axes: as for `from_state_dict`.
      uniform: whether it is the mean (SWA), so that `n_averaged` matters; else a moving average.
      name: that of `average_weights`.
      drop: a pattern, as for `adam_tx.groups`, of PyTorch's names that may be lost: of buffers, such as "*running_*".

    Returns:
      The dict.

    Raises:
      ValueError: what is no such state_dict; a parameter that is not there or of another
        shape; what is no parameter and is not dropped; a model that has averaged nothing yet.

    Reference: torch/optim/swa_utils.py in PyTorch 2.13.

    >>> import adam_tx
    >>> import numpy as np
    >>> state_dict = {"n_averaged": np.int64(3), "module.dense.weight": np.ones((1, 2))}
    >>> params = {"dense": {"kernel": np.zeros((2, 1), np.float32)}}
    >>> read = adam_tx.interop.torch.from_averaged_model(
    ...     state_dict,
    ...     params,
    ...     names={"dense.weight": "dense/kernel"},
    ...     axes=adam_tx.interop.torch.flax_axes,
    ...     uniform=True,
    ... )
    >>> read["average_weights.averaged"], read["average/dense/kernel"].shape
    (array(3.), (2, 1))
    """
    if not isinstance(state_dict, Mapping) or _COUNT not in state_dict:
        raise ValueError(
            f"{_WHAT}: state_dict must be what its state_dict() gives, with {_COUNT}, got {state_dict!r:.80}."
        )
    averaged = as_array(state_dict[_COUNT])
    if np.ndim(averaged) or not np.issubdtype(averaged.dtype, np.integer) or averaged < 1:
        raise ValueError(
            f"{_WHAT}: {_COUNT} must be a whole number of at least 1, got {averaged}. If nothing is averaged yet, call "
            "init instead."
        )
    paths = _paths(state_dict, params, names, drop)
    parameters = Parameters(_WHAT, params, list(paths.values()), axes)
    average, count = _roles(name)
    found: dict[Key, Any] = {
        Key(average, path): parameters.ours(path, theirs, as_array(state_dict[_MODULE + theirs]))
        for theirs, path in paths.items()
    }
    if uniform:
        found[Key(count)] = np.asarray(averaged, np.float64)
    return {str(key): value for key, value in found.items()}


def to_averaged_model(
    exported: Mapping[str, object],
    state_dict: Mapping[str, object],
    params: optax.Params,
    *,
    names: Mapping[str, str] | None = None,
    axes: Axes = None,
    name: str = "average",
    tensor: Callable[[Array], object] | None = None,
) -> dict[str, object]:
    """What `load_state_dict` of PyTorch's averaged model takes, from what `adam_tx.export_state` gave.

    Args:
      exported: the dict.
      state_dict: that of the averaged model, of which buffers are taken over.
      params: as for `from_averaged_model`.
      names: as for `from_averaged_model`.
      axes: as for `from_averaged_model`.
      name: as for `from_averaged_model`.
      tensor: what makes tensors: `torch.from_numpy`. None for NumPy arrays.

    Returns:
      The dict, with `n_averaged` as it was counted; for a moving average, which does not
      depend on it, the number of updates.

    Raises:
      ValueError: a parameter without an average.

    See `from_averaged_model` for an example.
    """
    entries = Entries(_WHAT, exported)
    paths = _paths(state_dict, params, names, "*")
    parameters = Parameters(_WHAT, params, list(paths.values()), axes)
    average, count = _roles(name)
    made = tensor or np.asarray
    found = dict(state_dict)
    for theirs, path in paths.items():
        found[_MODULE + theirs] = made(parameters.theirs(path, theirs, entries.needed(Key(average, path), theirs)))
    counted = entries.get(Key(count))
    updates = entries.needed(Key(roles.COUNT)) if counted is None else np.rint(counted)
    found[_COUNT] = made(np.asarray(updates, np.int64))
    return found


def _roles(name: str) -> tuple[Role, Role]:
    """The roles of an average of this name, and of how many weights are in it."""
    if name == "average":
        return Role("average"), Role("average_weights.averaged")
    return Role(f"average.{name}"), Role(f"average_weights.averaged.{name}")


def _paths(
    state_dict: Mapping[str, object], params: optax.Params, names: Mapping[str, str] | None, drop: str
) -> dict[str, str]:
    """Our paths by PyTorch's names; each of our parameters must have one."""
    ours = {slashed(path) for path, leaf in leaves_with_paths(params, is_absent) if not is_absent(leaf)}
    theirs = [key.removeprefix(_MODULE) for key in state_dict if key.startswith(_MODULE)]
    known = names or {}
    paths = {key: known.get(key, key.replace(".", "/")) for key in theirs}
    found = {key: path for key, path in paths.items() if path in ours}
    left = [key for key in theirs if key not in found and not (drop and matches(drop, Key(Role(key))))]
    missing = sorted(ours - set(found.values()))
    if left or missing:
        of_ours = f"is no parameter: {some(left)}" if left else f"is not there: {some(missing)}"
        raise ValueError(
            f"{_WHAT}: names must say of each of its parameters which of {some(sorted(ours))} it is, but what came "
            f"{of_ours}. Mend names; what is a buffer may be lost with drop={left[0] if left else '*running_*'!r}."
        )
    return found
