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


def test_the_table_has_the_mean_of_each_and_how_much_trainings_differ_at_the_end(example):
    losses = {name: np.array([[3.0, 2.0, 1.5, k], [3.0, 2.0, 1.5, k + 1]]) for k, name in enumerate(example.LABELS)}
    table = example.table_of(losses, 100)
    assert [column.header for column in table.columns] == ["after updates", "100", "200", "400", "±"]
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == [*example.LABELS.values()]
    assert cells[3][:2] == ["0.500", "1.500"]
    assert set(cells[4]) == {"0.5000"}


@pytest.mark.exhaustive
def test_it_trains_once_with_all_averages(example, monkeypatch):
    """A short training with two of them, of which the mean begins after half: till then it is the weights."""
    of_all = example.averages
    monkeypatch.setattr(example, "averages", lambda steps: dict([*of_all(steps).items()][-2:]))
    losses = example.compare(steps=40, every=10, repetitions=1)
    assert losses.keys() == {"weights", "ema_999_debiased", "mean_of_last_half", "decayed"}
    assert all(of.shape == (1, 4) for of in losses.values())
    np.testing.assert_array_equal(losses["mean_of_last_half"][:, :2], losses["weights"][:, :2])
    assert losses["mean_of_last_half"][0, -1] != losses["weights"][0, -1]


@pytest.mark.exhaustive
def test_a_slow_average_ends_below_the_weights_and_differs_less(example, capsys):
    """By more than the spread of eight trainings; what a decay of the rate reaches, it reaches, too."""
    losses = example.main([])
    shown = capsys.readouterr().out
    assert all(label in shown for label in example.LABELS.values())
    end = {name: of[:, -1] for name, of in losses.items()}
    for name in ("ema_999_debiased", "mean_of_last_half"):
        assert end[name].mean() < 0.9 * end["weights"].mean()
        assert end[name].std() < 0.5 * end["weights"].std()
        assert end[name].mean() < 1.05 * end["decayed"].mean()
    first = {name: of[:, 0].mean() for name, of in losses.items()}
    assert first["ema_999"] > 2 * first["ema_999_debiased"] > 2 * first["weights"]
