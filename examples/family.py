"""A race of the Adam family: five functions of two parameters, and scikit-learn's digits.

Which optimizer is ahead depends on its learning rate, so each trains a whole
population, one copy for every rate of a grid, in one jitted call for a task, and
is judged at the rate that suits it best. For the table and the figure::

    python examples/family.py --plot family.png
"""

import argparse
from collections.abc import Callable, Sequence
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
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import adam_tx

Make = Callable[[Any], optax.GradientTransformation]
Measured = dict[str, tuple[Any, Any]]  # for each test the loss and what else there is to see


def undecayed(make: Callable[..., optax.GradientTransformation], **options: Any) -> Make:
    """An optimizer without its weight decay, so that only directions are compared."""
    return partial(make, weight_decay=0.0, **options)


# Without decay adamw is adam. So is adamc, and nadamw is nadam, adamaxw adamax; these three are left out.
FAMILY: dict[str, Make] = {
    "sgd": adam_tx.sgd,
    "sgd_momentum": partial(adam_tx.sgd, momentum=0.9),
    "rmsprop": adam_tx.rmsprop,
    "adagrad": adam_tx.adagrad,
    "adam": adam_tx.adam,
    "adamw": undecayed(adam_tx.adamw),
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
      start: where every optimizer sets out.
      minima: where the loss is 0.
      view: left, right, bottom and top of its panel.
      noise: standard deviation of what is added to each element of a gradient.
    """

    loss: Callable[[jax.Array], jax.Array]
    start: tuple[float, float]
    minima: Sequence[tuple[float, float]]
    view: tuple[float, float, float, float]
    noise: float = 0.0


PROBLEMS = {
    "Rosenbrock": Problem(rosenbrock, (-1.2, 1.0), [(1.0, 1.0)], (-1.7, 1.5, -0.6, 2.0)),
    "Beale": Problem(beale, (1.0, 1.5), [(3.0, 0.5)], (-1.5, 4.2, -1.4, 2.0)),
    "saddle": Problem(saddle, (-0.4, 1e-3), [(0.0, -1.0), (0.0, 1.0)], (-0.5, 0.5, -1.5, 1.5)),
    "quadratic": Problem(quadratic, (-0.4, 2.2), [(1.0, -0.5)], (-1.6, 2.2, -1.3, 2.5)),
    "noisy valley": Problem(valley, (-4.5, -1.0), [(1.0, float(np.sin(1.0)))], (-5.0, 2.5, -2.2, 2.2), noise=1.0),
}
DIGITS = "digits"


class Task(NamedTuple):
    """What to train, and what to see of it.

    Attributes:
      start: the parameters, a tree.
      gradient: `(params, batch) -> grads`.
      batches: a tree whose leaves have a leading axis of steps; the same for every optimizer.
      measure: what to see of the parameters after a step.
    """

    start: Any
    gradient: Callable[[Any, Any], Any]
    batches: Any
    measure: Callable[[Any], Measured]


def functions_task(steps: int, seed: int) -> Task:
    """The five functions at once: their points are the leaves of one tree, and no optimizer here mixes leaves."""
    starts = {name: jnp.array(problem.start, jnp.float32) for name, problem in PROBLEMS.items()}
    keys = jax.random.split(jax.random.key(seed), len(PROBLEMS))
    noises = {
        name: problem.noise * jax.random.normal(key, (steps, 2))
        for key, (name, problem) in zip(keys, PROBLEMS.items(), strict=True)
    }

    def gradient(points: Any, noise: Any) -> Any:
        return {name: jax.grad(problem.loss)(points[name]) + noise[name] for name, problem in PROBLEMS.items()}

    def measure(points: Any) -> Measured:
        return {name: (problem.loss(points[name]), points[name]) for name, problem in PROBLEMS.items()}

    return Task(starts, gradient, noises, measure)


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


def digits_task(steps: int, seed: int, batch_size: int = 128, test_size: int = 360) -> Task:
    """An MLP 64-32-10 on standardised digits; kept are the loss on all training data and the accuracy on test data."""
    images, labels = load_digits()
    mean, std = images[test_size:].mean(axis=0), images[test_size:].std(axis=0)
    x, y = jnp.asarray((images - mean) / np.where(std > 0.0, std, 1.0)), jnp.asarray(labels)
    test, training = (x[:test_size], y[:test_size]), (x[test_size:], y[test_size:])
    rngs = nnx.Rngs(seed)
    model = nnx.Sequential(nnx.Linear(64, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 10, rngs=rngs))
    graphdef, params = nnx.split(model)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(nnx.merge(graphdef, params)(x), y))

    def gradient(params: Any, chosen: jax.Array) -> Any:
        return jax.grad(loss)(params, *(array[chosen] for array in training))

    def measure(params: Any) -> Measured:
        guesses = jnp.argmax(nnx.merge(graphdef, params)(test[0]), axis=-1)
        return {DIGITS: (loss(params, *training), jnp.mean(guesses == test[1]))}

    batches = jax.random.randint(jax.random.key(seed), (steps, batch_size), 0, len(training[1]))
    return Task(params, gradient, batches, measure)


def to_evaluate(params: Any, state: Any) -> Any:
    """The parameters to judge: what is trained, except that schedule-free training has an average beside it."""
    if isinstance(state, optax.contrib.ScheduleFreeState):
        return optax.contrib.schedule_free_eval_params(state, params)
    return params


def train_population(make: Make, rates: jax.Array, task: Task, *, in_turn: bool = False) -> Measured:
    """Train one copy for every learning rate, all in one jitted call.

    Returns:
      What the task measures after every step, with leading axes of rates and steps.
    """

    def train(rate: jax.Array) -> Any:
        tx = make(rate)

        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            updates, state = tx.update(task.gradient(params, batch), state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), task.measure(to_evaluate(params, state))

        return lax.scan(step, (task.start, tx.init(task.start)), task.batches)[1]

    population = partial(lax.map, train) if in_turn else jax.vmap(train)
    return jax.tree.map(np.asarray, jax.jit(population)(rates))


class Outcome(NamedTuple):
    """How one optimizer did on one test, at its best rate.

    Attributes:
      rate: the best learning rate.
      loss: what it is judged by, `settled`.
      losses: after every step.
      shown: what else the task measures after every step: a point, or the accuracy.
    """

    rate: float
    loss: float
    losses: np.ndarray
    shown: np.ndarray


Results = dict[str, dict[str, Outcome]]  # by optimizer, by test


def settled(losses: np.ndarray) -> np.ndarray:
    """The mean loss over the last tenth of the steps, the last axis; infinite where one of them is not finite.

    At a constant rate the last point hovers about the minimum, and the best of many would be the luckiest.
    """
    last = losses[..., -max(1, losses.shape[-1] // 10) :].astype(np.float64)
    return np.where(np.isfinite(last), last, np.inf).mean(axis=-1)


def tune(rates: np.ndarray, losses: np.ndarray, shown: np.ndarray) -> Outcome:
    """The outcome at the rate with the lowest loss, of a population with a leading axis of rates."""
    final = settled(losses)
    best = int(np.argmin(final))
    return Outcome(float(rates[best]), float(final[best]), losses[best], shown[best])


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
                measured = train_population(FAMILY[member], jnp.asarray(rates), task, in_turn=member in IN_TURN)
                results[member] |= {test: tune(rates, *population) for test, population in measured.items()}
            progress.update(bar, advance=1, description="")
    return dict(sorted(results.items(), key=lambda item: item[1][DIGITS].loss))


FLOOR = 1e-9  # a loss below this is as good as none in float32


def short(value: float, digits: int = 1) -> str:
    """A number as 1.2e-3: no zero before the exponent's digit."""
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def render(results: Results, rates: np.ndarray) -> Table:
    """The table: a row for each member, the best of a column bold."""
    tests = [*PROBLEMS, DIGITS]
    losses = {member: [max(of[test].loss, FLOOR) for test in tests] for member, of in results.items()}
    accuracies = {member: float(of[DIGITS].shown[-1]) for member, of in results.items()}
    lowest, highest = np.min(list(losses.values()), axis=0), max(accuracies.values())

    def cell(text: str, best: bool) -> str:
        return f"[bold]{text}[/bold]" if best else text

    # narrow enough for a terminal of eighty columns
    style: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": 0, "show_edge": False, "header_style": "none"}
    table = Table(title="Loss above the minimum, each at its best learning rate", **style)
    for name in ("optimizer", *tests, "correct", "rate"):
        table.add_column(name, justify="left" if name == "optimizer" else "right", no_wrap=name == "optimizer")
    for member, of in results.items():
        texts = [f"<{short(FLOOR, 0)}" if loss <= FLOOR else short(loss) for loss in losses[member]]
        cells = [cell(text, loss <= low) for text, loss, low in zip(texts, losses[member], lowest, strict=True)]
        accuracy = cell(f"{accuracies[member]:.1%}", accuracies[member] >= highest)
        table.add_row(member, *cells, accuracy, short(of[DIGITS].rate))
    table.caption = (
        "Losses are means over the last tenth of the steps; correct (of the test set) and rate are those on digits. "
        f"{len(rates)} rates from {rates[0]:.0e} to {rates[-1]:.0e}."
    )
    return table


# Okabe and Ito's colours, which the colour-blind can tell apart, but olive in place of yellow.
PALETTE = ("#000000", "#999933", "#0072b2", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#e69f00")
FEATURED = ("sgd", "sgd_momentum", "adam", "laprop", "lion", "lamb", "soap", "schedule_free")
MARGINS = {"left": 0.02, "right": 0.955, "top": 0.89, "bottom": 0.115, "wspace": 0.05, "hspace": 0.2}
INK, OTHERS = "#404040", "#bdbdbd"
GROUND = ListedColormap(
    [f"#{level:02x}{level + 2:02x}{level + 5:02x}" for level in np.linspace(208, 250, 9, dtype=int)]
)
Lines = list[tuple[dict[str, Outcome], dict[str, Any]]]  # every member's outcomes and the style of its lines


def plot(path: Path, results: Results) -> None:
    """Five maps with the way of every member, and the loss on digits; some members in colour, the others grey."""
    featured = [m for m in FEATURED if m in results] if len(results) > len(PALETTE) else list(results)
    colours: dict[str, str] = dict(zip(featured, PALETTE, strict=False))
    lines: Lines = [(results[m], {"color": OTHERS, "linewidth": 0.7}) for m in results if m not in colours]
    lines += [(results[m], {"color": colour, "linewidth": 1.5}) for m, colour in colours.items()]
    figure = Figure(figsize=(12, 8.2), dpi=100)
    title = "Each optimizer at its best learning rate, from the circle to a star"
    figure.suptitle(title, fontsize=15, x=0.02, y=0.975, ha="left", weight="bold", color=INK)
    panels = figure.subplots(2, 3, gridspec_kw=MARGINS).ravel()
    for ax, (name, problem) in zip(panels, PROBLEMS.items(), strict=False):
        draw_problem(ax, name, problem, lines)
    draw_digits(panels[-1], lines)
    for letter, ax in zip("abcdef", panels, strict=True):
        ax.set_title(rf"$\bf{{{letter}}}$   {ax.get_title(loc='left')}", loc="left", fontsize=12.5, pad=8, color=INK)
    handles = [Line2D([], [], color=colour, linewidth=2.4, label=name) for name, colour in colours.items()]
    if others := len(results) - len(colours):
        handles.append(Line2D([], [], color=OTHERS, linewidth=1.2, label=f"the other {others}"))
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, labelcolor=INK, fontsize=11)
    figure.savefig(path)


def draw_problem(ax: Axes, name: str, problem: Problem, lines: Lines) -> None:
    """The function's heights, on a scale of logarithms, under the ways from the start."""
    left, right, bottom, top = problem.view
    grid = np.stack(np.meshgrid(np.linspace(left, right, 160), np.linspace(bottom, top, 160)), axis=-1)
    heights = np.log10(np.asarray(jax.vmap(jax.vmap(problem.loss))(jnp.asarray(grid, jnp.float32))) + 1e-6)
    levels = np.linspace(np.quantile(heights, 0.02), heights.max(), 10)
    ax.contourf(grid[..., 0], grid[..., 1], heights, levels=levels, cmap=GROUND, extend="min")
    for outcomes, style in lines:
        x, y = np.vstack([problem.start, outcomes[name].shown]).T
        ax.plot(x, y, **style)
        ax.plot(x[-1], y[-1], "o", color=style["color"], markersize=3 * style["linewidth"])
    ax.plot(*problem.start, "o", color="white", markeredgecolor=INK, markersize=8, zorder=5)
    ax.plot(*np.transpose(problem.minima), "*", color="white", markeredgecolor=INK, markersize=13, zorder=5)
    ax.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.set_title(name[0].upper() + name[1:], loc="left")


def draw_digits(ax: Axes, lines: Lines) -> None:
    """The loss after each step."""
    for outcomes, style in lines:
        losses = outcomes[DIGITS].losses
        ax.plot(np.arange(1, len(losses) + 1), losses, **style)
    ax.set(yscale="log", xlabel="steps taken")
    ax.yaxis.tick_right()
    ax.spines[["top", "left"]].set_visible(False)
    ax.grid(color="#ebebeb", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.set_title("Digits: training loss (nats)", loc="left")


def positive(text: str) -> int:
    """A positive integer, for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
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
    parser.add_argument("--digits-steps", type=positive, default=100, help="on digits (default %(default)s)")
    parser.add_argument("--rates", type=positive, default=16, help="learning rates, 1e-4 to 10 (default %(default)s)")
    parser.add_argument("--members", type=some_members, default=list(FAMILY), help="such as adam,lion (default all)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and noise (default %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the race, as PNG, PDF or SVG")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """The race."""
    args = parse(argv)
    rates = np.geomspace(1e-4, 10.0, args.rates, dtype=np.float32)
    tasks = functions_task(args.steps, args.seed), digits_task(args.digits_steps, args.seed)
    results = race(args.members, tasks, rates)
    Console().print(render(results, rates))
    if args.plot:
        plot(args.plot, results)


if __name__ == "__main__":
    main()
