"""Six optimizers and a wrapper, written with what `adam_tx` exports, in at most twenty lines of code each.

The rule of one leaf is all that a link needs: dtypes, checks, debiasing and errors
come with it. Each optimizer here shows another thing that a rule can do:

- `pnorm_adam`: exchange one link of Adam, with a hyperparameter of your own.
- `adan`: keep several averages, and the gradient of the update before.
- `came`: no new rule; a known link that sees another gradient.
- `muon`: treat a matrix as a whole, and give what is no matrix to another optimizer.
- `prodigy`: share numbers between all leaves, from sums over the whole tree.
- `galore`: run Adam in a basis of your own.
- `clip_to_average_norm`: stand around any optimizer, and look at all leaves together.

To train a small network with each, and see the losses and the sizes of the states::

    python examples/own_links.py
"""

import argparse
import ast
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.pretty import pprint
from rich.table import Table

import adam_tx
from adam_tx import Basis, Decay, Link, NonNegative, Positive, Rule, Slot, Turn, chain, link, optimizer, total
from adam_tx.numerics import abs_sq, divide, ema, power, root, root_and_divide, square


@link(slots={"nu": Slot("square", decay="decay")}, debiases=("decay",))
def scale_by_pnorm(decay: Decay = 0.999, eps: NonNegative = 1e-8, p: Positive = 1.5) -> Rule:
    """Divide the updates by the p-th root of the running mean of |g|^p.

    With g the gradient that entered the chain, u the incoming updates and nu from zero::

        nu <- nu + (1 - decay) · (|g|^p - nu)
        u  <- u / ((nu / (1 - Π decay))^(1/p) + eps)

    At p = 2 this is `adam_tx.scale_by_rms(debias=True)`. The larger p is, the more the
    largest gradients count.

    Reference: Kingma & Ba, Adam, 2015, section 7.1 (https://arxiv.org/abs/1412.6980).
    """

    def rule(now, updates, grad, nu):
        nu = ema(nu, power(abs(grad), now.p), now.decay.step)
        return divide(updates, nu / now.decay.weight, now.eps, root=lambda v: v ** (1 / now.p)), nu

    return Rule(rule, formula="v += (1 - decay)(|g|^p - v); u / ((v / (1 - Π decay))^(1/p) + eps)", debias=["decay"])


@optimizer
def pnorm_adam(learning_rate: NonNegative, b1: Decay = 0.9, b2: Decay = 0.999, p: Positive = 1.5) -> Link:
    """Adam with the p-norm in place of the root mean square: one of its four links is another."""
    return chain(
        adam_tx.scale_by_momentum(b1),
        scale_by_pnorm(b2, p=p),
        adam_tx.bias_correction(),
        adam_tx.scale_by_learning_rate(learning_rate),
    )


@link(
    slots={
        "mu": Slot("gradient", "b1"),
        "delta": Slot("gradient", "b2"),
        "nu": Slot("square", "b3"),
        "previous": Slot("gradient"),
    },
    debiases=("b1", "b2", "b3"),
)
def scale_by_adan(b1: Decay = 0.98, b2: Decay = 0.92, b3: Decay = 0.99, eps: NonNegative = 1e-8) -> Rule:
    """Replace the updates by Adan's direction: momentum that looks ahead along the change of the gradient.

    With g the incoming updates, and c how they changed since the update before, zero at the first::

        mu    <- mu + (1 - b1) · (g - mu)
        delta <- delta + (1 - b2) · (c - delta)
        nu    <- nu + (1 - b3) · (|g + b2 · c|² - nu)
        u      = (mu + b2 · delta) / (sqrt(nu) + eps)          each average debiased

    This is the official code, whose decays are one less those of the paper. Optax
    multiplies c and delta by 1 - b2 instead, which is the same at b2 = 1/2 only.

    Reference: Xie et al., Adan, 2022 (https://arxiv.org/abs/2208.06677).
    """

    def rule(now, updates, mu, delta, nu, previous):
        change = jnp.where(now.count == 0, 0.0, updates - previous)
        mu, delta = ema(mu, updates, now.b1.step), ema(delta, change, now.b2.step)
        nu = ema(nu, abs_sq(updates + now.b2.value * change), now.b3.step)
        ahead = mu / now.b1.weight + now.b2.value * delta / now.b2.weight
        return root_and_divide(ahead, nu / now.b3.weight, now.eps), mu, delta, nu, updates

    return Rule(rule, formula="(mu + b2 · delta) / (sqrt(nu) + eps), debiased", debias=["b1", "b2", "b3"])


