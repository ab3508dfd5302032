"""`plot_metrics`: the page to look at when a loss spikes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsFloat

import numpy as np
from jax.typing import ArrayLike

if TYPE_CHECKING:  # it is no dependency
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D


class Panel(NamedTuple):
    """One part of the page: its title, what is drawn, and how.

    Attributes:
      title: what is seen.
      about: what to look for.
      keys: the figures that are drawn as lines, the second one dashed, by their labels.
      band: two figures between which the space is filled.
      log: whether the axis is logarithmic.
    """

    title: str
    about: str
    keys: Mapping[str, str]
    band: tuple[str, str] | None = None
    log: bool = False


PANELS = (
    Panel("loss", "a spike follows one of the gradient", {"loss": ""}),
    Panel("norm of the gradient", "a spike here comes before one of the loss", {"grad_norm": ""}, log=True),
    Panel("learning rate", "in force", {"learning_rate": ""}),
    Panel(
        "step size / learning rate",
        "1 is Adam's usual; far above, v was too small",
        {"step_size_p50": "median", "step_size_max": "largest"},
        ("step_size_p10", "step_size_p90"),
        log=True,
    ),
    Panel("update / parameter", "of their norms; 1e-3 is common", {"update_to_param": ""}, log=True),
    Panel("signal to noise", "mean |m| / √v: 1 is one direction, 0 is noise", {"signal_to_noise": ""}),
    Panel("shares", "of elements", {"eps_share": "eps above √v", "rounded_away": "rounded away"}),
    Panel("norm of the parameters", "steady growth wants weight decay", {"param_norm": ""}),
)
BAND = "10 % to 90 %"
INK = "#22303c"
PALE = "#77828c"
LINE = "#2a7f86"
BAD = "#b5302a"
GROUPS = ("#e5922a", "#6a4c93", "#5b8c3a", "#3b6fb6", "#8d6e63", "#c2649a")
"""The colours of groups. All parameters together have `LINE`, skipped steps have `BAD`."""


def plot_metrics(
    history: Sequence[Mapping[str, SupportsFloat]] | Mapping[str, ArrayLike], *, title: str = ""
) -> Figure:
    """Draw what `metrics` has said, step by step.

    Args:
      history: one dict for each logged step, as `metrics` returns them, or one of stacked
        figures, as `lax.scan` returns them; a `loss` that was
        added is drawn too, figures of groups are drawn beside those of all.
      title: over the page.

    Returns:
      A `matplotlib.figure.Figure`: call its `savefig`. Each group has one colour on the
      whole page. Steps that a guard has skipped are marked, each at its own place.

    Raises:
      ValueError: an empty history, or one without a figure.
      ImportError: without matplotlib.

    Adam after two steps:

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx, params, history = adam_tx.monitor(adam_tx.adam(0.5)), jnp.ones(2), []
    >>> state = tx.init(params)
    >>> for _ in range(2):
    ...     _, state = tx.update(params, state, params)
    ...     history.append(adam_tx.metrics(state))
    >>> figure = adam_tx.plot_metrics(history)
    >>> [ax.get_title(loc="left") for ax in figure.axes][:2]
    ['norm of the gradient', 'learning rate']
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plot_metrics: it draws with matplotlib, which is not installed: pip install matplotlib."
        ) from error
    columns = _columns(history)
    groups = list(dict.fromkeys(key.rpartition("/")[0] for key in columns))
    panels = [panel for panel in PANELS if any(_has(columns, f"{g}/{k}") for g in groups for k in panel.keys)]
    if not panels:
        raise ValueError(f"plot_metrics: history needs a finite figure of metrics, but has only {list(columns)}.")
    colours = {group: GROUPS[k % len(GROUPS)] for k, group in enumerate(filter(None, groups))} | {"": LINE}
    steps, skips, skipped = _steps(columns)
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(11, 2.6 * rows + 0.6))
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=14, weight="bold", color=INK)
    for place, panel in enumerate(panels):
        ax = figure.add_subplot(rows, 2, place + 1)
        _draw(ax, panel, columns, colours, steps)
        if place + 2 >= len(panels):
            ax.set_xlabel("step", loc="right", fontsize=8.5, color=INK)
        for step in steps[skipped]:
            ax.axvline(step, color=BAD, linewidth=0.8, alpha=0.5, zorder=0)
    labels = {name or "all parameters": colours[name] for name in sorted(groups, key=bool)} if len(groups) > 1 else {}
    labels |= {f"skipped: {skips[-1]:.0f}": BAD} if skips[-1] > 0 else {}
    if labels:
        lines = [_line(label, color=colour) for label, colour in labels.items()]
        figure.legend(handles=lines, loc="outside lower left", ncols=6, frameon=False, fontsize=9.5, labelcolor=INK)
    return figure


