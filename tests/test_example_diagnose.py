"""The example of a broken run finds what was broken in it, and the guard keeps the same run whole."""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from run import load_script

EXAMPLE = Path(__file__).parents[1] / "examples" / "diagnose.py"


class Page(NamedTuple):
    """In place of a figure, which takes seconds to lay out and is drawn in tests/test_monitor.py."""

    steps: int
    title: str

    def savefig(self, path, **_):
        path.write_text(f"{self.steps} steps of {self.title}")


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """The accuracy after the guarded run, both runs, and the folder of figures."""
    module = load_script(EXAMPLE)
    folder = tmp_path_factory.mktemp("figures")
    with pytest.MonkeyPatch.context() as patch, jax.numpy_rank_promotion("allow"):
        for name, steps in {"STEPS": 260, "TOO_LARGE": 130, "MISSING": 240}.items():
            patch.setattr(module, name, steps)
        patch.setenv("COLUMNS", "140")
        patch.setattr(module.adam_tx, "plot_metrics", lambda history, title: Page(len(history), title))
        runs = module.main(["--plot", str(folder / "page.png")])
        accuracy = module.accuracy(runs["guarded"].params, module.load_data()[1])
    return accuracy, runs, folder


@pytest.mark.exhaustive
def test_the_plain_run_ends_in_nan_after_steps_that_a_spike_made_small(played):
    _, runs, _ = played
    history = runs["plain"].history
    assert history[129]["loss"] > 20.0 * history[128]["loss"]
    assert history[129]["grad_norm"] > 20.0 * history[128]["grad_norm"]
    assert history[230]["step_size_p50"] < 0.5 * history[120]["step_size_p50"]
    assert np.isnan([figures["loss"] for figures in history[239:]]).all()


@pytest.mark.exhaustive
def test_the_guarded_run_skips_both_batches_and_goes_on(played):
    accuracy, runs, _ = played
    run = runs["guarded"]
    assert [step for step in (130, 240) if run.history[step - 1]["skipped"] > run.history[step - 2]["skipped"]] == [
        130,
        240,
    ]
    assert run.history[-1]["skipped"] == 2
    assert run.history[-1]["loss"] < 0.3
    assert accuracy > 0.85


@pytest.mark.exhaustive
def test_it_writes_both_pages(played):
    _, _, folder = played
    pages = {path.name: path.read_text() for path in folder.iterdir()}
    assert pages["page.png"] == "260 steps of AdamW on digits, the plain run"
    assert pages["page_guarded.png"] == "260 steps of AdamW on digits, the guarded run"