@optimizer
def adan(learning_rate: NonNegative, b1: Decay = 0.98, b2: Decay = 0.92, b3: Decay = 0.99) -> Link:
    """Adan. `adam_tx.add_decayed_weights` between the two gives the weight decay of `no_prox` in the official code."""
    return chain(scale_by_adan(b1, b2, b3), adam_tx.scale_by_learning_rate(learning_rate))


@optimizer
def came(
    learning_rate: NonNegative, b1: Decay = 0.9, b2: Decay = 0.999, b3: Decay = 0.9999, weight_decay: NonNegative = 0.0
) -> Link:
    """Adafactor whose momentum takes smaller steps where the updates stray from it.

    With g the gradient of a matrix, and V(x, d, e) the rows times the columns of the
    running mean of |x|² + e with decay d::

        u  = g / sqrt(V(g, b2, 1e-30))
        u  = u / max(1, rms(u))
        mu = EMA of u with b1
        update = -learning_rate · (mu / sqrt(V(u - mu, b3, 1e-16)) + weight_decay · params)

    The inner chain is there for its raw gradient: it is u, so that the last link sees
    u - mu. Of a leaf with one axis V is the whole average, and its momentum is the update.

    Reference: Luo et al., CAME, 2023 (https://arxiv.org/abs/2307.02047), as the official code.
    """

    def matrices(params):
        return jax.tree.map(lambda p: p.ndim > 1, params)

    confidence = adam_tx.with_gradient(
        adam_tx.scale_by_row_column_rms(b3, eps_stored=1e-16),
        lambda u, mu: jnp.where(u == mu, 0.0, u - mu),  # where they agree, a constant to derivatives
    )
    return chain(
        adam_tx.scale_by_row_column_rms(b2),
        adam_tx.clip_by_rms(1.0),
        chain(adam_tx.scale_by_momentum(b1), optax.masked(confidence, matrices, mask_compatible_extra_args=True)),
        adam_tx.add_decayed_weights(weight_decay),
        adam_tx.scale_by_learning_rate(learning_rate),
    )


@link
def orthogonalize(steps: int = 5, eps: NonNegative = 1e-7) -> Rule:
    """Bring the singular values of a matrix of updates near one, by an iteration after Newton and Schulz.

    With X an m × n matrix of the updates, divided by its Frobenius norm plus eps::

        X <- 3.4445 X - 4.7750 (X Xᴴ) X + 2.0315 (X Xᴴ)² X     `steps` times
        u <- X · sqrt(max(1, n / m))

    The axes of a kernel are (in, out), as in Flax and in Optax; PyTorch's are (out, in).

    Reference: Jordan et al., Muon, 2024 (https://kellerjordan.github.io/posts/muon).
    """

    def rule(now, updates, size):
        rows, cols = updates.shape
        x = (updates.T if rows > cols else updates) / (root(size) + now.eps)
        for _ in range(steps):
            a = x @ x.conj().T
            x = 3.4445 * x + (2.0315 * a @ a - 4.7750 * a) @ x
        return (x.T if rows > cols else x) * max(1, cols / max(rows, 1)) ** 0.5

    return Rule(rule, formula="U Vᴴ of u = U S Vᴴ, nearly", statistics={"size": total(lambda updates: square(updates))})


