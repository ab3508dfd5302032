"""Small links that scale a whole tensor at once: clipping, caution, and the surprise of a gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import ScalarOrSchedule

from adam_tx import _blocks, _hyperparams, _numerics, _trees
from adam_tx.chain import Link, by_name, chain, check_state, make_link


def clip_by_rms(threshold: float = 1.0) -> Link:
    """Scale each tensor of the updates down to a root mean square of at most `threshold`.

    With n the number of elements of the tensor u::

        u <- u / max(1, ||u|| / (sqrt(n) · threshold))

    `optax.clip_by_block_rms` with finite derivatives at zero.

    Args:
      threshold: above 0, in units of the updates.

    Returns:
      A `Link` without state. Not leafwise.

    Raises:
      ValueError: a threshold that is not positive.

    Reference: Shazeer & Stern, Adafactor, 2018, section 6 (https://arxiv.org/abs/1804.04235).

    >>> import jax.numpy as jnp
    >>> tx = clip_by_rms(1.0)
    >>> tx.update(jnp.array([3.0, 3.0]), tx.init(jnp.zeros(2)))[0]
    Array([1., 1.], dtype=float32)
    """
    return _clip("clip_by_rms", "u / max(1, rms(u) / threshold)", "threshold", threshold, mean=True)


def clip_by_norm(max_norm: float = 1.0) -> Link:
    """Scale each tensor of the updates down to a norm of at most `max_norm`.

    With u the tensor::

        u <- u / max(1, ||u|| / max_norm)

    `optax.clip_by_global_norm` measures all tensors at once instead.

    Args:
      max_norm: above 0, in units of the updates.

    Returns:
      A `Link` without state. Not leafwise.

    Raises:
      ValueError: a norm that is not positive.

    Reference: Pascanu, Mikolov & Bengio, On the Difficulty of Training Recurrent
    Neural Networks, 2013 (https://arxiv.org/abs/1211.5063).

    >>> import jax.numpy as jnp
    >>> tx = clip_by_norm(1.0)
    >>> tx.update(jnp.array([3.0, -4.0]), tx.init(jnp.zeros(2)))[0]
    Array([ 0.6, -0.8], dtype=float32)
    """
    return _clip("clip_by_norm", "u / max(1, ||u|| / max_norm)", "max_norm", max_norm, mean=False)


def _clip(name: str, formula: str, argument: str, limit: float, *, mean: bool) -> Link:
    _hyperparams.positive(argument, limit)

    def rule(u: jax.Array) -> tuple[jax.Array]:
        return (u * (1.0 / jnp.maximum(_numerics.root_mean_square(u, mean=mean) / limit, 1.0)),)

    return _stateless(name, rule, formula, {argument: limit})


def scale_by_trust_ratio() -> Link:
    """Give each tensor of the updates the size of its parameters: LAMB's and LARS's step.

    With u a tensor of the updates and p its parameters::

        u <- u · ||p|| / ||u||             u itself where a norm is 0

    `optax.scale_by_trust_ratio` with finite derivatives where the updates are zero.

    Returns:
      A `Link` without state. Its `update` needs `params`. Not leafwise.

    Raises:
      ValueError: `update` without params.

    Reference: You et al., LAMB, 2020 (https://arxiv.org/abs/1904.00962).

    >>> import jax.numpy as jnp
    >>> tx = scale_by_trust_ratio()
    >>> tx.update(jnp.array([2.0, 0.0]), tx.init(jnp.zeros(2)), jnp.array([3.0, 4.0]))[0]
    Array([5., 0.], dtype=float32)
    """

    def rule(u: jax.Array, p: jax.Array) -> tuple[jax.Array]:
        size, target = (_numerics.root_mean_square(x, mean=False) for x in (u, p))
        ratio = target / jnp.where(size == 0, 1.0, size)
        return (u * jnp.where((size == 0) | (target == 0), 1.0, ratio),)

    return _stateless("scale_by_trust_ratio", rule, "u · ||params|| / ||u||", {}, reads=("updates", "params"))


def scale_by_caution(floor: float = 1e-3, *, step: bool = False) -> Link:
    """Keep only the elements of the updates that the raw gradient agrees with, and make up for the rest.

    With g the gradient and u the incoming updates::

        kept = 1 where u and g have the same sign, else 0
        u   <- u · kept / max(mean of kept over the tensor, floor)

    Args:
      floor: the least share of kept elements to make up for, above 0.
      step: whether what comes in is a step, -learning_rate · u, so that agreement is
        the opposite sign. Of complex elements the real part of u · conj(g) decides.

    Returns:
      A `Link` without state, which reads the gradient. Not leafwise.

    Raises:
      ValueError: a floor that is not positive.

    Reference: Liang et al., Cautious Optimizers, 2024 (https://arxiv.org/abs/2411.16085).

    >>> import jax.numpy as jnp
    >>> tx = scale_by_caution()
    >>> grad = jnp.array([1.0, -1.0])
    >>> tx.update(jnp.array([3.0, 3.0]), tx.init(grad), grad=grad)[0]
    Array([6., 0.], dtype=float32)
    """
    _hyperparams.positive("floor", floor)

    def rule(u: jax.Array, g: jax.Array) -> tuple[jax.Array]:
        agreement = jnp.sign(g) * jnp.sign(u) if not _numerics.is_complex(u) else g.real * u.real + g.imag * u.imag
        kept = ((agreement < 0) if step else (agreement > 0)).astype(agreement.dtype)
        share = jnp.sum(kept) / max(kept.size, 1)
        return (u * (kept / jnp.maximum(share, floor)),)

    formula = f"u · [u and {'-g' if step else 'g'} agree in sign], made up for what is left out"
    return _stateless("scale_by_caution", rule, formula, {"floor": floor, "step": step}, reads=("updates", "grad"))


def scale_by_surprise(
    rms: Link, *members: optax.GradientTransformation, eps: ScalarOrSchedule = 1e-6, threshold: float = 1.0
) -> Link:
    """Slow down a tensor whose gradient is larger than its running root mean square: StableAdamW's clipping.

    The links inside run in turn, as in `chain`; then all they emitted, weight decay
    included, is scaled. With v the debiased second moment of the first of them after
    this update, g the gradient::

        surprise = sqrt(mean over the tensor of |g|² / max(v, eps²))
        u       <- u / max(1, surprise / threshold)

    Args:
      rms: `scale_by_rms`, or another link whose state has `nu`, a debiasable average of |g|².
      *members: what runs after it and is slowed down with it, such as `add_decayed_weights`.
      eps: the least root of v, in units of the gradient; at least 0.
      threshold: the surprise from which on to slow down, above 0.

    Returns:
      A `Link` whose state is that of its members by name. Not leafwise.

    Raises:
      ValueError: a number out of range.
      TypeError: at `init`, a first link whose state has no `nu` and `log_decay`.

    Reference: Wortsman et al., Stable and Low-Precision Training for Large-Scale
    Vision-Language Models, 2023, section 3 (https://arxiv.org/abs/2304.13013).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = scale_by_surprise(adam_tx.scale_by_rms(0.75))
    >>> _, state = tx.update(jnp.ones(1), tx.init(jnp.zeros(1)), grad=jnp.ones(1))
    >>> tx.update(jnp.ones(1), state, grad=7.0 * jnp.ones(1))[0]  # the surprise is 7 / sqrt(28.4)
    Array([0.2159797], dtype=float32)
    """
    _hyperparams.positive("threshold", threshold)
    eps_at = _hyperparams.hyperparameter("eps", eps)
    inside = chain(rms, *members)
    links = by_name((rms, *members))
    first = next(iter(links))

    def init(params: Any) -> Any:
        state: Any = inside.init(params)
        known = {"nu", "log_decay"} <= set(getattr(state[first], "_fields", ()))
        if not known or jax.tree.structure(state[first].nu) != jax.tree.structure(params):
            raise TypeError(
                f"scale_by_surprise: the state of {first} has no nu and log_decay to measure the gradient against; "
                "give scale_by_rms first."
            )
        return state

    def update(updates: Any, state: Any, grad: Any, **extra: Any) -> tuple[Any, Any]:
        check_state(links, state)
        floor = eps_at(state[first].count)
        new = {}
        for name, link in links.items():
            updates, new[name] = link.update(updates, state[name], grad=grad, **extra)
        unbias = 1.0 / new[first].log_decay.weight()

        def rule(u: jax.Array, g: jax.Array, nu: jax.Array) -> tuple[jax.Array, jax.Array]:
            v = _blocks.expand(nu, g.shape) * _numerics.scalar(unbias, nu)
            size = _numerics.root_and_divide_clamped(jnp.abs(g), v, floor, 0.0)
            surprise = _numerics.root_mean_square(size)
            return u * (1.0 / jnp.maximum(surprise / threshold, 1.0)), nu

        inputs, moment = {"updates": updates, "grad": grad}, {"nu": new[first].nu}
        emitted, _ = _trees.map_leaves(rule, inputs, moment, real=moment, blocks=moment)
        return emitted, new

    return make_link(
        "scale_by_surprise",
        init,
        update,
        formula="u / max(1, rms(g / max(sqrt(v), eps)) / threshold)",
        hyperparams={"eps": eps, "threshold": threshold},
        links=links,
        reads_grad=True,
    )


def _stateless(
    name: str, rule: Any, formula: str, hyperparams: dict[str, Any], *, reads: tuple[str, ...] = ("updates",)
) -> Link:
    """A link that is the rule of a tensor, of the trees that it reads in that order."""

    def update(updates: Any, state: Any, params: Any = None, grad: Any = None, **_: Any) -> tuple[Any, Any]:
        if "params" in reads and params is None and updates is not None:
            raise ValueError(f"{name} needs params: call tx.update(updates, state, params).")
        trees = {"updates": updates, "params": params, "grad": grad}
        (emitted,) = _trees.map_leaves(rule, {tree: trees[tree] for tree in reads}, {})
        return emitted, state

    return make_link(
        name, optax.init_empty_state, update, formula=formula, hyperparams=hyperparams, reads_grad="grad" in reads
    )
