"""The core of every link that divides by a running size of the gradient.

Such a link accumulates something of the gradient, reads a second moment v out of
it and divides the updates by `sqrt(v + eps_root) + eps`. What it accumulates is
the rule of one leaf, `(u, g, *slots) -> (u, *slots)`, made anew for each update
from what that update depends on, `Now`. Everything else is here, once.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adam_tx import _hyperparams, _numerics, _trees
from adam_tx._numerics import Scalar
from adam_tx.bias_correction import LogDecay
from adam_tx.chain import Link, make_link

Leaf = jax.Array
Rule = Callable[..., tuple[Leaf, ...]]
Combine = Callable[[Leaf, Leaf, Scalar, Scalar], Leaf]

# the other hyperparameters are numbers that may vary
_STATIC = ("decay", "debias", "dtype", "initial", "max_of", "threshold", "degenerate", "block", "total", "axes")


class Now(NamedTuple):
    """What a rule may depend on at one update.

    Attributes:
      count: the number of earlier updates, int32.
      decay: the decay at this update; None for an accumulator without one.
      weight: 1 - Π decay with this update, None likewise.
      divide: `(u, v) -> u / (sqrt(v + eps_root) + eps)`, v debiased first where the
        link is told to.
      values: the link's other hyperparameters at this update, by name.
    """

    count: jax.Array
    decay: Any
    weight: Any
    divide: Callable[[Leaf, Leaf], Leaf]
    values: Mapping[str, Any]


def preconditioner(
    name: str,
    state_type: Any,
    rule_at: Callable[[Now], Rule],
    *,
    formula: str,
    hyperparams: Mapping[str, Any],
    combine: Combine = _numerics.root_and_divide,
    debias: bool | None = None,
    complex_slots: Collection[str] = (),
    shapes: Mapping[str, _trees.ShapeOf] | None = None,
    optional: Collection[str] = (),
) -> Link:
    """Make the link from its rule.

    Args:
      name: of the link.
      state_type: a NamedTuple of `count`, `log_decay` where there is a decay, and the slots.
      rule_at: gives the rule of a leaf at an update.
      formula: what the link emits, in one line.
      hyperparams: its arguments. `decay`, `eps`, `eps_root`, `debias`, `dtype` and
        `initial`, what the slots start from, are understood here where they are
        there; a rule finds all that may vary in `Now.values`.
      combine: `(u, v, eps, eps_root) -> u`, how the second moment divides.
      debias: whether `Now.divide` debiases what it is given; by default what the
        hyperparameter of that name says.
      complex_slots: slots that average the gradient itself, complex where it is.
      shapes: of slots that stand for blocks of their leaf, or are None for some.
      optional: hyperparameters that may be None.
    """
    shapes = shapes or {}
    slot_names = [field for field in state_type._fields if field not in ("count", "log_decay")]
    decay_at = _hyperparams.decay("decay", hyperparams["decay"]) if "decay" in hyperparams else None
    given = {k: v for k, v in hyperparams.items() if k not in _STATIC and not (k in optional and v is None)}
    numbers = {"eps": 0.0, "eps_root": 0.0} | given
    values_at = {key: _hyperparams.hyperparameter(key, value) for key, value in numbers.items()}
    debias = hyperparams.get("debias", False) if debias is None else debias
    dtype = hyperparams.get("dtype")
    real = [slot for slot in slot_names if slot not in complex_slots]
    _hyperparams.check_moment_dtype("nu", dtype, hyperparams.get("decay", 0.0))

    def init(params: Any) -> Any:
        scalars = {"count": jnp.zeros((), jnp.int32)} | ({"log_decay": LogDecay.zero(params)} if decay_at else {})
        start = hyperparams.get("initial", 0.0)
        slots = {
            slot: _trees.full_like(params, start, dtype, real=slot in real, shape=shapes.get(slot))
            for slot in slot_names
        }
        return state_type(**scalars, **slots)

    def update(updates: Any, state: Any, grad: Any, **_: Any) -> tuple[Any, Any]:
        now, scalars = at(state)
        moments = {slot: getattr(state, slot) for slot in slot_names}
        inputs = {"updates": updates, "grad": grad}
        emitted, *slots = _trees.map_leaves(rule_at(now), inputs, moments, real=real, blocks=shapes)
        return emitted, state_type(**scalars, **dict(zip(slot_names, slots, strict=True)))

    def at(state: Any) -> tuple[Now, dict[str, Any]]:
        """What this update depends on, and the scalars of the state after it."""
        scalars: dict[str, Any] = {"count": _trees.increment(state.count)}
        d = weight = None
        if decay_at is not None:
            d = decay_at(state.count)
            scalars["log_decay"] = state.log_decay.add(d)
            weight = scalars["log_decay"].weight()
        unbias = 1.0 / weight if debias and weight is not None else None
        values = {key: value_at(state.count) for key, value_at in values_at.items()}

        def divide(u: Leaf, v: Leaf) -> Leaf:
            return combine(
                u, v if unbias is None else v * _numerics.scalar(unbias, v), values["eps"], values["eps_root"]
            )

        return Now(state.count, d, weight, divide, values), scalars

    described = formula.replace("v̂", "v / (1 - Π decay)" if debias else "v")
    return make_link(name, init, update, formula=described, hyperparams=hyperparams, reads_grad=True)
