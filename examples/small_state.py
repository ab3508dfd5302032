"""A small character model, trained with float32 AdamW and then in five bytes a parameter.

AdamW in float32 keeps twelve bytes of every parameter between two steps: the weight
and two moments. Here the weight is a bfloat16 with an 8-bit residual, and each
moment has eight bits. The text is the help that comes with Python. For the table
and the figure::

    python examples/small_state.py --plot small_state.png
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import adam_tx

Loss = Callable[[Any, Any], jax.Array]  # of parameters and a batch
Train = Callable[[Any, Any, Any], tuple[Any, Any, jax.Array]]

LENGTH = 32  # characters that the model sees at once
BATCH = 8
EVERY = 50  # steps in a jitted call, and between measurements
LEARNING_RATE = 1e-3  # the highest of the schedule


class Recipe(NamedTuple):
    """How to train.

    Attributes:
      make: from a learning rate or schedule to an optimizer.
      dtype: that of the weights.
    """

    make: Callable[[Any], optax.GradientTransformation]
    dtype: Any


def five_bytes(learning_rate: Any) -> optax.GradientTransformation:
    """AdamW with 8-bit moments, for bfloat16 weights with 8-bit residuals."""
    eight_bit = adam_tx.storage.EightBit()
    return adam_tx.chain(
        adam_tx.adamw(learning_rate, mu_dtype=eight_bit, nu_dtype=eight_bit), adam_tx.master_weights(bits=24)
    )


RECIPES = {"float32": Recipe(adam_tx.adamw, jnp.float32), "5 bytes": Recipe(five_bytes, jnp.bfloat16)}


class Text(NamedTuple):
    """Characters (n,), uint8 below 128."""

    training: np.ndarray
    validation: np.ndarray


def split(documents: Iterable[str]) -> Text:
    """The last tenth of every document is for validation; what is not ASCII becomes a question mark."""
    parts = [(text[: -len(text) // 10], text[-len(text) // 10 :]) for text in documents]
    return Text(
        *(np.frombuffer("\n".join(part).encode("ascii", "replace"), np.uint8) for part in zip(*parts, strict=True))
    )


def load_topics() -> Text:
    """What Python's `help("topics")` can explain: 460,000 characters."""
    return split(topics[name] for name in sorted(topics))


def draw_batches(characters: np.ndarray, seed: int, steps: int) -> np.ndarray:
    """Windows at random places, (steps, batch, length + 1): each character's target is the next one."""
    starts = np.random.default_rng(seed).integers(len(characters) - LENGTH, size=(steps, BATCH, 1))
    return characters[starts + np.arange(LENGTH + 1)]


def spread_batches(characters: np.ndarray, batches: int) -> np.ndarray:
    """Windows at even distances, (batches, batch, length + 1)."""
    starts = np.linspace(0, len(characters) - LENGTH - 1, batches * BATCH, dtype=int).reshape(batches, BATCH, 1)
    return characters[starts + np.arange(LENGTH + 1)]


