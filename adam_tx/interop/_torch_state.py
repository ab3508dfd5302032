"""PyTorch: what `optimizer.state_dict()["state"]` holds, from and to the form of `adam_tx.export_state`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import numpy as np
import optax

from adam_tx.interop._config import check_scheduled, number, unsupported
from adam_tx.interop._parameters import Axes, Parameters, as_texts, check_nothing_is_lost, check_weights, parsed
from adam_tx.state import roles
from adam_tx.state.arrays import Array
from adam_tx.state.debiasing import exact_pair
from adam_tx.state.export import collapsed, of_parameter
from adam_tx.state.rescale import rescaling
from adam_tx.state.roles import Key, Role

_ADAM = {"exp_avg": roles.MU, "exp_avg_sq": roles.NU}
_SLOTS: Mapping[str, Mapping[str, Role]] = {
    "Adam": {**_ADAM, "max_exp_avg_sq": roles.NU_MAX},
    "AdamW": {**_ADAM, "max_exp_avg_sq": roles.NU_MAX},
    "NAdam": _ADAM,
    "RAdam": _ADAM,
    "Adamax": {"exp_avg": roles.MU, "exp_inf": roles.NU_INF.marked(["stored_eps"])},
    "RMSprop": {"square_avg": roles.NU, "momentum_buffer": roles.TRACE.marked(["scaled"]), "grad_avg": roles.MEAN},
    "Adagrad": {"sum": roles.SUM_OF_SQUARES},
    "SGD": {"momentum_buffer": roles.TRACE},
}
"""The slots of each class, in its order, and their roles."""
_ONLY_IF = {"max_exp_avg_sq": "amsgrad", "momentum_buffer": "momentum", "grad_avg": "centered"}
"""The slots that are there only if a setting of the group is not zero."""
_OF_OTHERS: Mapping[str, Sequence[str]] = {
    "Adam": ("momentum_decay",),
    "AdamW": ("momentum_decay",),
    "NAdam": ("amsgrad",),
    "RAdam": ("momentum_decay", "amsgrad"),
}
"""Settings by which a group is known to be of another class, with slots of the same names."""
_BETAS = (roles.MU, roles.NU)
"""The averages whose decays a pair of betas has."""


def from_state_dict(
    state_dict: Mapping[str, object],
    params: optax.Params,
    optimizer: str = "Adam",
    *,
    names: Sequence[str] | Mapping[str, str] | None = None,
    axes: Axes = None,
) -> dict[str, object]:
    """What a PyTorch optimizer keeps, for `adam_tx.import_state`.

    Args:
      state_dict: `optimizer.state_dict()`, of tensors as `torch.load` gives them or of NumPy
        arrays. PyTorch itself is not needed. bfloat16 becomes float32; bitsandbytes' 8-bit
        states and torchao's are decoded.
      params: our parameters, or their shapes.
      optimizer: the class that it is of: "Adam", "AdamW", "NAdam", "RAdam", "Adamax",
        "RMSprop", "Adagrad" or "SGD".
      names: the paths of our parameters in the order of PyTorch's, or by PyTorch's names;
        None where the groups have `param_names`, which are our paths with dots for slashes.
      axes: where PyTorch has other axes than ours: by pattern of paths the numbers of its
        axes in our order, `{"*/kernel": (1, 0)}`, or a function such as `flax_axes`.

    Returns:
      The dict. `mu.decay` and `nu.decay` say by which `betas` moments were made, so that they are
      debiased rightly under other decays, too. Of a parameter that has made no step in PyTorch,
      because it is frozen or in no group, there is nothing. There is `count/<path>` where
      parameters have made different numbers of steps, which asks for an optimizer that
      counts them apart, such as `optax.partition`. PyTorch's SGD keeps no step, so there is no
      count: add it, `exported | {"count": 1000}`.

    Raises:
      ValueError: another class than said; a slot that is missing or of another shape; names
        that are not those of params; no `betas`, or such as a scheduler has varied.

    Reference: torch/optim in PyTorch 2.13.

    >>> import adam_tx
    >>> import numpy as np
    >>> slots = {"step": np.float32(3), "exp_avg": np.ones((1, 2)), "exp_avg_sq": np.ones((1, 2))}
    >>> state_dict = {"state": {0: slots}, "param_groups": [{"params": [0], "betas": (0.9, 0.999)}]}
    >>> params = {"kernel": np.zeros((2, 1), np.float32)}
    >>> read = adam_tx.interop.torch.from_state_dict(state_dict, params, names=["kernel"], axes={"kernel": (1, 0)})
    >>> read["count"], read["mu/kernel"].shape
    (array(3, dtype=int32), (2, 1))
    """
    what = f"torch.optim.{optimizer}"
    groups = _groups(what, optimizer, state_dict)
    ids, parameters = [i for group in groups for i in group["params"]], _parameters(what, groups, params, names, axes)
    group_of = {i: group for group in groups for i in group["params"]}
    state = _state(state_dict)
    if strangers := [i for i in state if i not in ids]:
        raise ValueError(
            f"{what}: state has entries for {strangers[:3]}, but the parameters in param_groups are {ids[:3]}...; give "
            "state_dict as PyTorch made it, with whole numbers as keys."
        )
    if not any(map(_entry, state.values())):
        raise ValueError(
            f"{what}: its state is empty, because it has made no step, or keeps nothing. Call init instead."
        )
    found: dict[Key, Any] = {}
    shared: dict[Key, dict[str, Any]] = {}
    for i, path in zip(ids, parameters.paths, strict=True):
        if not (entry := _entry(state.get(i))):
            continue  # it is frozen, or had no gradient yet
        group = group_of[i]
        for slot, role in _expected(what, optimizer, group, path, entry).items():
            found[Key(role, path)] = parameters.ours(path, slot, _array(entry[slot]))
            shared.setdefault(Key(role, about="rate"), {})[path] = np.asarray(_sign(group))
        for key, value in (_counted(what, path, entry) | _decays(what, group, _SLOTS[optimizer].values())).items():
            shared.setdefault(key, {})[path] = value
    for key, values in shared.items():
        if key.about != "rate" or -1.0 in values.values():
            found |= collapsed(key, values)
    return as_texts(found)


def _counted(what: str, path: str, entry: Mapping[str, Any]) -> dict[Key, Any]:
    """The count, and the weight of the decays that NAdam looks ahead with."""
    count = {Key(roles.COUNT): _step(what, path, entry["step"])} if "step" in entry else {}
    if "mu_product" not in entry:
        return count
    return count | {Key(roles.WEIGHT_MU_READ): exact_pair(_array(entry["mu_product"]))}


def _decays(what: str, group: Mapping[str, Any], kept: Collection[Role]) -> dict[Key, Any]:
    """The decays, numbers or schedules, that made averages: without them nothing is debiased rightly."""
    if roles.MU not in kept:
        return {Key(roles.NU, about="decay"): _decay(what, "alpha", group.get("alpha"))} if roles.NU in kept else {}
    betas = group.get("betas")
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise unsupported(
            what, "betas", betas, "it must be a pair, by which moments were made and are debiased; give whole groups."
        )
    check_scheduled(what, group, "betas")
    decays = {role: _decay(what, "betas", beta) for role, beta in zip(_BETAS, betas, strict=True)}
    return {Key(role, about="decay"): decay for role, decay in decays.items() if role in kept}


def _state(state_dict: Mapping[str, object]) -> Mapping[object, Any]:
    """What is kept of each parameter, by its number."""
    return cast(Mapping[object, Any], state_dict["state"])


def _decay(what: str, key: str, value: Any) -> Any:
    return value if callable(value) else np.asarray(number(what, key, value, 0.0, 1.0))


def to_state_dict(
    exported: Mapping[str, object],
    state_dict: Mapping[str, object],
    params: optax.Params,
    optimizer: str = "Adam",
    *,
    names: Sequence[str] | Mapping[str, str] | None = None,
    axes: Axes = None,
    drop: str = "",
    tensor: Callable[[Array], object] | None = None,
) -> dict[str, object]:
    """What `load_state_dict` of a PyTorch optimizer takes, from what `adam_tx.export_state` gave.

    Args:
      exported: the dict.
      state_dict: that of the PyTorch optimizer, of which the groups are taken over.
      params: as for `from_state_dict`.
      optimizer: as for `from_state_dict`.
      names: as for `from_state_dict`.
      axes: as for `from_state_dict`.
      drop: a pattern, as for `adam_tx.groups`, of roles that PyTorch has no place for and that may be lost.
      tensor: what makes tensors: `torch.from_numpy`. None for NumPy arrays.

    Returns:
      `{"state": …, "param_groups": …}`.

    Raises:
      ValueError: what PyTorch needs and is not there, what it has no place for, and a debiasing
        weight that its `betas` would not give after so many steps.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> params, tx = {"w": jnp.ones(2)}, adam_tx.adam(1e-3)
    >>> like = {"state": {}, "param_groups": [{"params": [0], "betas": (0.9, 0.999), "amsgrad": False}]}
    >>> _, state = tx.update(params, tx.init(params), params)
    >>> exported = adam_tx.export_state(state, params, tx)
    >>> adam_tx.interop.torch.to_state_dict(exported, like, params, names=["w"])["state"][0]["exp_avg"]
    array([0.1, 0.1], dtype=float32)
    """
    what = f"torch.optim.{optimizer}"
    groups = _groups(what, optimizer, state_dict)
    parameters = _parameters(what, groups, params, names, axes)
    paths = iter(parameters.paths)
    entries = parsed(exported)
    used = set[Key]()
    made: dict[Any, dict[str, Any]] = {}
    make = tensor or np.asarray
    state = _state(state_dict)
    for group in groups:
        for i, path in zip(group["params"], paths, strict=False):
            slots = _expected(what, optimizer, group, path, None)
            keys = {Key(role, path) for role in _SLOTS[optimizer].values()} & entries.keys()
            if slots and not keys and not _entry(state.get(i)):
                continue  # it is frozen on both sides
            entry = _numbers(what, optimizer, entries, group, path)
            for slot, role in slots.items():
                key = Key(role, path)
                if key not in entries:
                    raise ValueError(f"{what}: it needs {slot} of {path}, but exported has no {key}.")
                entry[slot] = parameters.theirs(path, slot, _scaled(what, entries, key, _sign(group)))
            # without momentum there is a trace here, of which nothing is read
            used |= keys if optimizer == "SGD" and not slots else {Key(role, path) for role in slots.values()}
            if entry.get("step", 1):
                made[i] = {slot: make(np.array(value)) for slot, value in entry.items()}
    if not used and exported:
        raise ValueError(
            f"{what}: exported has nothing of any parameter; give what export_state gave for these params."
        )
    check_nothing_is_lost(what, entries, used, drop)
    return {"state": {i: entry for i, entry in made.items() if entry}, "param_groups": groups}


def _numbers(
    what: str, optimizer: str, exported: Mapping[Key, Any], group: Mapping[str, Any], path: str
) -> dict[str, Any]:
    """What an entry has beside its arrays: the step, and NAdam's product of decays."""
    if optimizer == "SGD":
        return {}
    if (count := of_parameter(exported, Key(roles.COUNT, path))) is None or np.shape(count):
        raise ValueError(f"{what}: exported has no count; give what export_state gave.")
    betas: dict[Role, Any] = dict(zip(_BETAS, group.get("betas", ()), strict=False))
    check_weights(what, exported, path, betas, int(count))
    product = {"mu_product": _product(what, exported, path)} if optimizer == "NAdam" else {}
    return {"step": np.asarray(count, np.float32), **product}


