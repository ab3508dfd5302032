"""A race of the Adam family: five functions of two parameters, and scikit-learn's digits.

Which optimizer is ahead depends on its learning rate, and on luck. So each trains
a population in one jitted call for a task: a copy for every rate of a grid and every
seed. It is judged at the rate whose median over the seeds is best. For the table and
the figure::

    python examples/family.py --plot family.png
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import adam_tx

Make = Callable[[Any], optax.GradientTransformation]
Measured = dict[str, tuple[Any, Any]]  # for each test the loss, and the point or the accuracy


def undecayed(make: Callable[..., optax.GradientTransformation], **options: Any) -> Make:
    """An optimizer without its weight decay, so that only directions are compared."""
    return partial(make, weight_decay=0.0, **options)


# Left out is what without decay is another: adamw and adamc are adam, nadamw is nadam, and adamaxw is adamax.
FAMILY: dict[str, Make] = {
    "sgd": adam_tx.sgd,
    "sgd_momentum": partial(adam_tx.sgd, momentum=0.9),
    "rmsprop": adam_tx.rmsprop,
    "adagrad": adam_tx.adagrad,
    "adam": adam_tx.adam,
    "nadam": adam_tx.nadam,
    "amsgrad": adam_tx.amsgrad,
    "adamax": adam_tx.adamax,
    "adabelief": adam_tx.adabelief,
    "yogi": adam_tx.yogi,
    "radam": adam_tx.radam,
    "laprop": adam_tx.laprop,
    "lamb": undecayed(adam_tx.lamb),
    "novograd": undecayed(adam_tx.novograd),
    "adopt": adam_tx.adopt,
    "ademamix": undecayed(adam_tx.ademamix),
    "lion": undecayed(adam_tx.lion),
    "adam_atan2": undecayed(adam_tx.adam_atan2),
    "stable_adamw": undecayed(adam_tx.stable_adamw),
    "adafactor": partial(adam_tx.adafactor, min_dim_size_to_factor=8),  # so that it does factor the digits' kernels
    "adam_mini": undecayed(adam_tx.adam_mini),
    "mars_adamw": undecayed(adam_tx.mars_adamw),
    # Turns the basis of vectors too, as the official code can; by default it is Adam on the five functions.
    "soap": undecayed(adam_tx.soap, axes=lambda _, shape: range(len(shape))),
    "cautious": lambda rate: adam_tx.cautious(adam_tx.adam(rate)),
    "schedule_free": lambda rate: optax.contrib.schedule_free(adam_tx.adam(rate, b1=0.0), rate),
}
"""Name -> the optimizer with a learning rate, which may be traced."""

# Batched QR decompositions of JAX 0.10 can wait for each other for ever on a CPU with two cores, so that soap's copies
# are trained one after the other, still in one call.
IN_TURN = ("soap",)


def rosenbrock(p: jax.Array) -> jax.Array:
    """A flat valley along a parabola."""
    return (1.0 - p[0]) ** 2 + 100.0 * (p[1] - p[0] ** 2) ** 2


def beale(p: jax.Array) -> jax.Array:
    """Plateaus between steep walls."""
    return sum(
        ((c - p[0] * (1.0 - p[1] ** n)) ** 2 for n, c in ((1, 1.5), (2, 2.25), (3, 2.625))), jnp.zeros_like(p[0])
    )


def saddle(p: jax.Array) -> jax.Array:
    """50 x² - y² / 2 near the origin, and y⁴ / 4 bounds it: steep into the saddle, and flat out of it."""
    return 50.0 * p[0] ** 2 + (p[1] ** 2 - 1.0) ** 2 / 4.0


def quadratic(p: jax.Array) -> jax.Array:
    """Condition number 1000, along no axis; the minimum is not the origin, where steps relative to |p| would shine."""
    x, y = p[0] - 1.0, p[1] + 0.5
    return 50.0 * (0.8 * x + 0.6 * y) ** 2 + 0.05 * (0.6 * x - 0.8 * y) ** 2


def valley(p: jax.Array) -> jax.Array:
    """A winding valley that slopes gently."""
    return 4.0 * (p[1] - jnp.sin(p[0])) ** 2 + (p[0] - 1.0) ** 2 / 8.0


class Problem(NamedTuple):
    """A function of two parameters whose least value is 0.

    Attributes:
      loss: from (2,) to a scalar.
      start: where the first seed sets out; the others near by.
      minima: where the loss is 0.
      view: left, right, bottom and top of what its panel shows at least.
      about: what makes it hard, in a line.
      noise: standard deviation of what is added to each element of a gradient.
    """

    loss: Callable[[jax.Array], jax.Array]
    start: tuple[float, float]
    minima: Sequence[tuple[float, float]]
    view: tuple[float, float, float, float]
    about: str
    noise: float = 0.0


PROBLEMS = {
    "Rosenbrock": Problem(
        rosenbrock, (-1.2, 1.0), [(1.0, 1.0)], (-1.6, 1.5, -0.5, 1.8), "a bent valley, flat along its floor"
    ),
    "Beale": Problem(beale, (1.0, 1.5), [(3.0, 0.5)], (-1.0, 4.0, -1.4, 2.0), "plateaus between steep walls"),
    "saddle": Problem(
        saddle, (-0.4, 1e-3), [(0.0, -1.0), (0.0, 1.0)], (-0.5, 0.5, -1.4, 1.4), "steep into it, flat out of it"
    ),
    "quadratic": Problem(
        quadratic, (-0.4, 2.2), [(1.0, -0.5)], (-1.6, 1.8, -1.1, 2.4), "steep across, flat along, in line with no axis"
    ),
    "noisy valley": Problem(
        valley, (-4.5, -1.0), [(1.0, float(np.sin(1.0)))], (-5.0, 2.5, -2.0, 2.0), "noise hides its slope", noise=1.0
    ),
}
DIGITS = "digits"
EVERY = 10  # steps between measurements on digits


class Task(NamedTuple):
    """What to train, and what to measure.

    Attributes:
      starts: the parameters, a tree, with a leading axis of seeds.
      batches: a tree of what `gradient` needs at each step, with leading axes of seeds,
        of measurements, and of the steps before each; the same for every optimizer.
      gradient: `(params, batch) -> grads`.
      measure: what is seen of parameters with leading axes of rates, seeds and measurements.
    """

    starts: Any
    batches: Any
    gradient: Callable[[Any, Any], Any]
    measure: Callable[[Any], Measured]


def measurement(measure: Callable[[Any], Measured]) -> Callable[[Any], Measured]:
    """The measurement of all copies, which is compiled once for all optimizers."""
    return jax.jit(partial(lax.map, jax.vmap(jax.vmap(measure))))


def functions_task(steps: int, seeds: int) -> Task:
    """The five functions at once: their points are the leaves of one tree, and no optimizer here mixes leaves.

    From the second seed on, each coordinate of a start is off by a tenth of it or so, so
    that a rate that jumps from the start straight to the minimum is not taken for a good one.
    """
    rng = np.random.default_rng(0)
    starts, noises = {}, {}
    for name, problem in PROBLEMS.items():
        off = 0.1 * rng.standard_normal((seeds, 2))
        off[0] = 0.0
        starts[name] = jnp.array(problem.start * (1.0 + off), jnp.float32)
        noises[name] = jnp.array(problem.noise * rng.standard_normal((seeds, steps, 1, 2)), jnp.float32)

    def gradient(points: Any, noise: Any) -> Any:
        return {name: jax.grad(problem.loss)(points[name]) + noise[name] for name, problem in PROBLEMS.items()}

    @measurement
    def measure(points: Any) -> Measured:
        return {name: (problem.loss(points[name]), points[name]) for name, problem in PROBLEMS.items()}

    return Task(starts, noises, gradient, measure)


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images (1797, 64) and labels in an arbitrary but fixed order, or a message and exit status 1."""
    try:
        from sklearn import datasets
    except ImportError as error:
        message = f"The digits come with scikit-learn, which cannot be imported ({error}): pip install '.[examples]'"
        raise SystemExit(message) from None
    digits: Any = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    return digits.data[order].astype(np.float32), digits.target[order].astype(np.int32)