@optimizer
def muon(
    learning_rate: NonNegative, others: Link, b1: Decay = 0.95, eps: NonNegative = 1e-7, *, debias: bool = False
) -> Link:
    """Orthogonalized momentum for matrices, and `others` for leaves of another rank.

    With `debias` it looks ahead as Optax does, which divides mu and g by their weights.
    """

    def kinds(params):
        return jax.tree.map(lambda p: "matrix" if p.ndim == 2 else "other", params)

    momentum = adam_tx.scale_by_momentum(b1, nesterov=True, debias=debias)
    of_matrices = chain(momentum, orthogonalize(eps=eps), adam_tx.scale_by_learning_rate(learning_rate))
    parts = optax.partition({"matrix": of_matrices, "other": others}, kinds)
    return adam_tx.as_link(parts, name="muon", formula="-learning_rate · orthogonalized momentum, or `others`")


@link(
    slots={"mu": Slot("gradient", "b1"), "nu": Slot("square", "b2"), "s": Slot("gradient"), "start": Slot("params")},
    numbers={"growth": 1.0, "numerator": 0.0},
)
def prodigy(
    learning_rate: NonNegative = 1.0, b1: Decay = 0.9, b2: Decay = 0.999, eps: NonNegative = 1e-8, d0: Positive = 1e-6
) -> Rule:
    """Adam that finds its step size: a growing estimate d of how far the start is from the solution.

    With p the parameters, and d from d0, d' the new one::

        r  <- sqrt(b2) · r + learning_rate · (d / d0)² · Σ g (start - p)      over the whole tree
        s  <- sqrt(b2) · s + learning_rate · (d / d0)² · g
        d' = max(d, r / Σ |s|)
        mu <- mu + (1 - b1) · (d g - mu)
        nu <- nu + (1 - b2) · (|d g|² - nu)
        update = -learning_rate · d · mu / (sqrt(nu) + d' eps)

    This is the official code with its defaults. Optax always debiases, which is the
    schedule sqrt(1 - b2^t) / (1 - b1^t) for `learning_rate`.

    Reference: Mishchenko & Defazio, Prodigy, 2023 (https://arxiv.org/abs/2306.06101).
    """

    def add(now, so_far, new, growth):
        return now.b2.value**0.5 * so_far + now.learning_rate * growth**2 * new

    def numbers(now, growth, numerator, moved, size):
        numerator = add(now, numerator, moved, growth)
        found = divide(numerator, size, 0.0) / now.d0
        return {"growth": jnp.maximum(growth, found), "numerator": numerator, "before": growth}

    def rule(now, updates, params, mu, nu, s, start, growth, before):
        d, s = now.d0 * before, add(now, s, updates, before)
        mu, nu = ema(mu, d * updates, now.b1.step), ema(nu, abs_sq(d * updates), now.b2.step)
        return -now.learning_rate * d * root_and_divide(mu, nu, now.d0 * growth * now.eps), mu, nu, s, start

    moved = total(lambda updates, params, start: (updates.conj() * (start - params)).real, over="tree")
    size = total(lambda now, updates, s, growth: abs(add(now, s, updates, growth)), over="tree")
    return Rule(rule, "-learning_rate · d · Adam of d g", numbers=numbers, statistics={"moved": moved, "size": size})


@dataclass
class GradientSubspace(Basis):
    """The first singular vectors of a matrix's gradient along its shorter axis, if that is longer than `rank`."""

    rank: int
    every: int = 200

    def axes(self, path: str, shape: tuple[int, ...]) -> Sequence[int]:
        """The shorter one; the second of two that are as long."""
        return [int(shape[0] >= shape[1])] if len(shape) == 2 and min(shape) > self.rank else []

    def size(self, n: int) -> int:
        """As many vectors as the rank."""
        return self.rank

    def find(self, basis: jax.Array, memory: Any, grad: jax.Array, axis: int, count: jax.Array) -> Turn:
        """Those of the gradient that is there. They come by falling size, and so do the old."""
        vectors, *_ = jnp.linalg.svd(jnp.moveaxis(grad, axis, 0), full_matrices=False)
        return Turn(vectors[:, : self.rank], jnp.arange(self.rank))


