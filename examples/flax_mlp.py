"""A Keras notebook that trains a small classifier with Adam, cell by cell in Flax NNX and adam_tx.

The network has 132 weights and the labels are noise, so what there is to watch
is the optimizer: what it is made of, how far it moves each weight, what its bias
correction does, and which of the rules called Adam it is. For everything::

    python examples/flax_mlp.py --plot adam.png --compare
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from pprint import pprint
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column, Table

import adam_tx

Data = tuple[jax.Array, jax.Array]

LEARNING_RATE = 1e-3

# What In [9] of the notebook prints.
KERAS_CONFIG = {
    "name": "adam",
    "learning_rate": 0.0010000000474974513,
    "weight_decay": None,
    "clipnorm": None,
    "global_clipnorm": None,
    "clipvalue": None,
    "use_ema": False,
    "ema_momentum": 0.99,
    "ema_overwrite_frequency": None,
    "loss_scale_factor": None,
    "gradient_accumulation_steps": None,
    "beta_1": 0.9,
    "beta_2": 0.999,
    "epsilon": 1e-07,
    "amsgrad": False,
}

# What torch.optim.Adam(model.parameters()).state_dict()["param_groups"][0] holds.
TORCH_GROUP = {
    "lr": 0.001,
    "betas": (0.9, 0.999),
    "eps": 1e-08,
    "weight_decay": 0,
    "amsgrad": False,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "fused": None,
    "decoupled_weight_decay": False,
    "params": [0, 1, 2, 3],
}

DIALECTS = ("keras", "torch", "formula")


class Input(nnx.Module):
    """Keras's Input layer: nothing but the shape of an example, which it checks."""

    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape

    def __call__(self, x: jax.Array) -> jax.Array:
        """The same features (batch, *shape)."""
        if x.shape[1:] != self.shape:
            raise ValueError(f"Input: features must be (batch, {', '.join(map(str, self.shape))}), got {x.shape}.")
        return x