def digits_task(measurements: int, seeds: int, batch_size: int = 128, test_size: int = 360) -> Task:
    """An MLP 64-32-10 on standardised digits, whose weights and batches depend on the seed.

    Measured after every tenth step: the loss on all training data, the accuracy on test data.
    """
    images, labels = load_digits()
    mean, std = images[test_size:].mean(axis=0), images[test_size:].std(axis=0)
    x, y = jnp.asarray((images - mean) / np.where(std > 0.0, std, 1.0)), jnp.asarray(labels)
    test, training = (x[:test_size], y[:test_size]), (x[test_size:], y[test_size:])

    def create(seed: int) -> nnx.Sequential:
        rngs = nnx.Rngs(seed)
        return nnx.Sequential(nnx.Linear(64, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 10, rngs=rngs))

    graphdef = nnx.graphdef(create(0))
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(nnx.state(create(seed)) for seed in range(seeds)))
    shape = seeds, measurements, EVERY, batch_size
    batches = jnp.asarray(np.random.default_rng(0).integers(len(training[1]), size=shape))

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(nnx.merge(graphdef, params)(x), y))

    def gradient(params: Any, chosen: jax.Array) -> Any:
        return jax.grad(loss)(params, *(array[chosen] for array in training))

    @measurement
    def measure(params: Any) -> Measured:
        guesses = jnp.argmax(nnx.merge(graphdef, params)(test[0]), axis=-1)
        return {DIGITS: (loss(params, *training), jnp.mean(guesses == test[1]))}

    return Task(starts, batches, gradient, measure)