def _columns(history: Sequence[Mapping[str, SupportsFloat]] | Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    """The figures by name, each with a number for every logged step."""
    if isinstance(history, Mapping):  # stacked, as a scan returns them
        columns = {key: np.atleast_1d(np.asarray(column, np.float64)) for key, column in history.items()}
        history = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if not history:
        raise ValueError("plot_metrics: history is empty; append metrics(state) to it after every step.")
    keys = dict.fromkeys(key for figures in history for key in figures)
    return {key: np.array([_number(key, figures.get(key, np.nan)) for figures in history]) for key in keys}


def _steps(columns: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every row its place, the number of steps skipped so far, and whether its own was."""
    rows = len(next(iter(columns.values())))
    steps = columns.get("step", np.arange(1.0, rows + 1))
    skips = columns.get("skipped", np.zeros(rows))
    skipped = np.diff(skips, prepend=0.0 if skips[0] == 1.0 else skips[0]) > 0
    counted = np.diff(steps, prepend=0.0) > 0
    # a monitor inside of a guard does not count what that skips
    return (steps if counted[skipped].all() else steps + skips), skips, skipped


def _number(key: str, value: SupportsFloat) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"plot_metrics: history[...][{key!r}] must be one number, got {value!r}. Leave it out, or take one of a "
            "batch."
        ) from None


def _has(columns: Mapping[str, np.ndarray], key: str) -> bool:
    return bool(np.isfinite(columns.get(key.removeprefix("/"), np.nan)).any())


def _draw(
    ax: Axes, panel: Panel, columns: Mapping[str, np.ndarray], colours: Mapping[str, str], steps: np.ndarray
) -> None:
    """Draw one panel: all parameters in a thick line, groups in thin ones."""

    def drawn(key: str) -> np.ndarray:
        return np.where(columns[key] > 0, columns[key], np.nan) if panel.log else columns[key]

    if panel.log:
        ax.set_yscale("log")
    for group, colour in colours.items():
        prefix = f"{group}/" if group else ""
        width = 0.9 if group else 1.4
        for key, style in zip(panel.keys, ("-", "--"), strict=False):
            if _has(columns, prefix + key):
                ax.plot(steps, drawn(prefix + key), color=colour, linewidth=width, linestyle=style)
    styles = zip(panel.keys.values(), ("-", "--"), strict=False)
    labels: list[Artist] = [_line(label, color=INK, linewidth=1.2, linestyle=style) for label, style in styles if label]
    if panel.band and all(_has(columns, key) for key in panel.band):
        low, high = map(drawn, panel.band)
        labels.append(ax.fill_between(steps, low, high, color=LINE, alpha=0.2, linewidth=0, label=BAND))
    ax.set_title(panel.title, loc="left", fontsize=11, color=INK)
    ax.set_title(panel.about, loc="right", fontsize=8.5, color=PALE)
    ax.tick_params(which="both", labelsize=8.5, labelcolor=INK)
    ax.grid(color="#ebebeb", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    if labels:  # under the axis, where it covers nothing
        below: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0, -0.1), "ncols": 3, "borderpad": 0}
        ax.legend(handles=labels, frameon=False, fontsize=8.5, labelcolor=INK, **below)


def _line(label: str, **style: Any) -> Line2D:
    """A line for a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **style)