class MLP(nnx.Module):
    """Ten features, ten hidden units with ReLU, a softmax over two classes; Keras's initialisers."""

    def __init__(self, shape: tuple[int, ...], rngs: nnx.Rngs):
        glorot = nnx.initializers.glorot_uniform()
        self.input = Input(shape)
        self.hidden = nnx.Linear(10, 10, kernel_init=glorot, rngs=rngs)
        self.output = nnx.Linear(10, 2, kernel_init=glorot, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Class probabilities (..., 2) of features (..., 10)."""
        return nnx.softmax(self.output(nnx.relu(self.hidden(self.input(x)))))


def get_weights(model: MLP) -> list[jax.Array]:
    """Kernel and bias of each layer, in the order of Keras's `model.get_weights()`."""
    return [w[...] for layer in (model.hidden, model.output) for w in (layer.kernel, layer.bias) if w is not None]


def flat(weights: Sequence[Any]) -> jax.Array:
    """All weights in a row."""
    return jnp.concatenate([jnp.ravel(w) for w in weights])


def categorical_crossentropy(target: jax.Array, output: jax.Array) -> jax.Array:
    """Keras's loss, a mean over batch and positions; targets need not be probabilities, and here they are not."""
    output = output / jnp.sum(output, axis=-1, keepdims=True)
    output = jnp.clip(output, 1e-7, 1.0 - 1e-7)
    return jnp.mean(-jnp.sum(target * jnp.log(output), axis=-1))


def categorical_accuracy(target: jax.Array, output: jax.Array) -> jax.Array:
    """Keras's metric: how often the likeliest class is that of the largest target."""
    return jnp.mean(jnp.argmax(target, axis=-1) == jnp.argmax(output, axis=-1))


class Record(NamedTuple):
    """What is known before an update; over a run, with a leading axis of steps."""

    loss: Any
    accuracy: Any
    weights: Any


Histories = dict[str, Record]  # by dialect, and of "optax.adam"


def train(
    model: MLP,
    tx: optax.GradientTransformation,
    data: Data,
    steps: int,
    report: Callable[[Record], object] = lambda _: None,
) -> tuple[MLP, Record]:
    """Train a copy of the model on the whole of the data, `steps` times.

    Returns:
      The trained model, and the record of every step, in which `weights` has one
      row more than there are steps: the weights at the end.
    """
    graphdef, params = nnx.split(model)
    x, y = data

    def loss_and_record(params: Any) -> tuple[jax.Array, Record]:
        model = nnx.merge(graphdef, params)
        output = model(x)
        loss = categorical_crossentropy(y, output)
        return loss, Record(loss, categorical_accuracy(y, output), flat(get_weights(model)))

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any, Record]:
        grads, record = jax.grad(loss_and_record, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, record

    state, records = tx.init(params), []
    for _ in range(steps):
        params, state, record = step(params, state)
        report(record)
        records.append(record)
    trained = nnx.merge(graphdef, params)
    loss, accuracy, weights = (np.stack(column) for column in zip(*records, strict=True))
    return trained, Record(loss, accuracy, np.vstack([weights, flat(get_weights(trained))]))


def create_model(seed: int) -> MLP:
    """In [2] and In [3]: the model."""
    return MLP((10, 10), nnx.Rngs(seed))


def print_summary(model: MLP, tx: optax.GradientTransformation) -> None:
    """In [4]: what the model is made of, and what Keras does not show, the optimizer likewise."""
    table = nnx.tabulate(model, jnp.zeros((2, 10, 10)), console_kwargs={"force_terminal": False, "width": 100})
    print(table.rstrip(), "\n")
    print(adam_tx.summary(tx, nnx.state(model, nnx.Param)), "\n")


def print_kernels(when: str, model: MLP) -> None:
    """In [5] and In [12]: the kernel of each layer."""
    print(f"{when} Layer Weights\n")
    for number, layer in enumerate((model.hidden, model.output), start=1):
        print(f"Weight for Layer {number}:\n{layer.kernel[...]}\n")


def draw_data(seed: int) -> Data:
    """In [6]: features and targets, both standard normal."""
    x_key, y_key = jax.random.split(jax.random.key(seed))
    return jax.random.normal(x_key, (2, 10, 10)), jax.random.normal(y_key, (2, 10, 2))


def create_optimizer(dialect: str) -> optax.GradientTransformation:
    """In [7]: the optimizer; loss and metric, which `compile` takes too, are functions here.

    The dialects of Adam differ in what epsilon is added to: in Keras the root of the
    uncorrected second moment, in PyTorch that of the corrected one, and in the
    formula that opens the notebook the corrected moment itself, inside the root.
    """
    if dialect == "keras":
        return adam_tx.interop.keras.from_config(KERAS_CONFIG)
    if dialect == "torch":
        return adam_tx.interop.torch.from_param_group(TORCH_GROUP)
    return adam_tx.chain(
        adam_tx.scale_by_momentum(0.9),
        adam_tx.scale_by_rms(0.999, eps=0.0, eps_root=1e-7, debias=True),
        adam_tx.bias_correction(),
        adam_tx.scale_by_learning_rate(LEARNING_RATE),
    )


def print_config(dialect: str, tx: optax.GradientTransformation) -> None:
    """In [9]: the optimizer's configuration, read back from it, as its own framework prints it."""
    config = json.loads(json.dumps(adam_tx.get_config(tx)))
    if dialect == "keras":
        config = config["config"]["dict"]  # marked as a dict, for its key "name" would make it a link's config
    if dialect == "torch":
        group = config["group"]
        config = group | {"betas": tuple(group["betas"]["tuple"])}  # JSON, which a config must go into, has no tuples
    pprint(config, sort_dicts=False)
    print()


def fit(model: MLP, tx: optax.GradientTransformation, data: Data, steps: int) -> tuple[MLP, Record]:
    """In [10]: train, and show the loss and accuracy from before each update, as Keras does."""
    columns = MofNCompleteColumn(), BarColumn(bar_width=20), TextColumn("{task.description}")
    with Progress(*columns, console=Console()) as progress:
        task = progress.add_task("", total=steps)
        clock = Clock()

        def report(record: Record) -> None:
            metrics = f"accuracy: {float(record.accuracy):.4f} - loss: {float(record.loss):.4f}"
            clock.tick()
            progress.update(task, advance=1, description=f"{clock} - {metrics}")

        trained, history = train(model, tx, data, steps, report)
    print()
    return trained, history


class Clock:
    """Keras's two times: since the beginning, and a step's mean without the first, in which JAX compiles."""

    def __init__(self) -> None:
        self.ticks = [time.perf_counter()]

    def tick(self) -> None:
        """A step is over."""
        self.ticks.append(time.perf_counter())

    def __str__(self) -> str:
        """Such as `1s 0.35ms/step`."""
        timed = self.ticks[1:] if len(self.ticks) > 2 else self.ticks
        milliseconds = 1000 * (timed[-1] - timed[0]) / (len(timed) - 1)
        return f"{self.ticks[-1] - self.ticks[0]:.0f}s {milliseconds:.{0 if milliseconds >= 10 else 2}f}ms/step"


def import_keras() -> Any:
    """Keras on JAX, or a message and exit status 1."""
    os.environ["KERAS_BACKEND"] = "jax"  # read by Keras while it is imported
    try:
        import keras
    except ImportError as error:
        raise SystemExit(f"--compare trains Keras too, which cannot be imported ({error}): pip install keras") from None
    return keras


def train_keras(model: MLP, data: Data, steps: int) -> jax.Array:
    """The notebook itself: all weights after `steps` of Keras from this model's weights."""
    keras = import_keras()
    inputs = keras.layers.Input((10, 10))
    hidden = keras.layers.Dense(10, "relu")(inputs)
    twin = keras.Model(inputs, keras.layers.Dense(2, "softmax")(hidden))
    twin.set_weights([np.asarray(w) for w in get_weights(model)])
    twin.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    x, y = (np.asarray(array) for array in data)
    for _ in range(steps):
        twin.train_on_batch(x, y)
    return flat(twin.get_weights())


def train_float64(model: MLP, data: Data, steps: int) -> jax.Array:
    """What the Keras dialect comes to in double precision: all weights after `steps`."""
    with jax.enable_x64(True):
        graphdef, params = nnx.split(model)
        wide, data = jax.tree.map(lambda x: x.astype(jnp.float64), (params, data))
        return train(nnx.merge(graphdef, wide), create_optimizer("keras"), data, steps)[1].weights[-1]


def train_others(dialect: str, model: MLP, data: Data, steps: int) -> Histories:
    """Train the same model by every other dialect, and by `optax.adam`."""
    optimizers = {name: create_optimizer(name) for name in DIALECTS if name != dialect}
    optimizers["optax.adam"] = optax.adam(LEARNING_RATE)
    return {name: train(model, tx, data, steps)[1] for name, tx in optimizers.items()}


def print_comparison(model: MLP, data: Data, histories: Histories) -> None:
    """Which optimizer does what Keras does, and what Keras would do without rounding."""
    start, steps = histories["keras"].weights[0], len(histories["keras"].loss)
    keras, exact = train_keras(model, data, steps), train_float64(model, data, steps)
    ends = {"adam_tx, keras dialect": histories["keras"], "optax.adam": histories["optax.adam"]}
    ends = {name: history.weights[-1] for name, history in ends.items()} | {"Keras": keras}
    columns = [Column(f"from {reference}", justify="right") for reference in ("Keras", "float64", "the start")]
    table = Table("optimizer", *columns, title=f"Largest distance of a weight after {steps} steps")
    table.caption = "Keras takes 1 - 0.999^t in float32, which makes its first steps 6e-6 too short."
    for name, end in ends.items():
        table.add_row(name, *(f"{np.abs(end - other).max():.2e}" for other in (keras, exact, start)))
    Console().print(table)


COLOURS = {"keras": "#b5302a", "torch": "#e5922a", "formula": "#2a7f86", "optax.adam": "#2b3a67"}
INK, GUIDE = "#404040", "#8c8c8c"


def draw(dialect: str, histories: Histories) -> Figure:
    """Four panels: the loss, the way of the weights, what bias correction does, how far the dialects drift apart."""
    history = histories[dialect]
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.04, hspace=0.04)
    figure = Figure(figsize=(12, 9), dpi=160, layout=layout)
    title = f"Adam on a network of {history.weights.shape[1]} weights: {dialect} dialect, learning rate {LEARNING_RATE}"
    figure.suptitle(title, fontsize=15, x=0.015, ha="left", weight="bold", color=INK)
    panels = figure.subplots(2, 2).ravel()
    draw_loss(panels[0], history, COLOURS[dialect])
    draw_moves(panels[1], history, COLOURS[dialect])
    draw_bias_correction(panels[2], COLOURS[dialect])
    draw_drift(panels[3], histories)
    for letter, ax in zip("abcd", panels, strict=True):
        ax.set_title(rf"$\bf{{{letter}}}$   {ax.get_title(loc='left')}", loc="left", fontsize=12.5, pad=10, color=INK)
        ax.set_xlabel("step")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#ebebeb", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


