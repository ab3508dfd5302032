"""`average_weights` keeps an average of the weights in the state; `averaged_weights` reads it."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from optax import ScalarOrSchedule

from adam_tx._core.boxes import boxed_like, unboxed
from adam_tx._core.leaves import Leaves, is_absent
from adam_tx._core.paths import PathPattern, path_str, some
from adam_tx._core.storage import StorageLike
from adam_tx._link import optimizer
from adam_tx.training import _averaging
from adam_tx.training._averaging import AverageWeights


@optimizer
def average_weights(
    inner: optax.GradientTransformation,
    decay: ScalarOrSchedule | Literal["uniform"] = 0.999,
    *,
    debias: bool = False,
    start: int = 0,
    every: int = 1,
    pattern: PathPattern = "*",
    dtype: StorageLike | None = None,
    name: str = "average",
) -> AverageWeights:
    """Keep an average of the weights beside an optimizer, for `averaged_weights` to read.

    What `inner` emits is not touched. With w_t the weights after update t, w_0 those that
    `init` was given, and s = `start`::

        average = w_t                                     up to update s
        average <- average + step · (w_t - average)       at updates s + every, s + 2 · every, …

        step = 1 - decay                                  a moving average (EMA) from w_s on
        step = 1 / n,  n <- decay · n + 1                 with debias, n = 1 at first
        step = 1 / n,  n <- n + 1                         "uniform": the mean (SWA, Polyak)

    A moving average gives w_s the weight that all weights before it would have, decay^k after
    k steps. With `debias` w_s has that of one, as in an average that starts from zero and is
    divided by what it lacks. The usual averages are::

        torch.optim.swa_utils, EMA       decay, start=1
        torch.optim.swa_utils, SWA       "uniform", start=<first update to average>, every=<updates an epoch>
        Keras, use_ema                   ema_momentum, start=1
        optax.ema of the new parameters  decay, debias=True, start=1
        timm, ModelEmaV3 with warm-up    adam_tx.schedules.power_warmup(0.9999), start=1
        optax.incremental_update         1 - step_size

    The weights are those that `optax.apply_updates` makes, in float32 or wider. With
    `master_weights` inside they are the whole weights, residuals included. So this has to
    stand around the whole optimizer, with its learning rate, its clip and its decay. In a
    `guard` a step that is skipped does not move the average; around a guard, it counts the
    weights as they are once more. Around `optax.MultiSteps` it counts the micro-steps, too.

    A step reads and writes the average, so it costs 8 bytes more for each parameter. With
    `every` it costs that at those updates alone, but for `adam_tx.step`, which reads and writes
    it at every one.

    Args:
      inner: a link, a chain, or any transformation.
      decay: in [0, 1): number, 0-d array or schedule, such as `adam_tx.schedules.decay_warmup`; or "uniform".
      debias: whether the first weights have the weight of one.
      start: the update whose weights are the first of the average; 0 for those that `init` was given.
      every: how many updates there are from one that moves the average to the next.
      pattern: the parameters that are averaged, as for `adam_tx.groups`. Others have no average.
      dtype: what the average is stored in, of 32 bits or more; None for float32, or wider
        where the parameter is. In fewer, rounding is as large as what is averaged away.
      name: what the average is called in the state, to tell a second one apart, around the first.

    Returns:
      A `Link` with state `(count, average, inner)`, and n as `averaged` where it counts. Its
      `update` needs `params`.

    Raises:
      TypeError: what is no transformation.
      ValueError: a number out of range, a `dtype` of fewer bits, a `name` that an average
        inside has; at `init`, a pattern that matches no leaf; a link behind it in a chain,
        which would change what it has averaged.

    References: Polyak & Juditsky, 1992; Izmailov et al., SWA, 2018 (https://arxiv.org/abs/1803.05407).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> import optax
    >>> tx = adam_tx.average_weights(adam_tx.sgd(1.0), "uniform")
    >>> params = jnp.array([0.0])
    >>> state = tx.init(params)
    >>> for _ in range(3):
    ...     updates, state = tx.update(jnp.array([-1.0]), state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> params, adam_tx.averaged_weights(params, state)  # the mean of 0, 1, 2 and 3
    (Array([3.], dtype=float32), Array([1.5], dtype=float32))
    """
    return AverageWeights(inner, decay, debias, start, every, pattern, dtype, name)


def averaged_weights(
    params: optax.Params, opt_state: optax.OptState, name: str | None = None, *, keep_dtype: bool = False
) -> optax.Params:
    """The weights that `average_weights` has averaged, to evaluate or export.

    Args:
      params: the tree of parameters.
      opt_state: the state of an optimizer with `average_weights` in it, at any depth, or of
        `adam_tx.interop.keras.from_config` with `use_ema`.
      name: that of the average, where there are several.
      keep_dtype: whether they come in the dtype that they are kept in, such as float32 beside
        bfloat16 parameters; by default in that of each parameter.

    Returns:
      The tree with the average in the place of every parameter that has one; others as they are.

    Raises:
      ValueError: a state without an average, or without one of this name; several, and no
        name; parameters that it is not of.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> fast = adam_tx.average_weights(adam_tx.adam(1e-3), 0.9, name="fast")
    >>> tx = adam_tx.average_weights(fast, 0.999, name="slow")
    >>> params = {"kernel": jnp.ones(2), "bias": None}
    >>> adam_tx.averaged_weights(params, tx.init(params), "slow")
    {'bias': None, 'kernel': Array([1., 1.], dtype=float32)}
    """
    leaves = Leaves.of_params(unboxed(params))
    found: dict[int, Any] = {}
    for _, node in _of_name(name, unboxed(opt_state)):
        for i, average in enumerate(_column(leaves, _averaging.tree_of(node))):
            if is_absent(average):
                continue
            param = leaves.initial[i]
            if i in found or average.shape != param.shape:
                raise ValueError(
                    f"params: leaf {leaves.path(i)} of shape {param.shape} has an average of {average.shape} in "
                    f"opt_state{', and another one' if i in found else ''}; give the params that it was made for."
                )
            found[i] = average if keep_dtype else average.astype(param.dtype)
    return boxed_like(leaves.tree([found.get(i, x) for i, x in enumerate(leaves.initial)]), params)


def with_averaged_weights(
    opt_state: optax.OptState, average: optax.Params, name: str | None = None, *, averaged: float | None = None
) -> optax.OptState:
    """Go on from an average that somebody else has made, such as that of a checkpoint.

    With n updates behind it, `optax.ema(decay, debias=False)` of the weights, or a tree by
    `optax.incremental_update`, is that average. That of `optax.ema(decay)` before it is
    debiased is `average * (1 - decay**n)`, and `averaged` is `(1 - decay**n) / (1 - decay)`.

    Args:
      opt_state: the state of an optimizer with `average_weights` in it, as `init` made it, or later.
      average: a tree like the parameters.
      name: that of the average, where there are several.
      averaged: how many weights are in it, where the state counts them: with `debias`, and "uniform".

    Returns:
      The state with this average, in the dtypes that it had.

    Raises:
      ValueError: a state without an average of this name; another tree or other shapes than
        it has; an `averaged` that is missing, or that the state does not have.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.average_weights(adam_tx.adam(1e-3), 0.999)
    >>> params = jnp.array([1.0, 2.0])
    >>> state = with_averaged_weights(tx.init(params), jnp.array([0.5, 1.5]))
    >>> adam_tx.averaged_weights(params, state)
    Array([0.5, 1.5], dtype=float32)
    """
    state, tree = unboxed(opt_state), unboxed(average)
    own = _of_name(name, state)
    counts = [(*path[:-1], jax.tree_util.GetAttrKey("averaged")) for path, _ in own]
    counted: list[Any] = []

    def put(path: Any, node: Any) -> Any:
        if any(node is of for _, of in own):
            return _averaging.replaced(node, _put(_averaging.tree_of(node), tree))
        if path not in counts:
            return node
        counted.append(path)
        return jnp.asarray(_number(averaged), node.dtype)

    found = jax.tree_util.tree_map_with_path(put, state, is_leaf=_averaging.is_state)
    if averaged is not None and not counted:
        raise ValueError(
            f"with_averaged_weights: averaged={averaged} came, but this average does not count what is in it. Leave it "
            "out, or give average_weights debias=True."
        )
    return boxed_like(found, opt_state)


def _number(averaged: float | None) -> float:
    if averaged is None or averaged < 1:
        raise ValueError(
            f"with_averaged_weights: averaged must say how many weights are in the average, at least 1, got {averaged}."
        )
    return averaged


def _put(before: Any, average: Any) -> Any:
    """The average in the place of the one before, leaf by leaf."""

    def put(path: Any, old: Any, new: Any) -> Any:
        if is_absent(old):
            return old
        if jnp.shape(new) != old.shape:
            raise ValueError(
                f"average: leaf {path_str(path)} has shape {jnp.shape(new)}, but the parameter has {old.shape}; give "
                "the average of these parameters."
            )
        return jnp.array(new, old.dtype, copy=True)

    try:
        return jax.tree_util.tree_map_with_path(put, before, average, is_leaf=is_absent)
    except (TypeError, ValueError) as error:
        if str(error).startswith("average:"):
            raise
        raise ValueError(
            f"average: it came as {jax.tree.structure(average)}, which is another tree than the parameters'; give a "
            "tree like those that init was given."
        ) from None


def _of_name(name: str | None, opt_state: optax.OptState) -> list[tuple[Any, Any]]:
    """The averages of this name, one a group of parameters, each with its path in the state."""
    by_name: dict[str, list[tuple[Any, Any]]] = {}
    for path, node in jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=_averaging.is_state):
        if _averaging.is_state(node):
            by_name.setdefault(_averaging.name_of(path, node), []).append((path, node))
    if not by_name:
        raise ValueError("opt_state: it holds no average; give that of an optimizer with adam_tx.average_weights.")
    if name is None and len(by_name) == 1:
        (name,) = by_name
    if name not in by_name:
        raise ValueError(f"average: name must be one of {sorted(by_name)}, those in opt_state, got {name!r}.")
    return by_name[name]


def _column(leaves: Leaves, tree: Any) -> list[Any]:
    """What an average has for each parameter."""
    try:
        return leaves.column(tree, "the average", optional=True)
    except ValueError:
        raise ValueError(
            f"params: they came with the leaves {some(leaves.paths)}, which is another tree than the average's in "
            "opt_state; give the params that init was given."
        ) from None