@optimizer
def galore(
    learning_rate: NonNegative, b1: Decay = 0.9, b2: Decay = 0.999, *, rank: int = 128, every: int = 200
) -> Link:
    """Adam in the subspace of the gradient's first singular vectors, with moments as small as that.

    With P the first `rank` left singular vectors of an m × n gradient g, m < n, found
    anew every `every` updates::

        update = -learning_rate · P Adam(Pᴴ g)              P on the right where m >= n

    The mean follows a change from P to P' as P'ᴴ P mu; in the official code it stays as
    it is. Weight decay, which needs the whole parameters, would stand behind.

    Reference: Zhao et al., GaLore, 2024 (https://arxiv.org/abs/2403.03507).
    """
    adam = chain(adam_tx.scale_by_momentum(b1), adam_tx.scale_by_rms(b2), adam_tx.bias_correction())
    return chain(
        adam_tx.in_basis(adam, GradientSubspace(rank, every)),
        adam_tx.scale_by_learning_rate(learning_rate),
    )


class ClipToAverageNorm(adam_tx.Wrapper):
    """What runs behind `clip_to_average_norm`."""

    formula = "inner(u), u no longer than factor · its average norm"

    def init_own(self, leaves: adam_tx.Leaves) -> dict[str, jax.Array]:
        """No norm was seen yet."""
        return {"mean_norm": jnp.zeros((), leaves.scalar_dtype)}

    def update_leaves(self, leaves: adam_tx.Leaves, updates: list[Any], state: Any) -> tuple[list[Any], Any]:
        """Clip, let the inner optimizer step, and average."""
        mean = self.fields(state).mean_norm
        norm = root(sum((jnp.sum(square(updates[i])).astype(mean.dtype) for i in leaves.present), jnp.zeros_like(mean)))
        most = jnp.where(leaves.count == 0, norm, self.at("factor", leaves) * mean)
        scale = jnp.where(norm > most, divide(most, norm, 0.0), 1.0)
        clipped = leaves.each(lambda u: u * scale.astype(u.real.dtype), updates)
        if leaves.grad is updates:  # what comes in is the raw gradient; so is what goes in
            leaves = leaves.replace(grad=clipped)
        emitted, inner = self.run_inner(leaves, clipped, state.inner)
        step = jnp.maximum(1.0 - self.at("decay", leaves), 1.0 / (leaves.count + 1).astype(mean.dtype))
        return emitted, self.state(inner, mean_norm=ema(mean, norm * scale, step))


@optimizer
def clip_to_average_norm(inner: Any, factor: Positive = 2.0, decay: Decay = 0.98) -> adam_tx.Wrapper:
    """Give `inner` a gradient that is not much longer than gradients have been so far.

    With G the norm of the gradient g over the whole tree, t the number of updates, this
    one included, and no clipping at the first::

        c     = min(1, factor · mean / G)
        g    <- c · g                                          what `inner` sees
        mean <- mean + max(1 - decay, 1 / t) · (c · G - mean)

    So a spike moves neither the moments nor the limit by much, and no limit has to be
    chosen by hand. Where gradients lastingly grow, the limit grows with them. A gradient
    that is not finite is not mended: put `adam_tx.guard` around it all.

    After AdaGC, which does this for each tensor by itself (Wang et al., 2025,
    https://arxiv.org/abs/2502.11034).
    """
    hyperparams = {"factor": factor, "decay": decay}
    facts: Any = {"changes_gradient": True, "elementwise": False}  # where it is otherwise than `inner`
    return ClipToAverageNorm(inner, name="clip_to_average_norm", keeps=["mean_norm"], hyperparams=hyperparams, **facts)


class Own(NamedTuple):
    """An optimizer, and what was written for it."""

    tx: optax.GradientTransformation
    written: Sequence[Callable[..., Any]] = ()