def _groups(what: str, optimizer: str, state_dict: Any) -> Sequence[Mapping[str, Any]]:
    if optimizer not in _SLOTS:
        raise ValueError(f"{what}: optimizer must be one of {sorted(_SLOTS)}, got {optimizer!r}.")
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
        raise ValueError(f"{what}: state_dict must be what optimizer.state_dict() gives, with state and param_groups.")
    return state_dict["param_groups"]


def _parameters(what: str, groups: Sequence[Mapping[str, Any]], params: Any, names: Any, axes: Axes) -> Parameters:
    """Our parameters in the order of PyTorch's."""
    count = sum(len(group["params"]) for group in groups)
    given = [name for group in groups for name in group.get("param_names", ())]
    if names is None or isinstance(names, Mapping):
        if len(given) != count:
            raise ValueError(
                f"{what}: its groups have no param_names, which PyTorch keeps where the optimizer was given "
                f"named_parameters(). Say which parameter is which: names=[...], the paths of the {count} in its order."
            )
        names = [name.replace(".", "/") if names is None else names.get(name, name) for name in given]
    if len(names) != count:
        raise ValueError(f"{what}: names has {len(names)} paths, but there are {count} parameters in param_groups.")
    return Parameters(what, params, names, axes)


def _expected(
    what: str, optimizer: str, group: Mapping[str, Any], path: str, entry: Mapping[str, Any] | None
) -> dict[str, Role]:
    """The slots that a parameter of this group has, and their roles; refuses an entry with others."""
    slots = {
        slot: role
        for slot, role in _SLOTS[optimizer].items()
        if slot not in _ONLY_IF or group.get(_ONLY_IF[slot], entry is not None and slot in entry)
    }
    if optimizer == "Adamax" and group.get("eps") == 0:
        slots["exp_inf"] = roles.NU_INF
    others = [key for key in _OF_OTHERS.get(optimizer, ()) if key in group]
    if entry is not None and others:
        raise ValueError(f"{what}: a group with {others} is of another class; say which: optimizer=...")
    expected = {*slots, *(["step"] if optimizer != "SGD" else []), *(["mu_product"] if optimizer == "NAdam" else [])}
    if entry is not None and set(entry) != expected:
        missing, unknown = sorted(expected - entry.keys()), sorted(entry.keys() - expected)
        fitting = [name for name, known in _SLOTS.items() if entry.keys() <= {*known, "step"}]
        raise ValueError(
            f"{what}: the state of {path} has {sorted(entry)}: {f'{unknown} too many' if unknown else ''}"
            f"{' and ' if unknown and missing else ''}{f'{missing} missing' if missing else ''}. It may be of another "
            f"class{f', such as {fitting[0]}' if fitting else ''}; say which: optimizer=..."
        )
    return slots


