"""The race of the family is fair: every optimizer takes part, at its best rate, on problems with known minima."""

import contextlib
import importlib.util
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

import adam_tx
from adam_tx import optimizers

EXAMPLE = Path(__file__).parents[1] / "examples" / "family.py"
SAME_WITHOUT_DECAY = {"adamc": "adamw", "nadamw": "nadam", "adamaxw": "adamax"}

pytestmark = pytest.mark.usefixtures("standard_promotion")


def load_example():
    spec = importlib.util.spec_from_file_location("family", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


family = load_example()


def test_every_optimizer_takes_part():
    public = {name for name in dir(optimizers) if callable(getattr(optimizers, name))}
    assert public - set(family.FAMILY) == set(SAME_WITHOUT_DECAY)
    assert set(SAME_WITHOUT_DECAY.values()) <= set(family.FAMILY)


@pytest.mark.parametrize("name", family.PROBLEMS)
def test_a_problem_is_zero_and_flat_at_its_minima_and_neither_where_it_starts(name, x64):
    problem = family.PROBLEMS[name]
    for minimum in problem.minima:
        point = jnp.array(minimum)
        np.testing.assert_allclose(problem.loss(point), 0.0, atol=1e-12)
        np.testing.assert_allclose(jax.grad(problem.loss)(point), 0.0, atol=1e-6)
        assert jnp.linalg.eigvalsh(jax.hessian(problem.loss)(point))[0] > 0
    assert problem.loss(jnp.array(problem.start)) > 0.1


def test_the_quadratic_is_ill_conditioned_along_no_axis(x64):
    hessian = jax.hessian(family.quadratic)(jnp.zeros(2))
    values = jnp.linalg.eigvalsh(hessian)
    np.testing.assert_allclose(values[1] / values[0], 1000.0)
    assert abs(hessian[0, 1]) > 1.0


def test_a_member_of_a_population_is_the_optimizer_alone_at_that_rate():
    task, rates = family.functions_task(steps=20, seed=0), jnp.array([1e-3, 1e-2, 1e-1])
    population = family.train_population(family.FAMILY["adam"], rates, task)
    alone = family.train_population(lambda _: adam_tx.adam(1e-2), rates[1:2], task)
    for test, (losses, points) in population.items():
        np.testing.assert_allclose(losses[1], alone[test][0][0], rtol=1e-4)
        np.testing.assert_allclose(points[1], alone[test][1][0], rtol=1e-4, atol=1e-6)


def test_the_rate_that_ends_lowest_is_chosen_and_one_that_diverges_never():
    losses = np.array([[3.0, 2.0], [3.0, 1.0], [0.0, np.nan], [0.0, np.inf]])
    outcome = family.tune(np.array([0.1, 0.2, 0.3, 0.4]), losses, losses)
    assert outcome.rate == 0.2
    assert outcome.loss == 1.0


def test_the_race_prints_a_row_for_each_member_and_draws_six_panels(tmp_path):
    printed = io.StringIO()
    options = ["--steps", "5", "--digits-steps", "3", "--rates", "2", "--members", "adam,schedule_free,soap"]
    with contextlib.redirect_stdout(printed):
        family.main([*options, "--plot", str(tmp_path / "race.png")])
    table = printed.getvalue()
    for name in ("adam", "schedule_free", "soap", "Rosenbrock", "Beale", "saddle", "quadratic", "digits"):
        assert name in table
    assert "…" not in table
    assert matplotlib.image.imread(tmp_path / "race.png").shape[0] > 500


def test_an_unknown_member_is_refused_and_the_known_are_named(capsys):
    with pytest.raises(SystemExit):
        family.main(["--members", "adam,adamant"])
    assert "no such member: adamant; there are sgd" in capsys.readouterr().err
