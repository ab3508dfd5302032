"""`plot_metrics`: the page to look at when a loss spikes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsFloat

import numpy as np

if TYPE_CHECKING:  # it is no dependency
    from matplotlib.figure import Figure


class Panel(NamedTuple):
    """One part of the page: its title, what is drawn, and how.

    Attributes:
      title: what is seen.
      about: what to look for.
      keys: the figures that are drawn as lines, by their labels.
      band: two figures between which the space is filled.
      log: whether the axis is logarithmic.
    """

    title: str
    about: str
    keys: Mapping[str, str]
    band: tuple[str, str] | None = None
    log: bool = False


PANELS = (
    Panel("loss", "if it is in the history", {"loss": ""}),
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
INK, PALE, LINE, ACCENT, BAD = "#22303c", "#77828c", "#2a7f86", "#e5922a", "#b5302a"


def plot_metrics(history: Sequence[Mapping[str, SupportsFloat]], *, title: str = "") -> Figure:
    """Draw what `metrics` has said, step by step.

    Args:
      history: one dict for each logged step, as `metrics` returns them, or one of stacked
        figures, as `lax.scan` returns them; a `loss` that was
        added is drawn too, figures of groups are drawn beside those of all.
      title: over the page.

    Returns:
      A `matplotlib.figure.Figure`: call its `savefig`. Steps that a guard has skipped are
      marked.

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
    if isinstance(history, Mapping):  # stacked, as a scan returns them
        figures = {key: np.atleast_1d(np.asarray(column, np.float64)) for key, column in history.items()}
        history = [dict(zip(figures, row, strict=True)) for row in zip(*figures.values(), strict=True)]
    history = list(history)
    if not history:
        raise ValueError("plot_metrics: history is empty; append metrics(state) to it after every step.")
    keys = list(dict.fromkeys(key for figures in history for key in figures))
    columns = {key: np.array([float(figures.get(key, np.nan)) for figures in history]) for key in keys}
    groups = list(dict.fromkeys(key.rpartition("/")[0] for key in columns))
    panels = [panel for panel in PANELS if any(_has(columns, f"{g}/{k}") for g in groups for k in panel.keys)]
    if not panels:
        raise ValueError(f"plot_metrics: history has none of the figures of metrics, only {keys}.")
    steps = columns.get("step", np.arange(1.0, len(history) + 1))
    skips = columns.get("skipped", np.zeros(len(history)))
    skipped = np.diff(skips, prepend=0.0 if skips[0] == 1.0 else skips[0]) > 0
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(11, 2.5 * rows + 0.6), layout="constrained")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=14, weight="bold", color=INK)
    for place, panel in enumerate(panels):
        ax = figure.add_subplot(rows, 2, place + 1)
        _draw(ax, panel, columns, groups, steps)
        for step in steps[skipped]:
            ax.axvline(step, color=BAD, linewidth=0.8, alpha=0.5, zorder=0)
    if skips[-1] > 0:
        figure.text(0.99, 0.995, f"│ {skips[-1]:.0f} skipped", ha="right", va="top", fontsize=10, color=BAD)
    return figure


def _has(columns: Mapping[str, np.ndarray], key: str) -> bool:
    return bool(np.isfinite(columns.get(key.removeprefix("/"), np.nan)).any())


def _draw(ax: Any, panel: Panel, columns: Mapping[str, np.ndarray], groups: Sequence[str], steps: np.ndarray) -> None:
    """One panel: for all parameters in one colour, for each group in a paler one."""
    several = False
    for number, group in enumerate(groups):
        prefix = f"{group}/" if group else ""
        for (key, label), colour in zip(panel.keys.items(), (LINE, ACCENT), strict=False):
            if _has(columns, prefix + key):
                name = " ".join(part for part in (group, label) if part)
                style = {"color": colour} if not group else {"color": f"C{number}", "linewidth": 0.9}
                ax.plot(steps, columns[prefix + key], label=name, **({"linewidth": 1.4} | style))
                several |= bool(name)
    if panel.band and _has(columns, panel.band[0]):
        ax.fill_between(steps, *(columns[key] for key in panel.band), color=LINE, alpha=0.2, linewidth=0)
    if panel.log:
        ax.set_yscale("log")
    ax.set_title(panel.title, loc="left", fontsize=11, color=INK)
    ax.set_title(panel.about, loc="right", fontsize=8.5, color=PALE)
    ax.tick_params(labelsize=8.5, labelcolor=INK)
    ax.grid(color="#ebebeb", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    if several:
        ax.legend(frameon=False, fontsize=8.5, labelcolor=INK)
