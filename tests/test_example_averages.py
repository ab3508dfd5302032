"""The example of averages shows what its text says."""

from pathlib import Path

import jax
import numpy as np
import pytest
from run import load_script

EXAMPLE = Path(__file__).parents[1] / "examples" / "averages.py"


@pytest.fixture(scope="module", autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def example():
    return load_script(EXAMPLE)


def test_it_trains_once_with_all_averages_and_shows_each(example, monkeypatch, capsys):
    """A short training, of which the mean begins after half: till then it is the weights."""
    compare = example.compare
    monkeypatch.setattr(example, "compare", lambda *_: compare(steps=40, every=10, repetitions=1))
    losses = example.main(["--quick"])
    assert losses.keys() == example.LABELS.keys()
    assert all(of.shape == (1, 4) for of in losses.values())
    np.testing.assert_array_equal(losses["mean_of_last_half"][:, :2], losses["weights"][:, :2])
    assert losses["ema_999"][0, -1] > losses["ema_999_debiased"][0, -1] > losses["ema_90"][0, -1]
    shown = capsys.readouterr().out
    assert all(label in shown for label in example.LABELS.values())


@pytest.mark.exhaustive
def test_a_slow_average_ends_below_the_weights_and_differs_less(example):
    """By more than the spread of eight trainings; what a decay of the rate reaches, it reaches, too."""
    losses = example.main([])
    end = {name: of[:, -1] for name, of in losses.items()}
    for name in ("ema_999_debiased", "mean_of_last_half"):
        assert end[name].mean() < 0.9 * end["weights"].mean()
        assert end[name].std() < 0.5 * end["weights"].std()
        assert end[name].mean() < 1.05 * end["decayed"].mean()
    first = {name: of[:, 0].mean() for name, of in losses.items()}
    assert first["ema_999"] > 2 * first["ema_999_debiased"] > 2 * first["weights"]
