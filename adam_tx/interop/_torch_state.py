"""PyTorch: what `optimizer.state_dict()["state"]` holds, from and to the form of `adam_tx.export_state`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import optax

from adam_tx.interop._config import check_scheduled, number, unsupported
from adam_tx.interop._parameters import Axes, Entries, Parameters
from adam_tx.state import roles
from adam_tx.state.arrays import Array
from adam_tx.state.debiasing import exact_pair, product_of
from adam_tx.state.export import collapsed
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
    "Muon": {"momentum_buffer": roles.MU},
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
_NUMBERS: Mapping[str, Collection[str]] = {"SGD": (), "Muon": (), "NAdam": ("step", "mu_product")}
"""What classes keep beside slots; the others keep a step."""
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
        "RMSprop", "Adagrad", "SGD" or "Muon".
      names: the paths of our parameters in the order of PyTorch's, or by PyTorch's names;
        None where the groups have `param_names`, which are our paths with dots for slashes.
      axes: where PyTorch has other axes than ours: by pattern of paths the numbers of its
        axes in our order, `{"*/kernel": (1, 0)}`, or a function such as `flax_axes`.

    Returns:
      The dict. `mu.decay` and `nu.decay` say by which `betas` moments were made, so that they are
      debiased rightly under other decays, too. Of a parameter that has made no step in PyTorch,
      because it is frozen or in no group, there is nothing. There is `count/<path>` where
      parameters have made different numbers of steps, which asks for an optimizer that
      counts them apart, such as `optax.partition`. PyTorch's SGD and Muon keep no step, so there is
      no count: add it, `exported | {"count": 1000}`.

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
    theirs = _StateDict(optimizer, state_dict, params, names, axes)
    theirs.check_state()
    found: dict[Key, Any] = {}
    shared: dict[Key, dict[str, Any]] = {}
    for i, path, group in theirs.members():
        if not (entry := theirs.state.get(i)):
            continue  # it is frozen, or had no gradient yet
        for slot, role in theirs.slots(group, path, entry).items():
            found[Key(role, path)] = theirs.parameters.ours(path, slot, as_array(entry[slot]))
            shared.setdefault(Key(role, about="rate"), {})[path] = np.asarray(_sign(group))
        for key, value in (theirs.counted(path, entry) | theirs.decays(group)).items():
            shared.setdefault(key, {})[path] = value
    for key, values in shared.items():
        if key.about != "rate" or -1.0 in values.values():
            found |= collapsed(key, values)
    return {str(key): value for key, value in found.items()}


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
    theirs = _StateDict(optimizer, state_dict, params, names, axes)
    entries = Entries(theirs.what, exported)
    used = set[Key]()
    made: dict[Any, dict[str, Any]] = {}
    for i, path, group in theirs.members():
        slots = theirs.slots(group, path)
        keys = {key for role in theirs.roles.values() if (key := Key(role, path)) in entries}
        if slots and not keys and not theirs.state.get(i):
            continue  # it is frozen on both sides
        entry = theirs.numbers(entries, group, path)
        for slot, role in slots.items():
            value = entries.scaled(Key(role, path), slot, _sign(group))
            entry[slot] = theirs.parameters.theirs(path, slot, value)
        # without momentum there is a trace here, of which nothing is read
        used |= keys if optimizer == "SGD" and not slots else {Key(role, path) for role in slots.values()}
        if entry and entry.get("step", 1):
            made[i] = {slot: (tensor or np.asarray)(np.array(value)) for slot, value in entry.items()}
    if not used and exported:
        raise ValueError(
            f"{theirs.what}: exported has nothing of any parameter; give what export_state gave for these params."
        )
    entries.check_nothing_is_lost(used, drop)
    return {"state": made, "param_groups": theirs.groups}


class _StateDict:
    """What the `state_dict()` of a PyTorch optimizer has for our parameters.

    Attributes:
      what: the optimizer, for errors.
      roles: the roles of all slots that its class has.
      groups: its parameter groups.
      state: what it keeps, by the numbers of its parameters.
      parameters: our parameters in its order.
    """

    def __init__(self, optimizer: str, state_dict: Any, params: Any, names: Any, axes: Axes) -> None:
        self.what = f"torch.optim.{optimizer}"
        if optimizer not in _SLOTS:
            raise ValueError(f"{self.what}: optimizer must be one of {sorted(_SLOTS)}, got {optimizer!r}.")
        if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
            raise ValueError(
                f"{self.what}: state_dict must be what optimizer.state_dict() gives, with state and param_groups."
            )
        self._optimizer = optimizer
        self.roles = _SLOTS[optimizer]
        self.groups: Sequence[Mapping[str, Any]] = state_dict["param_groups"]
        self.state = {i: _entry(given) for i, given in cast(Mapping[object, Any], state_dict["state"]).items()}
        self.parameters = Parameters(self.what, params, self._paths(names), axes)

    def _paths(self, names: Any) -> Sequence[str]:
        """The paths of our parameters in the order of PyTorch's."""
        count = sum(len(group["params"]) for group in self.groups)
        given = [name for group in self.groups for name in group.get("param_names", ())]
        if names is None or isinstance(names, Mapping):
            if len(given) != count:
                raise ValueError(
                    f"{self.what}: its groups have no param_names, which PyTorch keeps where the optimizer was given "
                    "named_parameters(). Say which parameter is which: names=[...], the paths of the "
                    f"{count} in its order."
                )
            names = [name.replace(".", "/") if names is None else names.get(name, name) for name in given]
        if len(names) != count:
            raise ValueError(
                f"{self.what}: names has {len(names)} paths, but there are {count} parameters in param_groups."
            )
        return names

    def members(self) -> Iterator[tuple[object, str, Mapping[str, Any]]]:
        """Of each parameter its number in PyTorch, our path and its group."""
        paths = iter(self.parameters.paths)
        return ((i, next(paths), group) for group in self.groups for i in group["params"])

    def check_state(self) -> None:
        """Refuse a state of other parameters, or of none."""
        ids = [i for group in self.groups for i in group["params"]]
        if strangers := [i for i in self.state if i not in ids]:
            raise ValueError(
                f"{self.what}: state has entries for {strangers[:3]}, but the parameters in param_groups are "
                f"{ids[:3]}...; give state_dict as PyTorch made it, with whole numbers as keys."
            )
        if not any(self.state.values()):
            raise ValueError(
                f"{self.what}: its state is empty, because it has made no step, or keeps nothing. Call init instead."
            )

    def slots(self, group: Mapping[str, Any], path: str, entry: Mapping[str, Any] | None = None) -> dict[str, Role]:
        """The slots that a parameter of this group has, and their roles; refuses an entry with others."""
        slots = {
            slot: role
            for slot, role in self.roles.items()
            if slot not in _ONLY_IF
            or role == roles.MU
            or group.get(_ONLY_IF[slot], entry is not None and slot in entry)
        }
        if self._optimizer == "Adamax" and group.get("eps") == 0:
            slots["exp_inf"] = roles.NU_INF
        if entry is None:
            return slots
        if others := [key for key in _OF_OTHERS.get(self._optimizer, ()) if key in group]:
            raise ValueError(f"{self.what}: a group with {others} is of another class; say which: optimizer=...")
        expected = {*slots, *_NUMBERS.get(self._optimizer, ["step"])}
        if set(entry) != expected:
            missing, unknown = sorted(expected - entry.keys()), sorted(entry.keys() - expected)
            fitting = [name for name, known in _SLOTS.items() if entry.keys() <= {*known, "step"}]
            raise ValueError(
                f"{self.what}: the state of {path} has {sorted(entry)}: {f'{unknown} too many' if unknown else ''}"
                f"{' and ' if unknown and missing else ''}{f'{missing} missing' if missing else ''}. It may be of "
                f"another class{f', such as {fitting[0]}' if fitting else ''}; say which: optimizer=..."
            )
        return slots

    def counted(self, path: str, entry: Mapping[str, Any]) -> dict[Key, Any]:
        """The count, and the weight of the decays that NAdam looks ahead with."""
        found: dict[Key, Any] = {}
        if "step" in entry:
            step = float(as_array(entry["step"]))
            if not (step >= 0 and step.is_integer() and step < 2**31):
                raise ValueError(f"{self.what}: the step of {path} is {step}; it must be a whole number of at least 0.")
            found[Key(roles.COUNT)] = np.asarray(step, np.int32)
        if "mu_product" in entry:
            found[Key(roles.WEIGHT_MU_READ)] = exact_pair(as_array(entry["mu_product"]))
        return found

    def decays(self, group: Mapping[str, Any]) -> dict[Key, Any]:
        """The decays, numbers or schedules, that made averages: without them nothing is debiased rightly."""
        kept = self.roles.values()
        if self._optimizer == "Muon":
            given = {roles.MU: ("momentum", group.get("momentum"))}
        elif roles.MU not in kept:
            given = {roles.NU: ("alpha", group.get("alpha"))}
        else:
            betas = group.get("betas")
            if not isinstance(betas, tuple | list) or len(betas) != 2:
                reason = "it must be a pair, by which moments were made and are debiased; give whole groups."
                raise unsupported(self.what, "betas", betas, reason)
            check_scheduled(self.what, group, "betas")
            given = {role: ("betas", beta) for role, beta in zip(_BETAS, betas, strict=True)}
        return {
            Key(role, about="decay"): beta if callable(beta) else np.asarray(number(self.what, key, beta, 0.0, 1.0))
            for role, (key, beta) in given.items()
            if role in kept
        }

    def numbers(self, entries: Entries, group: Mapping[str, Any], path: str) -> dict[str, Any]:
        """What an entry has beside its arrays: the step, and NAdam's product of decays."""
        if not _NUMBERS.get(self._optimizer, ("step",)):
            return {}
        if (count := entries.get(Key(roles.COUNT, path))) is None or np.shape(count):
            raise ValueError(f"{self.what}: exported has no count; give what export_state gave.")
        betas: dict[Role, Any] = dict(zip(_BETAS, group.get("betas", ()), strict=False))
        entries.check_weights(path, betas, int(count))
        step = {"step": np.asarray(count, np.float32)}
        if self._optimizer != "NAdam":
            return step
        if (weight := entries.get(Key(roles.WEIGHT_MU_READ, path))) is None:
            needed = f"mu_product of {path}, but exported has no {roles.WEIGHT_MU_READ}"
            raise ValueError(f"{self.what}: it needs {needed}.")
        return {**step, "mu_product": product_of(weight)}