def to_evaluate(params: Any, state: Any) -> Any:
    """The parameters to judge: what is trained, except that schedule-free training has an average beside it."""
    if isinstance(state, optax.contrib.ScheduleFreeState):
        return optax.contrib.schedule_free_eval_params(state, params)
    return params


def train_population(make: Make, rates: Any, task: Task, *, in_turn: bool = False) -> Measured:
    """Train one copy for every learning rate and seed, all in one jitted call.

    Returns:
      What the task measures, with leading axes of rates, seeds and measurements.
    """

    def train(rate: jax.Array, start: Any, batches: Any) -> Any:
        tx = make(rate)

        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            updates, state = tx.update(task.gradient(params, batch), state, params)
            return (optax.apply_updates(params, updates), state), None

        def until_measured(carry: Any, batches: Any) -> Any:
            carry, _ = lax.scan(step, carry, batches)
            return carry, to_evaluate(*carry)

        return lax.scan(until_measured, (start, tx.init(start)), batches)[1]

    def train_all(rates: jax.Array, starts: Any, batches: Any) -> Any:
        if in_turn:
            return lax.map(lambda rate: lax.map(lambda seeded: train(rate, *seeded), (starts, batches)), rates)
        return jax.vmap(jax.vmap(train, (None, 0, 0)), (0, None, None))(rates, starts, batches)

    # Compilation takes longer than the run, and half as long again at XLA's usual level.
    compiled = jax.jit(train_all, compiler_options={"xla_backend_optimization_level": 1})
    return jax.tree.map(np.asarray, task.measure(compiled(jnp.asarray(rates), task.starts, task.batches)))


class Outcome(NamedTuple):
    """How one optimizer did on one test, at its best rate.

    Attributes:
      rate: the best learning rate.
      losses: for each seed, what it is judged by, `settled`.
      shown: what else was measured: points or accuracies, with leading axes of seeds and measurements.
    """

    rate: float
    losses: np.ndarray
    shown: np.ndarray

    @property
    def loss(self) -> float:
        """The median over the seeds."""
        return float(np.median(self.losses))


Results = dict[str, dict[str, Outcome]]  # by optimizer, by test
FLOOR = 1e-9  # a loss below this is as good as none in float32


