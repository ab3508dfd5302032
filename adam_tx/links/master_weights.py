"""`master_weights` and `stochastic_round`: weights in bfloat16 that small steps move all the same."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from adam_tx._core import hyperparams, rounding, states
from adam_tx._core.boxes import boxed_like, unboxed
from adam_tx._core.leaf_step import Now
from adam_tx._core.leaves import is_absent
from adam_tx._core.numerics import dtype_of
from adam_tx._core.paths import path_str
from adam_tx._core.rule import Rule, Slot
from adam_tx._core.storage import Noise, Storage, Stored
from adam_tx._link import link
from adam_tx.storage.bfloat16 import stochastic_bfloat16

_LARGEST = 0x7F7F  # the bits of the largest bfloat16


@link(slots={"residual": Slot("residual", role="residual")})
def master_weights(bits: int = 24, *, stochastic: bool = True) -> Rule:
    """Train bfloat16 weights as if they had 24 or 32 bits: the last link of a chain.

    The state keeps what a weight has beyond its bfloat16. With w the whole number, p the
    parameter and u the incoming updates, which are to be added::

        w  = p and residual joined
        w' = w + u
        p', residual' = w' split                       p' the bfloat16 nearest to w'
        u  <- p' - p

    What is emitted is float32, whatever the gradient's dtype: `optax.apply_updates`
    adds it and comes out at exactly p'. A bfloat16 update could not get there. (Around it
    `optax.apply_if_finite` needs float32 gradients, whose dtype its own zeros have.)

    With 32 bits the residual is an int16 and w a float32 to the last bit: training is
    float32 training. With 24 bits it is an int8, and w is rounded to sixteen bits of
    mantissa, half of which p has. All of it is done with integers, which no compiler
    takes for roundings that it may leave out.

    The links before it in `adam_tx.chain` see w as the parameters: weight decay shrinks
    the whole weight. In `optax.chain` they see p, and their updates come rounded to
    bfloat16. Equinox's `apply_updates` makes the parameters float32; use Optax's.

    Forward and backward passes see the bfloat16 p; `float32_weights` gives w, to evaluate
    or export. Leaves of float32 and wider stay as they are, and have no residual.

    Args:
      bits: of a weight and its residual, 24 or 32.
      stochastic: whether 24 bits are rounded up or down at random, without bias; if not,
        to nearest, and then updates smaller than 2^-17 of their weight are lost.

    Returns:
      A `Link` with state `(count, residual)`.

    Raises:
      ValueError: other `bits`; a link behind it in a chain, which would change the difference.
      TypeError: leaves of 16 bits or less but bfloat16; a leaf whose dtype is not that which `init` saw.

    What is emitted must reach `optax.apply_updates` as it is: behind another transformation,
    or in a wrapper that adds it to something else than the parameters
    (`optax.contrib.schedule_free`, `optax.lookahead`), it is wrong. A weight that is not
    finite becomes NaN; beyond 3.39e38 it stays there. To derivatives nothing is rounded.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.chain(adam_tx.sgd(1e-4), adam_tx.master_weights(bits=32))
    >>> params = jnp.ones(1, jnp.bfloat16)
    >>> updates, state = tx.update(jnp.ones(1, jnp.bfloat16), tx.init(params), params)
    >>> updates, adam_tx.float32_weights(params, state)  # bfloat16 has no number between 0.996 and 1
    (Array([-0.], dtype=float32), Array([0.9999], dtype=float32))
    """
    if hyperparams.check_int("master_weights: bits", bits) not in (24, 32):
        raise ValueError(f"master_weights: bits must be 24 or 32, got {bits}.")
    if not isinstance(stochastic, bool):
        raise TypeError(f"master_weights: stochastic must be True or False, got {stochastic!r}.")

    def rule(
        now: Now, updates: Array, params: Array, residual: Array | None, noise: Array
    ) -> tuple[Array, Array | None]:
        if residual is None:
            return updates, None
        params = params.astype(jnp.float32)
        whole = _joined(params, residual) + updates.astype(jnp.float32)
        kept, residual = _split(lax.stop_gradient(whole), residual.dtype, noise if stochastic else None)
        return _difference(kept, whole, params), residual

    rounded = "" if bits == 32 else ", rounded at random" if stochastic else ", rounded to nearest"
    return Rule(
        rule,
        formula=f"w = p + residual + u in {bits} bits{rounded}; bfloat16(w) - p",
        dtype=_Residual(bits),
        roles={"residual": f"residual_of_{bits}_bits"},
        terminal=True,
    )


@link
def stochastic_round() -> Rule:
    """Train bfloat16 weights without a residual, rounded at random: the last link of a chain.

    With p the parameter and u the incoming updates, which are to be added::

        u  <- p' - p                                   p' = p + u rounded to bfloat16

    It is rounded up or down at random, to the nearer one the more often: an update that
    is far smaller than the spacing of bfloat16, 2^-8 of the weight, moves the weight
    seldom, but as far as it should on average. That is noise of the size of the spacing; a
    residual, as `master_weights` keeps, has 256 times less.

    What is emitted is float32, for `optax.apply_updates`. Leaves of float32 and wider
    get their updates as they are.

    Returns:
      A `Link` without a state of its own.

    Raises:
      ValueError: a link behind it in a chain.
      TypeError: float16 leaves.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.chain(adam_tx.sgd(1e-4), adam_tx.stochastic_round())
    >>> params = jnp.ones(100_000, jnp.bfloat16)
    >>> updates, _ = tx.update(jnp.ones_like(params), tx.init(params), params)
    >>> float(jnp.min(updates)), f"{jnp.mean(updates):.4f}"
    (-0.00390625, '-0.0001')
    """

    def rule(now: Now, updates: Array, params: Array, noise: Array) -> Array:
        params = params.astype(jnp.float32)
        whole = params + updates.astype(jnp.float32)
        kept = stochastic_bfloat16(lax.stop_gradient(whole), noise).astype(jnp.float32)
        return _difference(_bits(kept), whole, params)

    formula = "p' = p + u, rounded at random to bfloat16; p' - p"
    return Rule(rule, formula=formula, terminal=True, mask=_are_bfloat16)


def _are_bfloat16(params: Any) -> Any:
    """For each leaf whether it is bfloat16; float16 is refused."""

    def is_bfloat16(path: Any, param: Any) -> bool:
        _refuse_float16("stochastic_round", path_str(path), param)
        return dtype_of(param) == jnp.bfloat16

    return jax.tree_util.tree_map_with_path(is_bfloat16, params)


def _refuse_float16(link: str, where: str, param: Any) -> None:
    dtype = dtype_of(param)
    if jnp.finfo(dtype).bits < 32 and dtype != jnp.bfloat16:
        raise TypeError(f"{link}: params: leaf {where} is {dtype}, which is not rounded here; use bfloat16 or float32.")


@dataclasses.dataclass(frozen=True)
class _Residual(Storage):
    """What bfloat16 leaves have beyond their dtype, an int8 or int16; nothing of others."""

    bits: int
    optional = True
    at_random = False

    def begin(self, where: str, first: jax.Array, param: jax.Array, kind: str, noise: Noise) -> Stored | None:
        """Zero."""
        del kind, noise
        _refuse_float16("master_weights", where, param)
        is_bfloat16 = dtype_of(param) == jnp.bfloat16
        return Stored(jnp.zeros_like(first, dtype=self._integer())) if is_bfloat16 else None

    def _integer(self) -> Any:
        return jnp.int16 if self.bits == 32 else jnp.int8

    def check_leaf(self, where: Callable[[], str], param: jnp.dtype | None, stored: Stored | None) -> None:
        """Refuse parameters of which another rest was kept."""
        if (param == jnp.bfloat16) == (stored is None):
            raise TypeError(
                f"params: leaf {where()} came as {param}, but when init saw it, it was "
                f"{'another dtype' if stored is None else 'bfloat16'}. Apply updates with optax.apply_updates, which "
                "keeps dtypes, and call init with the parameters as they are trained."
            )
        if stored is not None and stored.values.dtype != self._integer():
            raise TypeError(
                f"state: the residual of leaf {where()} is {stored.values.dtype}, but master_weights({self.bits}) "
                f"keeps {jnp.dtype(self._integer())}. Give update the state that init returned."
            )

    def encode(self, x: jax.Array, like: Stored, noise: Noise) -> Stored:
        """As it is."""
        del like, noise
        return Stored(x)

    def decode(self, stored: Stored, dtype: jnp.dtype) -> jax.Array:
        """As it is."""
        del dtype
        return stored.values

    def full_precision(self, param: jax.Array, residual: Stored) -> jax.Array:
        """The joined weight, float32."""
        return _joined(param.astype(jnp.float32), residual.values)


def float32_weights(params: optax.Params, opt_state: optax.OptState) -> optax.Params:
    """The whole weights that `master_weights` trains, to evaluate or export.

    Args:
      params: the tree of parameters.
      opt_state: the state of an optimizer with `master_weights` in it, at any depth.

    Returns:
      The tree with every bfloat16 leaf joined with its residual, as float32; others as they are.

    Raises:
      ValueError: a state without residuals; parameters that they do not belong to.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> weights = jnp.array([0.1, 0.2])
    >>> params = weights.astype(jnp.bfloat16)
    >>> tx = adam_tx.chain(adam_tx.adam(1e-3), adam_tx.master_weights(bits=32))
    >>> params, state = adam_tx.split_float32_weights(weights, tx.init(params))
    >>> params, adam_tx.float32_weights(params, state)
    (Array([0.100098, 0.200195], dtype=bfloat16), Array([0.1, 0.2], dtype=float32))
    """

    def join(path: Any, param: Any, residual: Any) -> Any:
        if is_absent(param) or is_absent(residual):
            return param
        if param.shape != residual.shape or param.dtype != jnp.bfloat16:
            raise ValueError(
                f"params: leaf {path_str(path)} is {param.dtype}{list(param.shape)}, but its residual is that of a "
                f"bfloat16 leaf of shape {list(residual.shape)}; give the params that belong to the state."
            )
        return _joined(param.astype(jnp.float32), residual)

    whole = unboxed(params)
    for state in _found(unboxed(opt_state)):  # one a group of parameters, with nothing in the place of the others
        _check_tree("params", whole, state.residual)
        whole = jax.tree_util.tree_map_with_path(join, whole, state.residual, is_leaf=is_absent)
    return boxed_like(whole, params)


def split_float32_weights(weights: optax.Params, opt_state: optax.OptState) -> tuple[optax.Params, optax.OptState]:
    """Start `master_weights` from float32 weights, such as those of a checkpoint.

    Args:
      weights: the tree of whole weights.
      opt_state: a state with `master_weights` in it, made by `init` for bfloat16 parameters.

    Returns:
      `(params, opt_state)`: the bfloat16 parameters, and the state with their residuals.
      Of 24 bits a weight is the nearest.

    Raises:
      ValueError: a state without residuals; weights that they do not belong to.
    """

    def split(path: Any, weight: Any, residual: Any) -> Any:
        if is_absent(weight) or is_absent(residual):
            return weight, residual
        if weight.shape != residual.shape:
            raise ValueError(
                f"weights: leaf {path_str(path)} has shape {weight.shape}, but its residual has {residual.shape}; give "
                "the weights of the parameters that init was given."
            )
        bits, rest = _split(weight.astype(jnp.float32), residual.dtype, None)
        return _float(bits).astype(jnp.bfloat16), rest

    params = unboxed(weights)

    def replaced(node: Any) -> Any:
        nonlocal params
        if not _is_state(node):
            return node
        _check_tree("weights", params, node.residual)
        of_paths, tree = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_absent)
        residuals = tree.flatten_up_to(node.residual)
        pairs = [split(*leaf, residual) for leaf, residual in zip(of_paths, residuals, strict=True)]
        params, residual = (tree.unflatten([pair[k] for pair in pairs]) for k in range(2))
        return node._replace(residual=residual)

    state = unboxed(opt_state)
    _found(state)
    state = jax.tree.map(replaced, state, is_leaf=_is_state)
    return boxed_like(params, weights), boxed_like(state, opt_state)


def _found(opt_state: Any) -> list[Any]:
    """The states of `master_weights` in this one."""
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=_is_state) if _is_state(node)]
    if not found:
        raise ValueError("opt_state: it holds no residuals; give that of an optimizer with adam_tx.master_weights.")
    return found


def _check_tree(name: str, tree: Any, residual: Any) -> None:
    given, kept = (jax.tree.structure(t, is_leaf=is_absent) for t in (tree, residual))
    if given != kept:
        raise ValueError(
            f"{name} and the residuals in opt_state are different trees, {given} and {kept}; give those that belong "
            "together."
        )


def _is_state(node: Any) -> bool:
    return isinstance(node, _STATES)


_STATES: Any = tuple(states.state_type("master_weights", fields) for fields in (("residual",), ("count", "residual")))


# A float32 as bits: its upper half, rounded, is a bfloat16, and the rest is what an integer has to make up for. Counted
# from the rounded half it fits into a signed integer of half the size.


@functools.partial(jax.jit, static_argnames="dtype")  # traced once a shape
def _split(whole: jax.Array, dtype: Any, noise: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """The bits of the bfloat16, as those of a float32, and the residual as an integer of this dtype."""
    bits, dropped = _bits(whole), 0 if dtype == jnp.int16 else 8
    finite = (bits & 0x7FFFFFFF) < 0x7F800000
    rounded = bits if not dropped else rounding.drop_bits(bits, dropped, noise) << dropped
    upper = (rounded + 0x8000) >> 16
    sign, size = upper & 0x8000, upper & 0x7FFF
    far = size > _LARGEST
    upper = jnp.where(finite, sign | jnp.where(far, _LARGEST, size), 0x7FC0) << 16
    rest = lax.bitcast_convert_type(rounded - upper, jnp.int32) >> dropped
    most = jnp.iinfo(dtype).max
    return upper, jnp.where(finite, jnp.where(far, most, rest), 0).astype(dtype)


@jax.jit
def _join(upper: jax.Array, residual: jax.Array) -> jax.Array:
    """The whole weight, from the bits of the bfloat16, as those of a float32, and the residual."""
    shift = 0 if residual.dtype == jnp.int16 else 8
    rest = residual.astype(jnp.int32) << shift
    # a weight that was set to zero from outside has no rest: below zero there are no bits
    rest = jnp.where((upper << 1 == 0) & (rest < 0), 0, rest)
    return _float(upper + lax.bitcast_convert_type(rest, jnp.uint32))


@jax.custom_jvp
def _joined(params: jax.Array, residual: jax.Array) -> jax.Array:
    """The whole weights of float32 parameters that hold bfloat16 numbers; to derivatives, the parameters."""
    return _join(_bits(params), residual)


@_joined.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return _joined(*primals), tangents[0]


@jax.custom_jvp
def _difference(kept: jax.Array, whole: jax.Array, params: jax.Array) -> jax.Array:
    """What added to the parameters gives the kept weights to the last bit, the sign of zero included.

    To derivatives, nothing was rounded: `whole - params`.
    """
    del whole
    return jnp.where(kept == _bits(params), -0.0, _float(kept) - params)


@_difference.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return _difference(*primals), tangents[1] - tangents[2]


def _bits(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.uint32)


def _float(bits: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(bits, jnp.float32)