def _sign(group: Mapping[str, Any]) -> float:
    """What PyTorch multiplies the gradient by before anything else."""
    return -1.0 if group.get("maximize") else 1.0


def _entry(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is kept of a parameter under PyTorch's names, bitsandbytes' states decoded."""
    entry: dict[str, Any] = dict(given or {})
    entry |= entry.pop("__bnb_optimizer_quant_state__", {})
    for n, slot in ((1, "exp_avg"), (2, "exp_avg_sq")):
        if (state := entry.pop(f"state{n}", None)) is not None:
            qmap, largest = entry.pop(f"qmap{n}", None), entry.pop(f"absmax{n}", None)
            entry[slot] = state if qmap is None else _of_blocks(as_array(state), as_array(qmap), as_array(largest))
    return {slot: value for slot, value in entry.items() if value is not None}


def _of_blocks(codes: Array, qmap: Array, largest: Array) -> Any:
    """Numbers that are stored as codes of a map, times the largest of their block."""
    blocks = [size for size in (256, 2048, 4096) if -(-codes.size // size) == largest.size]
    if not blocks:
        raise ValueError(
            f"torch: {codes.size} codes came with {largest.size} scales; there are blocks of 256 or 2048 only."
        )
    return qmap[codes.astype(np.intp)] * np.repeat(largest, blocks[0])[: codes.size].reshape(codes.shape)


def as_array(value: Any) -> Array:
    """A tensor as a NumPy array; PyTorch's bfloat16 as float32."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    if type(value).__name__ not in ("Tensor", "Parameter") and hasattr(value, "dequantize"):
        value = value.dequantize()  # torchao's
    value = value.detach().cpu()
    return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