def settled(losses: np.ndarray) -> np.ndarray:
    """The mean loss over the last tenth of the measurements, the last axis; infinite where one of them is not finite.

    At a constant rate the last point hovers about the minimum, and the best of many would be the luckiest.
    """
    last = losses[..., -max(1, losses.shape[-1] // 10) :].astype(np.float64)
    return np.where(np.isfinite(last), last, np.inf).mean(axis=-1)


def tune(rates: np.ndarray, losses: np.ndarray, shown: np.ndarray) -> Outcome:
    """The outcome at the rate with the lowest median, of a population with leading axes of rates and seeds.

    Of rates that come down to the floor it is the lowest, with which the path is the calmest.
    """
    final = settled(losses)
    best = int(np.argmin(np.maximum(np.median(final, axis=1), FLOOR)))
    return Outcome(float(rates[best]), final[best], shown[best])


def race(members: Sequence[str], tasks: Sequence[Task], rates: np.ndarray) -> Results:
    """Run every member's populations behind a progress bar; the best on digits comes first."""
    results: Results = {}
    columns = MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=Console()) as progress:
        bar = progress.add_task("", total=len(members))
        for member in members:
            progress.update(bar, description=member)
            results[member] = {}
            for task in tasks:
                measured = train_population(FAMILY[member], rates, task, in_turn=member in IN_TURN)
                results[member] |= {test: tune(rates, *population) for test, population in measured.items()}
            progress.update(bar, advance=1, description="")
    return dict(sorted(results.items(), key=lambda item: item[1][DIGITS].loss))


def short(value: float, digits: int = 1) -> str:
    """A number as 1.2e-3: no zero before the exponent's digit."""
    mantissa, e, exponent = f"{value:.{digits}e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def render(results: Results, rates: np.ndarray) -> Table:
    """The table: a row for each member, the best of a column bold."""
    tests = [*PROBLEMS, DIGITS]
    losses = {member: [max(of[test].loss, FLOOR) for test in tests] for member, of in results.items()}
    correct = {member: accuracy(of[DIGITS]) for member, of in results.items()}
    lowest, highest = np.min(list(losses.values()), axis=0), max(correct.values())
    seeds = len(next(iter(results.values()))[DIGITS].losses)

    def cell(text: str, best: bool) -> str:
        return f"[bold]{text}[/bold]" if best else text

    # narrow enough for a terminal of eighty columns
    style: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": 0, "show_edge": False, "header_style": "none"}
    table = Table(title="Loss above the minimum, each at its best learning rate", **style)
    for name in ("optimizer", "Rosen-\nbrock", "Beale", "saddle", "quad-\nratic", "noisy\nvalley", DIGITS):
        table.add_column(name, justify="left" if name == "optimizer" else "right", no_wrap=True)
    for name in ("range", "test", "rate"):
        table.add_column(name, justify="right", no_wrap=True)
    for member, of in results.items():
        texts = [f"<{short(FLOOR, 0)}" if loss <= FLOOR else short(loss) for loss in losses[member]]
        cells = [cell(text, loss <= low) for text, loss, low in zip(texts, losses[member], lowest, strict=True)]
        share = cell(f"{correct[member]:.1%}", correct[member] >= highest)
        table.add_row(member, *cells, spread(of[DIGITS].losses), share, short(of[DIGITS].rate))
    table.caption = (
        f"Each loss is a mean over the last tenth of the run, and the median of {seeds} seeds. The last three columns "
        f"are about digits: the range over the seeds, the accuracy on test images, and the best of {len(rates)} rates, "
        f"from {short(rates[0], 0)} to {short(rates[-1], 0)}."
    )
    return table


def accuracy(digits: Outcome) -> float:
    """The share of test images that are right at the end, the median over the seeds."""
    return float(np.median(digits.shown[:, -1]))


def spread(losses: np.ndarray) -> str:
    """Lowest and highest with the exponent of the highest, such as 0.9–1.2e-3."""
    low, high = losses.min(), losses.max()
    _, e, exponent = short(high).partition("e")
    return f"{low / 10.0 ** int(exponent):.1f}–{short(high)}" if e else f"{short(low)}–{short(high)}"


# Those whose paths are drawn when all take part, one for each idea; the last panel and the table have the others too.
COLOURS = {
    "sgd": "#000000",
    "sgd_momentum": "#999933",
    "adagrad": "#33bbee",
    "rmsprop": "#117733",
    "adam": "#0072b2",
    "cautious": "#882255",
    "lion": "#d55e00",
    "soap": "#ee6fb0",
    "schedule_free": "#e69f00",
}
INK, PALE = "#404040", "#7a7a7a"
HIGH = 0.1  # a loss above this is named in its panel
GROUND = ListedColormap(
    [f"#{level:02x}{level + 2:02x}{level + 5:02x}" for level in np.linspace(208, 250, 9, dtype=int)]
)


def draw(results: Results) -> Figure:
    """Five maps with paths, the way out of the saddle step by step, and every optimizer on digits."""
    figure = Figure(figsize=(12, 12), dpi=130)
    figure.text(0.02, 0.971, "The family, each at its best learning rate", fontsize=17, weight="bold", color=INK)
    key = "Paths lead from the circle towards a star, and end in a dot. Dark is low. Panels a to f show the first seed."
    figure.text(0.02, 0.95, key, fontsize=10.5, color=PALE)
    colours = choose_colours(results)
    maps = {"left": 0.02, "right": 0.625, "top": 0.893, "bottom": 0.07, "wspace": 0.06, "hspace": 0.27}
    panels = figure.subplots(3, 2, gridspec_kw=maps).ravel().tolist()
    escape = panels.pop(3)
    for letter, ax, name in zip("abcef", panels, PROBLEMS, strict=True):
        draw_paths(ax, letter, name, {member: results[member][name] for member in colours}, colours)
    draw_escape(escape, {member: results[member]["saddle"] for member in colours}, colours)
    digits = figure.subplots(1, 1, gridspec_kw={"left": 0.785, "right": 0.94, "top": 0.893, "bottom": 0.07})
    draw_digits(digits, {member: of[DIGITS] for member, of in results.items()}, colours)
    handles = [Line2D([], [], color=colour, linewidth=3, label=member) for member, colour in colours.items()]
    style = {"frameon": False, "labelcolor": INK, "fontsize": 10.5, "columnspacing": 1.6}
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.01, 0.004), ncols=5, **style)
    return figure


