"""A page of figures shows every one that there is, each step at its place and each group in its colour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import adam_tx
from adam_tx.training.plot import BAD, GROUPS, LINE


def test_the_page_of_metrics_has_a_panel_for_every_figure_and_marks_skipped_steps(tmp_path):
    tx = adam_tx.guard(adam_tx.monitor(adam_tx.adam(0.1), groups={"small": "bias"}))
    params = {"w": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    state, history, update = tx.init(params), [], jax.jit(tx.update)
    for step in range(6):
        grads = jax.tree.map(lambda p, step=step: p * (jnp.nan if step == 3 else step + 1.0), params)
        _, state = update(grads, state, params)
        history.append(adam_tx.metrics(state) | {"loss": 1.0 / (step + 1)})
    page = adam_tx.plot_metrics(history, title="a run")
    assert isinstance(page, Figure)
    titles = [ax.get_title(loc="left") for ax in page.axes]
    assert titles == [
        *("loss", "norm of the gradient", "learning rate", "step size / learning rate", "update / parameter"),
        *("signal to noise", "shares", "norm of the parameters"),
    ]
    assert [text.get_text() for text in page.legends[0].get_texts()] == ["all parameters", "small", "skipped: 1"]
    marks = [[line.get_xdata()[0] for line in ax.lines if line.get_color() == BAD] for ax in page.axes]
    assert marks == [[4.0]] * len(page.axes)
    places = {tuple(line.get_xdata()) for ax in page.axes for line in ax.lines if line.get_color() != BAD}
    assert places == {(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)}  # though the monitor's count stands still at the fourth
    assert {line.get_color() for ax in page.axes for line in ax.lines} == {LINE, GROUPS[0], BAD}
    assert [ax.get_xlabel() for ax in page.axes] == [""] * 6 + ["step"] * 2
    page.savefig(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_a_page_is_drawn_of_whatever_figures_there_are():
    history = [{"step_size_p10": 0.1, "step_size_p50": k / 2, "loss": 1.0} for k in range(3)]
    page = adam_tx.plot_metrics(history)
    assert [ax.get_title(loc="left") for ax in page.axes] == ["loss", "step size / learning rate"]
    (line,) = page.axes[1].lines
    np.testing.assert_array_equal(line.get_ydata(), [np.nan, 0.5, 1.0])  # zero has no place on a logarithmic axis
    assert not page.axes[1].collections  # no band without its upper edge


def test_a_history_without_figures_is_refused():
    with pytest.raises(ValueError, match="history is empty"):
        adam_tx.plot_metrics([])
    with pytest.raises(ValueError, match="needs a finite figure of metrics"):
        adam_tx.plot_metrics([{"accuracy": 1.0}])


def test_what_is_no_number_in_a_history_is_named():
    for odd in ("abc", np.ones(2)):
        with pytest.raises(TypeError, match=r"history\[...\]\['run'\] must be one number, got"):
            adam_tx.plot_metrics([{"loss": 1.0, "run": odd}])