class Block(nnx.Module):
    """Causal attention and an MLP, each behind a layer norm and beside a residual connection that is all at first."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        linear = partial(nnx.Linear, use_bias=False, rngs=rngs)
        closed = partial(linear, kernel_init=nnx.initializers.zeros_init())
        self.heads = heads
        self.before_attention = nnx.LayerNorm(width, use_bias=False, rngs=rngs)
        self.qkv, self.out = linear(width, 3 * width), closed(width, width)
        self.before_mlp = nnx.LayerNorm(width, use_bias=False, rngs=rngs)
        self.up, self.down = linear(width, 2 * width), closed(2 * width, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """From (batch, length, width) to the same."""
        qkv = self.qkv(self.before_attention(x)).reshape(*x.shape[:2], 3 * self.heads, -1)
        attended = jax.nn.dot_product_attention(*jnp.split(qkv, 3, axis=2), is_causal=True)
        x = x + self.out(attended.reshape(x.shape))
        return x + self.down(nnx.gelu(self.up(self.before_mlp(x))))


class CharacterModel(nnx.Module):
    """A transformer over ASCII, with learned positions and one embedding for input and output."""

    def __init__(self, rngs: nnx.Rngs, width: int = 256, depth: int = 2, heads: int = 8):
        embed = partial(nnx.Embed, features=width, embedding_init=nnx.initializers.normal(0.02), rngs=rngs)
        self.characters, self.positions = embed(128), embed(LENGTH)
        self.blocks = nnx.List([Block(width, heads, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, use_bias=False, rngs=rngs)

    def __call__(self, characters: jax.Array) -> jax.Array:
        """From characters (batch, length) to logits (batch, length, 128)."""
        x = self.characters(characters) + self.positions(jnp.arange(characters.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.characters.attend(self.norm(x))


def create_model(seed: int) -> tuple[Loss, Any]:
    """The loss, a mean over characters in nats, and float32 parameters: 1.1 million of them."""
    graphdef, params = nnx.split(CharacterModel(nnx.Rngs(seed)))

    def loss(params: Any, batch: jax.Array) -> jax.Array:
        """Computed in float32 whatever the weights are kept in; bfloat16 is no faster on a CPU."""
        model = nnx.merge(graphdef, cast(params, jnp.float32))
        batch = batch.astype(jnp.int32)
        return optax.softmax_cross_entropy_with_integer_labels(model(batch[:, :-1]), batch[:, 1:]).mean()

    return loss, params


def cast(tree: Any, dtype: Any) -> Any:
    """A copy of the tree, all leaves in a dtype."""
    return jax.tree.map(lambda x: jnp.array(x, dtype), tree)


def make_train(tx: optax.GradientTransformation, loss: Loss) -> Train:
    """A jitted `(params, state, batches) -> (params, state, losses)`: one step for each batch of the leading axis.

    Gradients have the dtype of the weights. Parameters and state are donated.
    """

    def step(carry: tuple[Any, Any], batch: Any) -> tuple[tuple[Any, Any], jax.Array]:
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    @partial(jax.jit, donate_argnums=(0, 1))
    def train(params: Any, state: Any, batches: Any) -> tuple[Any, Any, jax.Array]:
        (params, state), losses = lax.scan(step, (params, state), batches)
        return params, state, losses

    return train


@cache
def make_evaluate(loss: Loss) -> Callable[[Any, Any], jax.Array]:
    """A jitted mean of the loss over the batches of the leading axis."""
    return jax.jit(lambda params, batches: jnp.mean(lax.map(partial(loss, params), batches)))


PARTS = {"mu": "first moment", "nu": "second moment", "residual": "residual"}  # by their names in states


def by_part(params: Any, state: Any) -> list[tuple[str, Any]]:
    """All arrays, each with the name of the part of the memory that it belongs to."""
    parts = [("weights", leaf) for leaf in jax.tree.leaves(params)]
    for path, leaf in jax.tree.leaves_with_path(state):
        fields = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
        parts.append((next((PARTS[field] for field in fields if field in PARTS), "scales and counts"), leaf))
    return parts


def measure_bytes(params: Any, state: Any) -> dict[str, int]:
    """What the buffers of parameters and state hold, by part; one that appears twice counts once."""
    sizes, seen = dict.fromkeys(("weights", *PARTS.values(), "scales and counts"), 0), set()
    for part, leaf in by_part(params, state):
        if (buffer := leaf.unsafe_buffer_pointer()) not in seen:
            sizes[part] += leaf.nbytes
            seen.add(buffer)
    return sizes


@jax.jit
def whole_weights(params: Any, state: Any) -> Any:
    """The weights to judge, in float32: joined with their residuals, where there are any."""
    split = any(part == "residual" for part, _ in by_part(params, state))
    return cast(adam_tx.float32_weights(params, state) if split else params, jnp.float32)


class Run(NamedTuple):
    """What a recipe comes to.

    Attributes:
      validation: the loss on validation text, before training and after every `EVERY` steps.
      parts: bytes of each part of what is kept between steps.
      parameters: how many there are.
    """

    validation: np.ndarray
    parts: Mapping[str, int]
    parameters: int

    def per_parameter(self) -> dict[str, float]:
        """Bytes a parameter."""
        return {part: count / self.parameters for part, count in self.parts.items()}


class Problem(NamedTuple):
    """What all recipes are given.

    Attributes:
      loss: of parameters and a batch.
      params: float32 weights to start from.
      batches: of training, (steps, ...).
      held_out: batches of validation text.
    """

    loss: Loss
    params: Any
    batches: np.ndarray
    held_out: np.ndarray


def create_problem(seed: int, steps: int) -> Problem:
    """Weights and batches depend on the seed."""
    text = load_topics()
    batches = draw_batches(text.training, seed, steps), spread_batches(text.validation, 32)
    return Problem(*create_model(seed), *batches)


def run(recipe: Recipe, problem: Problem, report: Callable[[float], object]) -> Run:
    """Train by a recipe."""
    loss, params, batches, held_out = problem
    steps = len(batches)
    tx = recipe.make(optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, max(steps // 10, 1), steps))
    train, evaluate = make_train(tx, loss), make_evaluate(loss)
    params = cast(params, recipe.dtype)
    state = jax.jit(tx.init)(params)
    validation = [float(evaluate(whole_weights(params, state), held_out))]
    for chunk in batches.reshape(-1, EVERY, *batches.shape[1:]):
        params, state, _ = train(params, state, chunk)
        validation.append(float(evaluate(whole_weights(params, state), held_out)))
        report(validation[-1])
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Run(np.array(validation), measure_bytes(params, state), parameters)


def run_all(seed: int, steps: int) -> dict[str, Run]:
    """Train by every recipe behind a progress bar."""
    problem, runs = create_problem(seed, steps), {}
    columns = MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=Console()) as progress:
        for name, recipe in RECIPES.items():
            bar = progress.add_task(name, total=steps)

            def report(loss: float, bar: Any = bar, name: str = name) -> None:
                progress.update(bar, advance=EVERY, description=f"{name}: validation loss {loss:.3f}")

            runs[name] = run(recipe, problem, report)
    return runs


def render(runs: Mapping[str, Run]) -> Table:
    """The table: a row for each part of the memory, and the losses."""
    first = next(iter(runs.values()))
    table = Table(title="Kept between two steps, bytes a parameter")
    for column in ("", *runs):
        table.add_column(column, justify="right" if column else "left")
    columns = [of.per_parameter() for of in runs.values()]
    for part in first.parts:
        table.add_row(part, *(f"{column[part]:.2f}" if column[part] else "–" for column in columns))
    table.add_section()
    table.add_row("in all", *(f"{sum(column.values()):.2f}" for column in columns), style="bold")
    table.add_section()
    losses = [of.validation[-1] for of in runs.values()]
    table.add_row("validation loss", *(f"{loss:.4f}" for loss in losses))
    table.add_row(f"beside {next(iter(runs))}", "", *(f"{loss - losses[0]:+.4f}" for loss in losses[1:]))
    steps = (len(first.validation) - 1) * EVERY
    table.caption = f"{first.parameters:,} parameters after {steps} steps; losses in nats a character."
    return table


COLOURS = ("#2b3a67", "#d55e00", "#117733", "#e69f00")
SHADES = ("#2b3a67", "#8c9bc8", "#2a7f86", "#8cc5c9", "#404040")
INK = "#404040"


def draw(runs: Mapping[str, Run]) -> Figure:
    """Three panels: the loss, what it differs by, and the bytes of a parameter."""
    figure = Figure(figsize=(12, 6), dpi=130, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    panels = figure.subplot_mosaic([["loss", "memory"], ["difference", "memory"]], width_ratios=(2, 1))
    draw_losses(panels["loss"], runs)
    draw_differences(panels["difference"], runs)
    draw_memory(panels["memory"], runs)
    for ax in panels.values():
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_axisbelow(True)
    return figure


def draw_losses(ax: Axes, runs: Mapping[str, Run]) -> None:
    """Validation losses as lines."""
    for colour, (name, of) in zip(COLOURS, runs.items(), strict=False):
        steps = np.arange(len(of.validation)) * EVERY
        width = 5.0 if name == next(iter(runs)) else 1.6  # so that a line that covers it does not hide it
        ax.plot(steps, of.validation, color=colour, linewidth=width, label=name, alpha=0.9)
    ax.set_title("Validation loss", loc="left", fontsize=12.5, color=INK)
    ax.set(ylabel="nats a character")
    ax.grid(color="#ebebeb", linewidth=0.8)
    ax.legend(frameon=False, labelcolor=INK)


def draw_differences(ax: Axes, runs: Mapping[str, Run]) -> None:
    """Validation losses less that of the first recipe."""
    first = next(iter(runs))
    for colour, of in zip(COLOURS, runs.values(), strict=False):
        ax.plot(np.arange(len(of.validation)) * EVERY, of.validation - runs[first].validation, color=colour)
    ax.set_title(f"The same, less that of {first}", loc="left", fontsize=12.5, color=INK)
    ax.set(xlabel="step", ylabel="nats a character")
    ax.grid(color="#ebebeb", linewidth=0.8)


def draw_memory(ax: Axes, runs: Mapping[str, Run]) -> None:
    """A bar for each recipe, cut into its parts."""
    columns = [of.per_parameter() for of in runs.values()]
    below = np.zeros(len(runs))
    for colour, part in zip(SHADES, columns[0], strict=True):
        heights = np.array([column[part] for column in columns])
        ax.bar(list(runs), heights, bottom=below, color=colour, label=part, width=0.6)
        below += heights
    for x, height in enumerate(below):
        ax.text(x, height + 0.15, f"{height:.2f}", ha="center", color=INK)
    ax.set_title("Kept between two steps", loc="left", fontsize=12.5, color=INK)
    ax.set(ylabel="bytes a parameter", ylim=(0, 1.1 * below.max()))
    ax.legend(frameon=False, labelcolor=INK, reverse=True)


def whole_calls(text: str) -> int:
    """A positive multiple of `EVERY`, for argparse."""
    if (number := int(text)) < 1 or number % EVERY:
        raise argparse.ArgumentTypeError(f"must be a positive multiple of {EVERY}, got {text}")
    return number


def main(argv: Sequence[str] | None = None) -> None:
    """Train, print the table, draw the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=whole_calls, default=600, help="of either recipe (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (default %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw losses and memory, as PNG, PDF or SVG")
    args = parser.parse_args(argv)
    runs = run_all(args.seed, args.steps)
    Console().print(render(runs))
    if args.plot:
        draw(runs).savefig(args.plot)


if __name__ == "__main__":
    main()