def choose_colours(members: Iterable[str]) -> dict[str, str]:
    """Which paths to draw, and in which colour: all of them, if the colours suffice."""
    members = list(members)
    colours = {member: colour for member, colour in COLOURS.items() if member in members}
    others = [member for member in members if member not in COLOURS]
    spare = [colour for member, colour in COLOURS.items() if member not in members]
    return colours | dict(zip(others, spare, strict=False)) if len(others) <= len(spare) else colours


def describe(ax: Axes, letter: str, title: str, text: str, x: float = 0.0) -> None:
    """A panel's letter and title, and a smaller line below them."""
    ax.set_title(rf"$\bf{{{letter}}}$   {title}", loc="left", x=x, fontsize=13, pad=22, color=INK)
    ax.annotate(text, (x, 1), (0, 7), xycoords="axes fraction", textcoords="offset points", color=PALE, fontsize=10)


def draw_paths(ax: Axes, letter: str, name: str, outcomes: dict[str, Outcome], colours: Mapping[str, str]) -> None:
    """The first seed's paths, over the function's heights on a scale of logarithms."""
    problem = PROBLEMS[name]
    paths = {member: np.vstack([problem.start, outcome.shown[0]]) for member, outcome in outcomes.items()}
    left, right, bottom, top = frame(problem.view, list(paths.values()))
    grid = np.stack(np.meshgrid(np.linspace(left, right, 160), np.linspace(bottom, top, 160)), axis=-1)
    heights = np.log10(np.asarray(jax.jit(jax.vmap(jax.vmap(problem.loss)))(grid.astype(np.float32))) + 1e-6)
    levels = np.linspace(np.quantile(heights, 0.02), heights.max(), 10)
    ax.contourf(grid[..., 0], grid[..., 1], heights, levels=levels, cmap=GROUND, extend="min")
    for member, path in reversed(paths.items()):  # so that sgd, the yardstick, is on top
        ax.plot(*path.T, color=colours[member], linewidth=1.4, label=member)
        ax.plot(*path[-1], "o", color=colours[member], markersize=6, markeredgecolor="white", zorder=6)
    ax.plot(*problem.start, "o", color="white", markeredgecolor=INK, markersize=9, zorder=5)
    ax.plot(*np.transpose(problem.minima), "*", color="white", markeredgecolor=INK, markersize=15, zorder=5)
    ax.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    describe(ax, letter, f"{name[0].upper()}{name[1:]}", problem.about)
    if high := [member for member, outcome in outcomes.items() if outcome.loss > HIGH]:
        steps = len(paths[high[0]]) - 1
        note = f"loss above {HIGH} after {steps} steps:\n{', '.join(high)}"
        ax.text(0.02, 0.02, note, transform=ax.transAxes, color=INK, fontsize=9.5, linespacing=1.3)
    if name == "saddle" and "sgd" in high:
        arrow = {"arrowstyle": "->", "color": INK, "shrinkB": 5}
        place = {"xytext": (66, 8), "textcoords": "offset points", "arrowprops": arrow}
        ax.annotate("sgd is\nstill here", paths["sgd"][-1], **place, color=INK, fontsize=11, weight="bold")