def draw_loss(ax: Axes, history: Record, colour: str) -> None:
    """The loss before each step."""
    steps = len(history.loss)
    ax.plot(np.arange(1, steps + 1), history.loss, color=colour, linewidth=2.2, marker="o" * (steps < 20))
    ax.set_title("Loss before each step", loc="left")
    ax.set(ylabel="categorical cross-entropy (nats)", xlim=(0, 1.02 * steps))
    note = "Targets are noise of either sign,\nso the loss can fall below zero.\n\n"
    note += f"Accuracy {history.accuracy[0]:.0%} at first, {history.accuracy[-1]:.0%} at last."
    ax.text(0.04, 0.06, note, transform=ax.transAxes, color=INK, linespacing=1.4)


def draw_moves(ax: Axes, history: Record, colour: str) -> None:
    """How far each weight has moved, beside the cone of one learning rate a step."""
    moved = (history.weights - history.weights[0]) / LEARNING_RATE
    steps = np.arange(len(moved))
    ax.plot(steps, moved, color=colour, linewidth=0.8, alpha=0.35)
    ax.plot(steps, steps, steps, -steps, color="black", linewidth=1.4, linestyle=(0, (5, 3)))
    ax.set_title("How far each weight has moved", loc="left")
    ax.set(ylabel="distance from the start (learning rates)", xlim=(0, 1.02 * steps[-1]))
    ax.plot([], color=colour, linewidth=1.2, label="one weight")
    ax.plot([], color="black", linestyle=(0, (5, 3)), label="one learning rate a step, as under a constant gradient")
    note = "Outside the lines the gradient has grown. Inside it has\nshrunk, has turned, or is small beside epsilon."
    ax.text(0.03, 0.04, note, transform=ax.transAxes, color=INK, linespacing=1.4)
    reach = 1.5 * max(np.abs(moved).max(), steps[-1])  # leaves note and legend their room
    ax.set_ylim(-reach, reach)
    ax.legend(loc="upper left", frameon=False, labelcolor=INK)