OWN = {
    "adam": Own(adam_tx.adam(3e-2)),
    "pnorm_adam": Own(pnorm_adam(3e-2), (scale_by_pnorm, pnorm_adam)),
    "adan": Own(adan(3e-2), (scale_by_adan, adan)),
    "came": Own(came(1e-2), (came,)),
    "muon": Own(muon(3e-2, adam_tx.adamw(3e-2)), (orthogonalize, muon)),
    "prodigy": Own(prodigy(), (prodigy,)),
    "galore": Own(galore(3e-2, rank=4, every=20), (GradientSubspace, galore)),
    "clipped adam": Own(clip_to_average_norm(adam_tx.adam(3e-2)), (ClipToAverageNorm, clip_to_average_norm)),
}


def code_lines(written: Sequence[Callable[..., Any]]) -> int:
    """The number of lines of functions and classes, decorators included, without docstrings and empty lines."""
    source = "\n".join(map(inspect.getsource, written))
    documented = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    for docstring in filter(None, (ast.get_docstring(node, clean=False) for node in documented)):
        source = source.replace(f'"""{docstring}"""', "")
    return sum(bool(line.strip()) for line in source.splitlines())


def problem(seed: int, size: int = 512, width: int = 32) -> tuple[Any, Callable[[Any], jax.Array]]:
    """The parameters of a network 16-32-8, and its mean squared error against another such network."""
    keys = jax.random.split(jax.random.key(seed), 3)

    def network(key: jax.Array) -> Any:
        hidden, output = jax.random.split(key)
        return {
            "hidden": {"kernel": jax.random.normal(hidden, (16, width)) / 4.0, "bias": jnp.zeros(width)},
            "output": {"kernel": jax.random.normal(output, (width, 8)) / width**0.5, "bias": jnp.zeros(8)},
        }

    def apply(params: Any, x: jax.Array) -> jax.Array:
        x = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
        return x @ params["output"]["kernel"] + params["output"]["bias"][None]

    x = jax.random.normal(keys[0], (size, 16))
    y = apply(network(keys[1]), x)
    return network(keys[2]), lambda params: jnp.mean(jnp.square(apply(params, x) - y))


def train(tx: optax.GradientTransformation, params: Any, loss: Callable[[Any], jax.Array], steps: int) -> jax.Array:
    """The loss before every step, in one jitted scan."""

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    return jax.jit(lambda params: lax.scan(step, (params, tx.init(params)), length=steps + 1)[1])(params)


def bytes_per_parameter(tx: optax.GradientTransformation, params: Any) -> float:
    """The size of the state, scalars included, over the number of parameters."""
    state = jax.tree.leaves(jax.eval_shape(tx.init, params))
    return sum(x.size * x.dtype.itemsize for x in state) / sum(x.size for x in jax.tree.leaves(params))


def race(steps: int, seed: int) -> Table:
    """Train with each, and tabulate."""
    params, loss = problem(seed)
    table = Table(title=f"{steps} steps on the whole of a small regression", box=SIMPLE_HEAD, header_style="none")
    for name in ("optimizer", "lines of code", "loss before", "loss after", "bytes per parameter"):
        table.add_column(name, justify="left" if name == "optimizer" else "right")
    for name, own in OWN.items():
        losses = train(own.tx, params, loss, steps)
        lines = str(code_lines(own.written)) if own.written else "in adam_tx"
        size = bytes_per_parameter(own.tx, params)
        table.add_row(name, lines, f"{losses[0]:.3f}", f"{losses[-1]:.2g}", f"{size:.1f}")
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """The table, and what a link of one's own says of itself."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300, help="(default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the data and the weights (default %(default)s)")
    args = parser.parse_args(argv)
    console = Console()
    console.print(race(args.steps, args.seed))
    mine = OWN["pnorm_adam"].tx
    console.print(repr(mine))
    pprint(adam_tx.get_config(mine), console=console)


if __name__ == "__main__":
    main()