def frame(view: tuple[float, float, float, float], paths: Sequence[np.ndarray]) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of what shows the view and all paths, with room for two lines of text below."""
    points = np.vstack([np.reshape(view, (2, 2)).T, *paths])
    points = points[np.isfinite(points).all(axis=1)]
    (left, bottom), (right, top) = points.min(axis=0), points.max(axis=0)
    x, y = 0.04 * (right - left), 0.04 * (top - bottom)
    return left - x, right + x, bottom - 4 * y, top + y


def draw_escape(ax: Axes, outcomes: dict[str, Outcome], colours: Mapping[str, str]) -> None:
    """How far from the saddle each has come along the flat direction."""
    start = abs(PROBLEMS["saddle"].start[1])
    for member, outcome in reversed(outcomes.items()):
        distance = np.concatenate([[start], np.abs(outcome.shown[0, :, 1])])
        ax.plot(distance, color=colours[member], linewidth=1.8)
    if "sgd" in outcomes:
        note = "The slope that leads out is tiny\nhere, and so are sgd's steps.\nAdam divides by its size."
        ax.text(0.97, 0.05, note, transform=ax.transAxes, ha="right", color=INK, linespacing=1.4)
    ax.set(yscale="log", ylim=(start / 2, 3))
    ax.margins(x=0)
    ax.yaxis.tick_right()
    ax.yaxis.set_major_formatter("{x:g}")
    ax.tick_params(labelsize=9, labelcolor=INK)
    ax.spines[["top", "left"]].set_visible(False)
    ax.grid(color="#ebebeb", linewidth=0.8)
    ax.set_axisbelow(True)
    describe(ax, "d", "Leaving the saddle", "distance up or down from it at each step")


def draw_digits(ax: Axes, outcomes: dict[str, Outcome], colours: Mapping[str, str]) -> None:
    """The loss of every optimizer, median and range, and its accuracy."""
    for row, (member, outcome) in enumerate(outcomes.items()):
        colour = colours.get(member, PALE)
        ax.plot([outcome.losses.min(), outcome.losses.max()], [row, row], color=colour, linewidth=2.2)
        ax.plot(outcome.loss, row, "o", color=colour, markersize=7.5)
        ax.text(1.06, row, f"{accuracy(outcome):.1%}", transform=ax.get_yaxis_transform(), va="center", color=INK)
    ax.set(xscale="log", ylim=(len(outcomes) - 0.5, -0.5))
    ax.set_yticks(range(len(outcomes)), outcomes, fontsize=11)
    for label in ax.get_yticklabels():
        label.set_color(colours.get(label.get_text(), INK))
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter("{x:g}")
    ax.tick_params(axis="x", labelsize=9, labelcolor=INK)
    ax.tick_params(axis="y", length=0, pad=8)
    ax.spines[["top", "left", "right"]].set_visible(False)
    ax.grid(axis="x", color="#ebebeb", linewidth=0.8)
    ax.set_axisbelow(True)
    seeds = len(next(iter(outcomes.values())).losses)
    describe(ax, "g", "Digits", f"training loss: median and range of {seeds} seeds", x=-0.72)
    ax.annotate(
        "accuracy", (1.35, 1), (0, 7), xycoords="axes fraction", textcoords="offset points", ha="right", color=PALE
    )


def positive(text: str) -> int:
    """A positive integer, for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def tens(text: str) -> int:
    """A positive multiple of `EVERY`, for argparse."""
    if (number := positive(text)) % EVERY:
        raise argparse.ArgumentTypeError(f"must be a multiple of {EVERY}, got {text}")
    return number


def some_members(text: str) -> list[str]:
    """Names of the family, for argparse."""
    names = list(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in FAMILY]:
        raise argparse.ArgumentTypeError(f"no such member: {', '.join(unknown)}; there are {', '.join(FAMILY)}")
    return names


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=positive, default=300, help="on the functions (default %(default)s)")
    parser.add_argument("--digits-steps", type=tens, default=100, help="on digits, in tens (default %(default)s)")
    parser.add_argument("--rates", type=positive, default=17, help="learning rates, 1e-3 to 10 (default %(default)s)")
    parser.add_argument("--seeds", type=positive, default=5, help="of starts, noise and batches (default %(default)s)")
    parser.add_argument("--members", type=some_members, default=list(FAMILY), help="such as adam,lion (default all)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the race, as PNG, PDF or SVG")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """The race."""
    args = parse(argv)
    rates = np.geomspace(1e-3, 10.0, args.rates, dtype=np.float32)
    tasks = functions_task(args.steps, args.seeds), digits_task(args.digits_steps // EVERY, args.seeds)
    results = race(args.members, tasks, rates)
    Console().print(render(results, rates))
    if args.plot:
        draw(results).savefig(args.plot)


if __name__ == "__main__":
    main()