def draw_bias_correction(ax: Axes, colour: str, b1: float = 0.9, b2: float = 0.999) -> None:
    """The size of the first hundred steps while the gradient stays the same."""
    direction = adam_tx.scale_by_momentum(b1), adam_tx.scale_by_rms(b2, eps=1e-7)
    raw = step_sizes(adam_tx.chain(*direction))
    corrected = step_sizes(adam_tx.chain(*direction, adam_tx.bias_correction()))
    steps = np.arange(1, len(raw) + 1)
    ax.fill_between(steps, corrected, raw, color="#f4f4f4")
    ax.plot(steps, raw, color=GUIDE, linewidth=2.2)
    ax.plot(steps, corrected, color=colour, linewidth=2.2)
    longest = int(raw.argmax())
    ax.plot(steps[longest], raw[longest], "o", color=GUIDE)
    note = f"{raw[longest]:.1f} times too long at step {steps[longest]}"
    ax.annotate(note, (steps[longest], raw[longest]), (10, 4), textcoords="offset points", color=INK)
    ax.text(48, raw[47] + 0.25, "scale_by_momentum, scale_by_rms", color=INK)
    ax.text(48, 1.25, "the same and bias_correction", color=colour)
    ax.text(0.03, 0.035, "Not the network: one number, whose gradient is always 1.", transform=ax.transAxes, color=INK)
    ax.set_title(f"What bias correction does, for b1 = {b1} and b2 = {b2}", loc="left")
    ax.set(ylabel="size of a step (learning rates)", xlim=(0, 1.02 * steps[-1]), ylim=(0, 1.12 * raw.max()))