def _sign(group: Mapping[str, Any]) -> float:
    """What PyTorch multiplies the gradient by before anything else."""
    return -1.0 if group.get("maximize") else 1.0


def _scaled(what: str, exported: Mapping[Key, Any], key: Key, wanted: float) -> Array:
    """The entry of a parameter, of gradients times this constant."""
    rate, value = of_parameter(exported, key._replace(about="rate")), np.asarray(exported[key])
    by = rescaling(key.role, 1.0 if rate is None else float(rate), wanted)
    if by is None:
        raise ValueError(
            f"{what}: {key.role} of {key.path} is of gradients times {rate}, not {wanted}; take that away before."
        )
    return value if by == 1.0 else value * np.asarray(by, value.dtype)


def _entry(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is kept of a parameter under PyTorch's names, bitsandbytes' states decoded."""
    entry: dict[str, Any] = dict(given or {})
    entry |= entry.pop("__bnb_optimizer_quant_state__", {})
    for n, slot in ((1, "exp_avg"), (2, "exp_avg_sq")):
        if (state := entry.pop(f"state{n}", None)) is not None:
            qmap, largest = entry.pop(f"qmap{n}", None), entry.pop(f"absmax{n}", None)
            entry[slot] = state if qmap is None else _of_blocks(_array(state), _array(qmap), _array(largest))
    return {slot: value for slot, value in entry.items() if value is not None}


def _of_blocks(codes: Array, qmap: Array, largest: Array) -> Any:
    """Numbers that are stored as codes of a map, times the largest of their block."""
    blocks = [size for size in (256, 2048, 4096) if -(-codes.size // size) == largest.size]
    if not blocks:
        raise ValueError(
            f"torch: {codes.size} codes came with {largest.size} scales; there are blocks of 256 or 2048 only."
        )
    return qmap[codes.astype(np.intp)] * np.repeat(largest, blocks[0])[: codes.size].reshape(codes.shape)


def _array(value: Any) -> Array:
    """A tensor as a NumPy array; PyTorch's bfloat16 as float32."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    if type(value).__name__ not in ("Tensor", "Parameter") and hasattr(value, "dequantize"):
        value = value.dequantize()  # torchao's
    value = value.detach().cpu()
    return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()


def _step(what: str, path: str, step: Any) -> Array:
    number = float(_array(step))
    if not (number >= 0 and number.is_integer() and number < 2**31):
        raise ValueError(f"{what}: the step of {path} is {number}; it must be a whole number of at least 0.")
    return np.asarray(number, np.int32)


def _product(what: str, exported: Mapping[Key, Any], path: str) -> Array:
    """NAdam's product of decays, from one minus it as two numbers."""
    if (weight := of_parameter(exported, Key(roles.WEIGHT_MU_READ, path))) is None:
        raise ValueError(f"{what}: it needs mu_product of {path}, but exported has no {roles.WEIGHT_MU_READ}.")
    return np.asarray((1 - weight[0]) - weight[1], weight.dtype)
