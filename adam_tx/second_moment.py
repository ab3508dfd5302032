"""The second moment: a running size of the gradient, to divide the updates by.

One core drives every accumulator. An accumulator is a rule for one leaf,
`(grad, weight, *slots) -> slots`, and the last slot is the one that is read.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from optax import ScalarOrSchedule

from adam_tx import _hyperparams, _numerics, _trees
from adam_tx._numerics import Scalar
from adam_tx.bias_correction import LogDecay
from adam_tx.chain import Link, make_link


class ScaleByRmsState(NamedTuple):
    """State of `scale_by_rms`: `nu`, real, has the shapes of the parameters."""

    count: jax.Array
    log_decay: LogDecay
    nu: Any


class ScaleByMaxRmsState(NamedTuple):
    """State of `scale_by_max_rms`: `nu_max` is the largest `nu` so far."""

    count: jax.Array
    log_decay: LogDecay
    nu: Any
    nu_max: Any


def scale_by_rms(
    decay: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    eps_root: ScalarOrSchedule = 0.0,
    debias: bool = False,
    dtype: DTypeLike | None = None,
) -> Link:
    """Divide the updates by the root mean square of the raw gradient.

    With g the gradient that entered the chain, u the incoming updates and nu from zero::

        nu <- nu + (1 - decay) · (|g|² - nu)
        v   = nu / (1 - Π decay)                       if debias, else nu
        u  <- u / (sqrt(v + eps_root) + eps)

    `debias` decides what epsilon is compared with: the debiased root, as in the
    paper's Algorithm 1, PyTorch and Optax, or the raw one, as in Keras and TF1,
    where `bias_correction(b1, b2)` follows.

    Args:
      decay: in [0, 1): number, 0-d array or schedule of the number of earlier updates.
      eps: added outside the root, in units of the gradient; at least 0.
      eps_root: added inside the root, in units of the gradient squared; at least 0.
      debias: undo the start from zero before the root is taken.
      dtype: what nu is stored in; None for float32, or float64 where the parameter
        is. Arithmetic is not affected.

    Returns:
      A `Link` with state `ScaleByRmsState`. It reads the gradient: `adam_tx.chain`
      passes it, elsewhere call `update(..., grad=g)`.

    Raises:
      ValueError: a number out of range, or a `dtype` in which nu would never decay.
      TypeError: `update` without `grad`.

    Reference: Tieleman & Hinton, RMSprop, 2012; Kingma & Ba, Adam, 2015
    (https://arxiv.org/abs/1412.6980).

    >>> import jax.numpy as jnp
    >>> tx = scale_by_rms(0.75)
    >>> grad = jnp.array([3.0, -4.0])
    >>> tx.update(grad, tx.init(grad), grad=grad)[0]  # nu is a quarter of the square
    Array([ 2., -2.], dtype=float32)
    """
    return _scale_by_second_moment(
        "scale_by_rms",
        ScaleByRmsState,
        lambda g, weight, nu: (_numerics.ema(nu, _numerics.abs_sq(g), weight),),
        formula="nu += (1 - decay)(|g|² - nu); u / (sqrt({v} + eps_root) + eps)",
        hyperparams={"decay": decay, "eps": eps, "eps_root": eps_root, "debias": debias, "dtype": dtype},
    )


def scale_by_max_rms(
    decay: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    eps_root: ScalarOrSchedule = 0.0,
    debias: bool = False,
    dtype: DTypeLike | None = None,
) -> Link:
    """Divide the updates by the largest root mean square so far: AMSGrad's denominator.

    As `scale_by_rms`, with a running maximum of the raw (not debiased) nu::

        nu     <- nu + (1 - decay) · (|g|² - nu)
        nu_max <- max(nu_max, nu)
        v       = nu_max / (1 - Π decay)               if debias, else nu_max
        u      <- u / (sqrt(v + eps_root) + eps)

    This is the maximum that PyTorch and Keras take. Optax takes that of the
    debiased nu, which is another optimizer; the two states cannot be converted.

    Args, Returns, Raises: those of `scale_by_rms`, with state `ScaleByMaxRmsState`.

    Reference: Reddi, Kale & Kumar, On the Convergence of Adam and Beyond, 2018
    (https://arxiv.org/abs/1904.09237).

    >>> import jax.numpy as jnp
    >>> tx = scale_by_max_rms(0.0)
    >>> grad = jnp.array([3.0, -4.0])
    >>> _, state = tx.update(grad, tx.init(grad), grad=grad)
    >>> tx.update(grad / 2, state, grad=grad / 2)[0]
    Array([ 0.5, -0.5], dtype=float32)
    """

    def accumulate(g: jax.Array, weight: Scalar, nu: jax.Array, nu_max: jax.Array) -> tuple[jax.Array, ...]:
        nu = _numerics.ema(nu, _numerics.abs_sq(g), weight)
        return nu, jnp.maximum(nu_max, nu)

    return _scale_by_second_moment(
        "scale_by_max_rms",
        ScaleByMaxRmsState,
        accumulate,
        formula="nu += (1 - decay)(|g|² - nu); u / (sqrt(max {v} + eps_root) + eps)",
        hyperparams={"decay": decay, "eps": eps, "eps_root": eps_root, "debias": debias, "dtype": dtype},
    )


def _scale_by_second_moment(
    name: str,
    state_type: Any,
    accumulate: Callable[..., tuple[jax.Array, ...]],
    *,
    formula: str,
    hyperparams: Mapping[str, Any],
) -> Link:
    """The core: accumulate the gradient's squares, read the last slot out, divide by its root."""
    decay, eps, eps_root, debias, dtype = hyperparams.values()
    decay_at = _hyperparams.decay("decay", decay)
    eps_at = _hyperparams.hyperparameter("eps", eps)
    eps_root_at = _hyperparams.hyperparameter("eps_root", eps_root)
    _hyperparams.check_moment_dtype("nu", dtype, decay)
    slot_names = state_type._fields[2:]

    def init(params: Any) -> Any:
        slots = (_trees.zeros_like(params, dtype, real=True) for _ in slot_names)
        return state_type(jnp.zeros((), jnp.int32), LogDecay.zero(params), *slots)

    def update(updates: Any, state: Any, grad: Any, **_: Any) -> tuple[Any, Any]:
        d = decay_at(state.count)
        log_decay = state.log_decay.add(d)
        unbias = 1.0 / log_decay.weight() if debias else 1.0
        epsilons = eps_at(state.count), eps_root_at(state.count)

        def rule(u: jax.Array, g: jax.Array, *slots: jax.Array) -> tuple[jax.Array, ...]:
            slots = accumulate(g, d.weight, *slots)
            v = slots[-1] * _numerics.scalar(unbias, slots[-1]) if debias else slots[-1]
            return _numerics.root_and_divide(u, v, *epsilons), *slots

        moments = {slot: getattr(state, slot) for slot in slot_names}
        emitted, *slots = _trees.map_leaves(rule, {"updates": updates, "grad": grad}, moments, real=slot_names)
        return emitted, state_type(_trees.increment(state.count), log_decay, *slots)

    return make_link(
        name,
        init,
        update,
        formula=formula.format(v="nu / (1 - Π decay)" if debias else "nu"),
        hyperparams=hyperparams,
        reads_grad=True,
    )
