"""The race of the family is fair: every optimizer takes part, at its best rate, on problems with known minima."""

import contextlib
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optax
import pytest
from matplotlib.colors import to_rgb
from run import load_script

import adam_tx
from adam_tx import optimizers

EXAMPLE = Path(__file__).parents[1] / "examples" / "family.py"
SAME_WITHOUT_DECAY = {"adamw": "adam", "adamc": "adam", "nadamw": "nadam", "adamaxw": "adamax"}
OF_MATRICES = {"muon", "normuon", "adamh", "muonh"}
"""Of points, as the functions have, they leave all to another optimizer."""
SCHEDULE_FREE = {"schedule_free_adamw", "schedule_free_sgd"}
"""Schedule-free learning takes part as Optax writes it, around Adam."""
RACERS = ("sgd", "adam")


family = load_script(EXAMPLE)


@pytest.fixture(scope="module", autouse=True)
def standard_promotion():
    """For Optax's losses and schedule-free training; for all of the module, because JAX compiles anew in each mode."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a race of two prints in a terminal of eighty columns, its results, its figure and the figure's file."""
    path, output, drawn = tmp_path_factory.mktemp("plot") / "race.png", io.StringIO(), []

    def draw(results, plain_draw=family.draw):
        drawn.append((results, plain_draw(results)))
        return drawn[0][1]

    options = ["--rates", "9", "--seeds", "3", "--digits-steps", "20", "--members", ",".join(RACERS)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setenv("COLUMNS", "80")
        patch.setattr(family, "draw", draw)
        family.main([*options, "--plot", str(path)])
    ((results, figure),) = drawn
    return output.getvalue(), results, figure, path


def panel(figure, title):
    """The panel with this title."""
    (ax,) = (ax for ax in figure.axes if ax.get_title(loc="left").endswith(title))
    return ax


def test_every_optimizer_takes_part_or_is_another_one_without_its_decay_or_is_for_matrices():
    left_out = set(optimizers.__all__) - set(family.FAMILY)
    assert left_out == {*SAME_WITHOUT_DECAY, *OF_MATRICES, *SCHEDULE_FREE}
    params = jnp.array([1.0, -2.0])
    for name, twin in SAME_WITHOUT_DECAY.items():
        options = {"max_learning_rate": 0.1} if name == "adamc" else {}
        left_out, taken = getattr(adam_tx, name)(0.1, weight_decay=0.0, **options), family.FAMILY[twin](0.1)
        ours, theirs = left_out.init(params), taken.init(params)
        for grad in (jnp.array([0.3, -0.1]), jnp.array([-2.0, 0.5])):
            update, ours = left_out.update(grad, ours, params)
            expected, theirs = taken.update(grad, theirs, params)
            np.testing.assert_allclose(update, expected, rtol=1e-6, err_msg=name)  # a few roundings


def test_every_optimizer_takes_a_traced_rate_and_moves_points_and_matrices():
    params = {"point": jnp.ones(2), "kernel": jnp.ones((64, 32))}

    def step(make, rate):
        tx = make(rate)
        return tx.update(params, tx.init(params), params)[0]

    for name, make in family.FAMILY.items():
        assert jax.eval_shape(lambda rate, make=make: step(make, rate), 0.1) == jax.eval_shape(lambda: params), name


@pytest.mark.parametrize("name", family.PROBLEMS)
def test_a_problem_is_zero_and_flat_at_its_minima_and_neither_where_it_starts(name, x64):
    problem = family.PROBLEMS[name]
    look = jax.jit(lambda p: (problem.loss(p), jax.grad(problem.loss)(p), jax.hessian(problem.loss)(p)))
    for minimum in problem.minima:
        loss, slope, curvature = look(jnp.array(minimum))
        np.testing.assert_allclose(loss, 0.0, atol=1e-12)
        np.testing.assert_allclose(slope, 0.0, atol=1e-6)
        assert np.linalg.eigvalsh(curvature)[0] > 0
    assert look(jnp.array(problem.start))[0] > 0.1


def test_the_quadratic_is_ill_conditioned_along_no_axis(x64):
    hessian = np.asarray(jax.jit(jax.hessian(family.quadratic))(jnp.zeros(2)))
    values = np.linalg.eigvalsh(hessian)
    np.testing.assert_allclose(values[1] / values[0], 1000.0)
    assert abs(hessian[0, 1]) > 1.0


@pytest.mark.parametrize("in_turn", [False, True])
def test_a_member_of_a_population_is_the_optimizer_alone_at_that_rate_and_seed(in_turn, monkeypatch):
    monkeypatch.setattr(family, "PROBLEMS", {name: family.PROBLEMS[name] for name in ("Beale", "noisy valley")})
    task, rates = family.functions_task(steps=20, seeds=2), [1e-3, 1e-2, 1e-1]
    population = family.train_population(family.FAMILY["adam"], rates, task, in_turn=in_turn)

    tx = adam_tx.adam(1e-2)
    points, noises = jax.tree.map(lambda x: x[1], (task.starts, task.batches))
    state, update, gradient = tx.init(points), jax.jit(tx.update), jax.jit(task.gradient)
    for step in range(20):
        noise = {test: noise[step, 0] for test, noise in noises.items()}
        updates, state = update(gradient(points, noise), state)
        points = optax.apply_updates(points, updates)
        for test, (_, shown) in population.items():
            # compiled otherwise, float32 rounds otherwise, which steep functions amplify
            np.testing.assert_allclose(shown[1, 1, step], points[test], rtol=1e-4, atol=1e-6)
    for test, (losses, _) in population.items():
        np.testing.assert_allclose(losses[1, 1, -1], family.PROBLEMS[test].loss(points[test]), rtol=1e-3)


def test_only_the_first_seed_sets_out_from_the_circle():
    starts = family.functions_task(steps=1, seeds=3).starts
    for name, problem in family.PROBLEMS.items():
        np.testing.assert_array_equal(starts[name][0], jnp.array(problem.start))
        off = np.abs(starts[name][1:] / jnp.array(problem.start) - 1.0)
        assert np.all((off > 0.0) & (off < 0.5))


def test_schedule_free_training_is_judged_by_its_average():
    tx, params = family.FAMILY["schedule_free"](0.1), jnp.array([1.0, 2.0])
    state = tx.init(params)
    updates, state = tx.update(jnp.array([0.5, -0.5]), state, params)
    params = optax.apply_updates(params, updates)
    average = family.to_evaluate(params, state)
    np.testing.assert_array_equal(average, optax.contrib.schedule_free_eval_params(state, params))
    assert family.to_evaluate(params, adam_tx.adam(0.1).init(params)) is params


RATES = np.array([0.1, 0.2, 0.3, 0.4])


def test_the_rate_whose_median_ends_lowest_is_chosen_and_one_that_diverges_never():
    at_rate = [[3.0, 2.0], [3.0, 1.0], [0.0, np.nan], [0.0, np.inf]]
    losses = np.array([[curve, [3.0, 1.5], curve] for curve in at_rate])  # three seeds, one of them as good everywhere
    outcome = family.tune(RATES, losses, losses)
    assert outcome.rate == 0.2
    assert outcome.loss == 1.0
    np.testing.assert_array_equal(outcome.losses, [1.0, 1.5, 1.0])
    np.testing.assert_array_equal(outcome.shown, losses[1])


def test_one_lucky_seed_makes_no_good_rate():
    losses = np.array([[0.5, 0.5, 0.5], [0.0, 1.0, 1.0], [0.6, 0.6, 0.6], [0.7, 0.0, 0.7]])[..., None]
    assert family.tune(RATES, losses, losses).rate == 0.1


def test_of_rates_that_are_as_good_as_none_the_lowest_is_chosen():
    losses = np.array([1.0, 1e-10, 1e-13, 0.0]).reshape(4, 1, 1)
    assert family.tune(RATES, losses, losses).rate == 0.2


def test_a_range_is_written_with_one_exponent():
    assert family.spread(np.array([1.24e-3, 9e-4, 1e-3])) == "0.9–1.2e-3"
    assert family.spread(np.array([1.0, np.inf])) == "1.0e0–inf"


def test_the_table_has_a_row_for_each_member_and_every_column_in_full(run):
    table, results, *_ = run
    assert "…" not in table
    lines = {line.split()[0]: line.split()[1:] for line in table.splitlines() if line.split()[:1]}
    for member in RACERS:
        losses = [results[member][test].loss for test in (*family.PROBLEMS, family.DIGITS)]
        cells = [f"<{family.short(1e-9, 0)}" if loss <= 1e-9 else family.short(loss) for loss in losses]
        digits = results[member][family.DIGITS]
        last = family.spread(digits.losses), f"{family.accuracy(digits):.1%}", family.short(digits.rate)
        assert lines[member] == [*cells, *last]
    for name in ("brock", "Beale", "saddle", "ratic", "valley", "digits", "range", "test", "rate"):
        assert name in table


def test_sgd_stays_at_the_saddle_that_adam_leaves(run):
    _, results, figure, _ = run
    heights = {member: np.abs(results[member]["saddle"].shown[:, -1, 1]) for member in ("sgd", "adam")}
    assert np.all(heights["sgd"] < 0.5)  # of every seed
    np.testing.assert_allclose(heights["adam"], 1.0, atol=1e-3)
    said = {title: [text.get_text() for text in panel(figure, title).texts] for title in ("Saddle", "Quadratic")}
    assert "sgd is\nstill here" in said["Saddle"]
    assert "loss above 0.1 after 300 steps:\nsgd" in said["Saddle"]
    assert "sgd is\nstill here" not in said["Quadratic"]


def test_every_path_is_drawn_to_its_end_within_the_frame_and_in_a_colour_of_its_own(run):
    _, results, figure, path = run
    (legend,) = figure.legends
    colours = {line.get_label(): line.get_color() for line in legend.get_lines()}
    assert set(colours) == set(RACERS)
    assert len(set(colours.values())) == len(RACERS)
    for name, problem in family.PROBLEMS.items():
        ax = panel(figure, f"{name[0].upper()}{name[1:]}")
        paths = {line.get_label(): line for line in ax.lines if line.get_label() in RACERS}
        assert set(paths) == set(RACERS)
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        for member, line in paths.items():
            points = line.get_xydata()
            np.testing.assert_allclose(points[0], problem.start)
            np.testing.assert_allclose(points[1:], results[member][name].shown[0])
            assert np.all((points > [left, bottom]) & (points < [right, top]))
            assert line.get_color() == colours[member]
    pixels = matplotlib.image.imread(path)[..., :3].reshape(-1, 3)
    for member, colour in colours.items():
        assert np.all(np.abs(pixels - to_rgb(colour)) < 1e-2, axis=1).sum() > 50, f"{member} is not in the figure"


def test_a_path_that_diverges_does_not_take_the_frame_with_it():
    path = np.array([[0.0, 0.0], [2.0, 0.5], [np.inf, np.nan]])
    left, right, bottom, top = family.frame((-1.0, 1.0, -1.0, 1.0), [path])
    assert -1.2 < left < -1.0
    assert 2.0 < right < 2.2
    assert -1.4 < bottom < -1.2  # room for text
    assert 1.0 < top < 1.2


def test_digits_have_a_labelled_row_with_the_range_of_every_member_the_best_first(run):
    _, results, figure, _ = run
    ax = panel(figure, "Digits")
    assert [label.get_text() for label in ax.get_yticklabels()] == list(results)
    medians = [outcomes[family.DIGITS].loss for outcomes in results.values()]
    assert medians == sorted(medians)
    ranges = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2]
    losses = [outcomes[family.DIGITS].losses for outcomes in results.values()]
    assert {len(of) for of in losses} == {3}
    np.testing.assert_array_equal(ranges, [(of.min(), of.max()) for of in losses])


def test_all_paths_are_drawn_where_the_colours_suffice():
    few, all_ = family.choose_colours(["lamb", "adam", "nadam"]), family.choose_colours(family.FAMILY)
    assert list(few) == ["adam", "lamb", "nadam"]
    assert few["adam"] == all_["adam"]
    assert len(set(few.values())) == 3
    assert all_ == family.COLOURS


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--members", "adam,adamant"], "no such member: adamant; there are sgd"),
        (["--digits-steps", "15"], "must be a multiple of 10, got 15"),
        (["--seeds", "0"], "must be at least 1, got 0"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_with_what_would(option, message, capsys):
    with pytest.raises(SystemExit):
        family.main(option)
    assert message in capsys.readouterr().err
