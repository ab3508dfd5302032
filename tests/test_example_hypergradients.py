"""The example of hypergradients finds the learning rate from both sides, compiles once, and differentiates rightly."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run import load_script

EXAMPLE = Path(__file__).parents[1] / "examples" / "hypergradients.py"


@pytest.fixture(scope="module", autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def example():
    return load_script(EXAMPLE)


@pytest.fixture(scope="module")
def played(example):
    """The grid, the paths, and how often Python ran the training, which it does once for each trace."""
    traced = []

    def train(*arguments, plain=example.train):
        traced.append(arguments)
        return plain(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example, "train", train)
        return *example.main(["--quick"]), traced


@pytest.mark.exhaustive
def test_a_learning_rate_ten_times_too_low_or_too_high_ends_near_the_best_of_the_grid(played):
    grid, paths, _ = played
    best = np.argmin(grid.losses)
    for (name, path), factor in zip(paths.items(), (0.1, 10.0), strict=True):
        ratios = path.settings.learning_rate / grid.settings.learning_rate[best]
        np.testing.assert_allclose(ratios[0], factor, rtol=1e-5)
        # the valley is flat: a grid's neighbours are a factor of 1.8 apart, and differ little
        assert 0.4 < ratios[-1] < 2.5, name
        assert path.losses[-1] < 1.25 * grid.losses[best] < 0.6 * path.losses[0], name


@pytest.mark.exhaustive
def test_the_grid_goes_well_beyond_its_best_rate_on_both_sides(played):
    grid, *_ = played
    of_rate = [
        grid.losses[grid.settings.learning_rate == rate].min() for rate in np.unique(grid.settings.learning_rate)
    ]
    assert min(of_rate[0], of_rate[-1]) > 2.0 * min(of_rate)


@pytest.mark.exhaustive
def test_every_hyperparameter_moves_and_stays_in_its_range(played):
    _, paths, _ = played
    for path in paths.values():
        for numbers in path.settings:
            assert len(np.unique(numbers)) > 16
        assert np.all((path.settings.b1 > 0.0) & (path.settings.b1 < 1.0))
        assert np.all((path.settings.b2 > 0.0) & (path.settings.b2 < 1.0))


@pytest.mark.exhaustive
def test_a_new_value_of_a_hyperparameter_compiles_nothing_again(played):
    _, paths, traced = played
    assert sum(len(path.losses) for path in paths.values()) == 66
    assert len(traced) == 3  # the grid, the hypergradient and the loss on test data
    for settings, *_ in traced:
        assert all(isinstance(number, jax.core.Tracer) for number in settings)


@pytest.mark.exhaustive
def test_the_hypergradient_is_the_slope_of_the_loss_after_training(example, x64):
    task = example.load_task(1)
    task = task._replace(
        **{name: example.Digits(*map(widen, getattr(task, name))) for name in ("training", "held_out")}
    )
    look = jax.jit(jax.value_and_grad(lambda free: example.held_out_loss(example.Settings(*free), task, 10)))
    free, step = jnp.stack(example.to_free(example.Settings(*map(jnp.float64, (0.02, 0.9, 0.99))))), 1e-4
    slopes = [(look(free + move)[0] - look(free - move)[0]) / (2.0 * step) for move in step * jnp.eye(3)]
    # the error of a central difference is 1e-8 times the third derivative
    np.testing.assert_allclose(look(free)[1], slopes, rtol=1e-4, atol=1e-7)


def widen(x):
    return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x
