"""PyTorch's learning-rate schedulers, from what `scheduler.state_dict()` gives.

PyTorch computes most of them from the rate before, step by step. What is here are the closed
forms, which give the same but for rounding.

Reference: torch/optim/lr_scheduler.py in PyTorch 2.13.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adam_tx._core import hyperparams
from adam_tx.interop._config import check_int, number, unsupported

Rate = Callable[[jax.Array], jax.Array]
"""From the number of epochs that are over to a setting."""
_COMMON = {
    *("base_lrs", "last_epoch", "_last_lr"),
    *("_step_count", "_is_initial", "_get_lr_called_within_step", "verbose"),
    "use_beta1",  # of OneCycleLR, where it cycles momentum; the groups say which
}
_MOST = 2**31 - 1
_WAY_OUT = "Give the group a schedule of your own: group | {'lr': schedule}."


def with_schedules(
    groups: Sequence[Mapping[str, object]],
    scheduler: object,
    *,
    scheduler_class: str | Sequence[str] | None = None,
    lr_lambda: object = None,
    steps_per_epoch: int = 1,
    updates_before: int | None = None,
) -> list[dict[str, object]]:
    """PyTorch's parameter groups, with a scheduler's schedule in the place of each number that it has set.

    Args:
      groups: `optimizer.state_dict()["param_groups"]`.
      scheduler: `scheduler.state_dict()` of that moment, or the scheduler: CosineAnnealingLR,
        CosineAnnealingWarmRestarts, StepLR, MultiStepLR, ExponentialLR, ConstantLR, LinearLR,
        PolynomialLR, LambdaLR, OneCycleLR (also its momentum), SequentialLR of these, or a
        ChainedScheduler of those that multiply.
      scheduler_class: its class, where its state does not tell it: "LambdaLR", whose state could be that
        of a MultiplicativeLR. Of a SequentialLR a list with the class of each inside, or None.
      lr_lambda: what a LambdaLR multiplies by, which is not in its state: a function of the
        epoch that JAX can run, or a list with one for each group.
      steps_per_epoch: how many updates there are between two calls of `scheduler.step()`.
      updates_before: how many updates the state counts that goes on: 0 for one that starts
        fresh. None for `last_epoch · steps_per_epoch`, as many as an imported state counts.

    Returns:
      The groups, with schedules of the number of earlier updates under "lr", and under
      "momentum" or "betas" where that is cycled.

    Raises:
      ValueError: a scheduler that is not known, whose class is not clear, or that has no closed
        form; a rate in a group that is not what the scheduler gives at its epoch.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> state = {"gamma": 0.5, "base_lrs": [0.4], "last_epoch": 2, "_last_lr": [0.1]}
    >>> (group,) = adam_tx.interop.torch.with_schedules([{"lr": 0.1, "initial_lr": 0.4}], state)
    >>> [float(group["lr"](jnp.int32(count))) for count in (2, 3)]
    [0.10000000149011612, 0.05000000074505806]
    """
    of = Scheduler(scheduler, scheduler_class, lr_lambda)
    every = hyperparams.check_int("steps_per_epoch", steps_per_epoch)
    before = of.epoch * every if updates_before is None else hyperparams.check_int("updates_before", updates_before, 0)

    def counted(rate: Rate, now: object, where: str) -> optax.Schedule:
        def schedule(count: jax.typing.ArrayLike) -> jax.Array:
            return rate(jnp.maximum(of.epoch + (jnp.asarray(count) - before) // every, 0))

        _check_now(of, float(schedule(jnp.int32(before))), now, where)
        return schedule

    made: list[dict[str, object]] = []
    for position, group in enumerate(groups):
        where = f"groups[{position}]"
        scheduled = {**group, "lr": counted(of.rate(group, position), group.get("lr"), f"{where}['lr']")}
        if of.state.get("cycle_momentum"):
            cycled = _cycled(of, group, "momentum")
            betas: Any = group.get("betas")
            if betas is None:
                scheduled["momentum"] = counted(cycled, group.get("momentum"), f"{where}['momentum']")
            else:
                scheduled["betas"] = (counted(cycled, betas[0], f"{where}['betas'][0]"), *betas[1:])
        made.append(scheduled)
    return made


def _check_now(of: Scheduler, expected: float, now: object, where: str) -> None:
    """Refuse a number that is not what the scheduler gives at its epoch: it is of another moment, or set by hand."""
    came = number(of.what, where, now, 0.0)
    if abs(came - expected) > 1e-5 * max(came, expected, *(of.base(0) for _ in of.state.get("base_lrs", ())[:1])):
        raise unsupported(
            of.what,
            where,
            came,
            f"at epoch {of.epoch} it gives {expected:g}. Give the state_dict() of optimizer and scheduler of one "
            f"moment, and the class if it may be another. {_WAY_OUT}",
        )


class Scheduler:
    """What is known of a scheduler.

    Attributes:
      state: its state.
      name: its class.
      what: what to call it in an error.
      inside: the schedulers that it is made of.
      lr_lambda: what a LambdaLR multiplies by.
    """

    def __init__(self, given: Any, said: str | Sequence[str] | None, lr_lambda: Any) -> None:
        """Take it apart.

        Args:
          given: the scheduler, or its state.
          said: its class; a list with those of the schedulers that it is made of.
          lr_lambda: what a LambdaLR multiplies by.
        """
        objects: Any = getattr(given, "_schedulers", ())
        if callable(getattr(given, "state_dict", None)):
            said, given = said or type(given).__name__, given.state_dict()
        if not isinstance(given, Mapping):
            raise TypeError(f"scheduler: it must be scheduler.state_dict(), got {type(given).__name__}.")
        self.state: Mapping[str, Any] = given
        self.name = _name_of(self.state, said if isinstance(said, str) else None)
        self.what = f"torch.optim.lr_scheduler.{self.name}"
        self.lr_lambda = lr_lambda
        states = self.state.get("_schedulers", ())
        names = said if said is not None and not isinstance(said, str) else [None] * len(states)
        if len(names) != len(states):
            raise ValueError(f"{self.what}: scheduler_class names {len(names)} of the {len(states)} inside; name each.")
        self.inside = [Scheduler(*of, lr_lambda) for of in zip(objects or states, names, strict=True)]

    def number(self, key: str, low: float = -math.inf) -> float:
        """A setting that is a number."""
        return number(self.what, key, self.state.get(key), low)

    def whole(self, key: str, low: int = 0) -> int:
        """A setting that is a whole number."""
        return check_int(self.what, key, self.state.get(key), low)

    @property
    def epoch(self) -> int:
        """How many epochs are over; in PyTorch one that is yet to begin inside of another is at -1."""
        return self.inside[0].epoch if self.name == "ChainedScheduler" else max(self.whole("last_epoch", -1), 0)

    def rate(self, group: Mapping[str, Any], position: int) -> Rate:
        """The learning rate of the group in this position."""
        return _KINDS[self.name].rate(self, group, position)

    def base(self, position: int) -> float:
        """The rate that a group began with."""
        bases = self.state.get("base_lrs", ())
        if not 0 <= position < len(bases):
            raise unsupported(self.what, "base_lrs", bases, f"it must have one for each group, also for {position}.")
        return number(self.what, "base_lrs", bases[position], 0.0)


def _name_of(state: Mapping[str, Any], said: str | None) -> str:
    """The class of a scheduler: what was said, if the state has the keys of it, or the only class that has them."""
    own = state.keys() - _COMMON
    fitting = [name for name, kind in _KINDS.items() if own == set(kind.keys)]
    if not fitting or (said is not None and said not in fitting):
        known = sorted(name for name, kind in _KINDS.items() if kind.rate is not _refused)
        raise ValueError(
            f"scheduler: a state with {sorted(own)} is not known as that of {said or 'any scheduler'}; it must be of "
            f"one of {known}. {_WAY_OUT}"
        )
    if said is None and len(fitting) > 1:
        raise ValueError(
            f"scheduler: a state with {sorted(own)} may be that of {' or '.join(fitting)}; say which: "
            f"scheduler_class={fitting[0]!r}, or give the scheduler itself."
        )
    return said or fitting[0]


def _float(epoch: jax.Array) -> jax.Array:
    return epoch.astype(jnp.result_type(float))


def _cosine(of: Scheduler, group: Mapping[str, Any], position: int) -> Rate:
    del group
    period, least, base = of.whole("T_max", 1), of.number("eta_min"), of.base(position)
    return lambda epoch: _annealed(least, base, _float(epoch % (2 * period)) / period)


def _annealed(least: float, base: float, part: jax.Array) -> jax.Array:
    return least + (base - least) * _cosine_left(part)


def _warm_restarts(of: Scheduler, group: Mapping[str, Any], position: int) -> Rate:
    del group
    first, factor, least, base = of.whole("T_0", 1), of.whole("T_mult", 1), of.number("eta_min"), of.base(position)
    starts, lengths = [0], [first]
    while factor > 1 and starts[-1] + lengths[-1] <= _MOST:
        starts.append(starts[-1] + lengths[-1])
        lengths.append(lengths[-1] * factor)
    cycle = bisect.bisect_right(starts, of.epoch) - 1
    into = of.epoch % first if factor == 1 else of.epoch - starts[cycle]
    if (of.state["T_cur"], of.state["T_i"]) != (into, lengths[cycle]):
        raise unsupported(of.what, "T_cur", of.state["T_cur"], f"it was not stepped epoch by epoch. {_WAY_OUT}")

    def rate(epoch: jax.Array) -> jax.Array:
        if factor == 1:
            return _annealed(least, base, _float(epoch % first) / first)
        at = jnp.sum(epoch >= jnp.asarray(starts, jnp.int32)) - 1
        since = _float(epoch - jnp.asarray(starts, jnp.int32)[at])
        return _annealed(least, base, since / jnp.asarray(lengths, since.dtype)[at])

    return rate


def _step(of: Scheduler, group: Mapping[str, Any], position: int) -> Rate:
    del group
    size, gamma, base = of.whole("step_size", 1), of.number("gamma", 0.0), of.base(position)
    return lambda epoch: base * gamma ** _float(epoch // size)


def _multi_step(of: Scheduler, group: Mapping[str, Any], position: int) -> Rate:
    del group
    gamma, base, milestones = of.number("gamma", 0.0), of.base(position), dict(of.state["milestones"])
    times = [(check_int(of.what, "milestones", at, 0), n) for at, n in milestones.items()]
    passed = [at for at, n in times for _ in range(check_int(of.what, "milestones", n, 0))]
    return lambda epoch: base * gamma ** _float(jnp.sum(epoch >= jnp.asarray(passed, jnp.int32)))


def _exponential(of: Scheduler, group: Mapping[str, Any], position: int) -> Rate:
    del group
    gamma, base = of.number("gamma", 0.0), of.base(position)
    return lambda epoch: base * gamma ** _float(epoch)


def _constant(of: Scheduler, group: Mapping[str, Any], position: int) -> Rate:
    del group
    factor, last, base = of.number("factor", 0.0), of.whole("total_iters"), of.base(position)
    # PyTorch takes the factor back when it passes the last epoch, which it never does if that is the first
    return lambda epoch: base * jnp.where((epoch < last) | (last == 0), factor, jnp.ones_like(_float(epoch)))


def _linear(of: Scheduler, group: Mapping[str, Any], position: int) -> Rate:
    del group
    first, end = of.number("start_factor"), of.number("end_factor")
    last, base = of.whole("total_iters"), of.base(position)
    return lambda epoch: base * (first + (end - first) * _float(jnp.minimum(epoch, last)) / max(last, 1))


def _polynomial(of: Scheduler, group: Mapping[str, Any], position: int) -> Rate:
    del group
    last, power, base = of.whole("total_iters"), of.number("power"), of.base(position)
    return lambda epoch: base * (_float(last - jnp.minimum(epoch, last) + int(last == 0)) / max(last, 1)) ** power


def _lambda(of: Scheduler, group: Mapping[str, Any], position: int) -> Rate:
    del group
    each = of.lr_lambda[position] if isinstance(of.lr_lambda, list | tuple) else of.lr_lambda
    base = of.base(position)
    if not callable(each):
        raise ValueError(
            f"{of.what}: its state does not say what it multiplies by; give lr_lambda=, a function of the epoch that "
            f"JAX can run, or a list with one for each group, got {each!r}."
        )
    return lambda epoch: base * jnp.asarray(each(epoch))


def _one_cycle(of: Scheduler, group: Mapping[str, Any], position: int) -> Rate:
    del position
    return _cycled(of, group, "lr")


def _cosine_left(part: jax.Array) -> jax.Array:
    return jnp.cos(0.5 * math.pi * part) ** 2


def _linear_left(part: jax.Array) -> jax.Array:
    return 1.0 - part


_ANNEALS: Mapping[str, Callable[[jax.Array], jax.Array]] = {"cos": _cosine_left, "linear": _linear_left}
"""What is left of a phase of OneCycleLR, from the part of it that is over."""


def _cycled(of: Scheduler, group: Mapping[str, Any], setting: str) -> Rate:
    """What OneCycleLR does to the rate ("lr") or the momentum ("momentum") of a group."""
    if (anneal := _ANNEALS.get(of.state["_anneal_func_type"])) is None:
        how = of.state["_anneal_func_type"]
        raise unsupported(of.what, "_anneal_func_type", how, f"it must be one of {list(_ANNEALS)}.")
    last, phases = of.whole("total_steps", 1), []
    for phase in of.state["_schedule_phases"]:
        start, end = phase[f"start_{setting}"], phase[f"end_{setting}"]
        if missing := [key for key in (start, end) if key not in group]:
            raise ValueError(
                f"{of.what}: the group has no {missing}, which it leaves there; give the groups as they are."
            )
        ends = [number(of.what, key, group[key], 0.0) for key in (start, end)]
        phases.append((number(of.what, "end_step", phase["end_step"], -math.inf), *ends))

    def rate(epoch: jax.Array) -> jax.Array:
        step = _float(jnp.minimum(epoch, last))  # behind which PyTorch raises
        value, begin = jnp.zeros_like(step), 0.0
        for i, (end_step, start, end) in enumerate(phases):
            left = anneal((step - begin) / (end_step - begin if end_step != begin else 1.0))
            here = end + (start - end) * left
            value = here if i == 0 else jnp.where(step > begin, here, value)
            begin = end_step
        return value

    return rate


def _sequential(of: Scheduler, group: Mapping[str, Any], position: int) -> Rate:
    milestones = [check_int(of.what, "_milestones", at, 0) for at in of.state["_milestones"]]
    if len(milestones) != len(of.inside) - 1 or any(one.state.get("cycle_momentum") for one in of.inside):
        raise unsupported(
            of.what, "_schedulers", [one.name for one in of.inside], f"{milestones} part them. {_WAY_OUT}"
        )
    first, *others = (one.rate(group, position) for one in of.inside)

    def rate(epoch: jax.Array) -> jax.Array:
        value = first(epoch)
        for at, other in zip(milestones, others, strict=True):
            value = jnp.where(epoch < at, value, other(jnp.maximum(epoch - at, 0)))
        return value

    return rate


def _chained(of: Scheduler, group: Mapping[str, Any], position: int) -> Rate:
    names = [one.name for one in of.inside]
    if strange := [name for name in names if not _KINDS[name].multiplies]:
        raise unsupported(of.what, "_schedulers", names, f"{strange} do more than to multiply the rate. {_WAY_OUT}")
    base = of.inside[0].base(position)
    rates = [one.rate(group, position) for one in of.inside]
    return lambda epoch: base * math.prod([rate(epoch) / base for rate in rates], start=jnp.ones(()))


def _refused(of: Scheduler, group: Mapping[str, Any], position: int) -> Rate:
    del group, position
    raise unsupported(of.what, "scheduler", of.name, f"it has no closed form here. {_WAY_OUT}")


class _Kind(NamedTuple):
    """The keys that a class has beside the common ones, its rate, and whether it multiplies the rate and no more."""

    keys: tuple[str, ...]
    rate: Callable[[Scheduler, Mapping[str, Any], int], Rate]
    multiplies: bool = False


_KINDS: Mapping[str, _Kind] = {
    "CosineAnnealingLR": _Kind(("T_max", "eta_min"), _cosine),
    "CosineAnnealingWarmRestarts": _Kind(("T_0", "T_i", "T_mult", "eta_min", "T_cur"), _warm_restarts),
    "StepLR": _Kind(("step_size", "gamma"), _step, multiplies=True),
    "MultiStepLR": _Kind(("milestones", "gamma"), _multi_step, multiplies=True),
    "ExponentialLR": _Kind(("gamma",), _exponential, multiplies=True),
    "ConstantLR": _Kind(("factor", "total_iters"), _constant, multiplies=True),
    "LinearLR": _Kind(("start_factor", "end_factor", "total_iters"), _linear, multiplies=True),
    "PolynomialLR": _Kind(("total_iters", "power"), _polynomial, multiplies=True),
    "LambdaLR": _Kind(("lr_lambdas",), _lambda),
    "MultiplicativeLR": _Kind(("lr_lambdas",), _refused),
    "OneCycleLR": _Kind(("total_steps", "_schedule_phases", "_anneal_func_type", "cycle_momentum"), _one_cycle),
    "SequentialLR": _Kind(("_milestones", "_schedulers"), _sequential),
    "ChainedScheduler": _Kind(("_schedulers",), _chained),
}
"""The schedulers of PyTorch by their classes."""