def step_sizes(tx: optax.GradientTransformation, steps: int = 100) -> np.ndarray:
    """What the links make of a gradient that is always one."""
    grad = jnp.ones(())

    def step(state: Any, _: None) -> tuple[Any, Any]:
        updates, state = tx.update(grad, state)
        return state, updates

    return np.asarray(jax.jit(lambda: jax.lax.scan(step, tx.init(grad), length=steps)[1])())


def draw_drift(ax: Axes, histories: Histories) -> None:
    """The largest difference of any weight from its value under the Keras dialect."""
    keras = histories["keras"].weights
    steps = np.arange(1, len(keras))
    lines = {
        "formula": ("formula: epsilon inside the corrected root", 2.2),
        "torch": ("torch: epsilon outside the corrected root", 5.0),
        "optax.adam": ("optax.adam: as torch", 1.4),
    }
    for name, (label, width) in lines.items():
        drift = np.abs(histories[name].weights - keras).max(axis=1)[1:] / LEARNING_RATE
        style = {"color": COLOURS[name], "linewidth": width, "marker": "o" * (len(steps) < 20), "label": label}
        ax.plot(steps, drift, **style)
    ax.axhline(1.0, color=GUIDE, linestyle=(0, (2, 2)), linewidth=1.2, label="one learning rate")
    ax.set_title("How far the dialects drift from Keras's", loc="left")
    ax.set(ylabel="largest difference of a weight (learning rates)", xlim=(0, 1.02 * steps[-1]), yscale="log")
    ax.yaxis.set_major_formatter("{x:g}")
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * (high / low) ** 0.6)  # leaves the legend its room
    title = "keras: epsilon outside the uncorrected root"
    ax.legend(loc="upper left", frameon=False, labelcolor=INK, title=title, alignment="left")


def positive(text: str) -> int:
    """A positive integer, for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=positive, default=100, help="updates to train for (default %(default)s)")
    parser.add_argument("--seed", type=int, default=5, help="of weights and data (default %(default)s)")
    parser.add_argument("--dialect", choices=DIALECTS, default="keras", help="which Adam (default %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw what happened, as PNG, PDF or SVG")
    parser.add_argument("--compare", action="store_true", help="train Keras too and show the distance to it")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """The notebook."""
    args = parse(argv)
    if args.compare:
        import_keras()  # or stop before anything is trained

    model = create_model(args.seed)
    tx = create_optimizer(args.dialect)
    print_summary(model, tx)
    print_kernels("Initial", model)
    data = draw_data(args.seed)
    print_config(args.dialect, tx)
    trained, history = fit(model, tx, data, args.steps)
    print_kernels("Final", trained)

    if args.compare or args.plot:
        histories = {args.dialect: history} | train_others(args.dialect, model, data, args.steps)
        if args.compare:
            print_comparison(model, data, histories)
        if args.plot:
            draw(args.dialect, histories).savefig(args.plot)


if __name__ == "__main__":
    main()
