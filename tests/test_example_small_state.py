"""The example of small optimizer state measures what it says, on a model small enough for a test."""

import contextlib
import functools
import io
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from flax import nnx
from run import load_script

EXAMPLE = Path(__file__).parents[1] / "examples" / "small_state.py"


small_state = load_script(EXAMPLE)


@pytest.fixture(scope="module", autouse=True)
def standard_promotion():
    """For Flax; for all of the module, because JAX compiles anew in each mode."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What the command prints of a model without blocks in a terminal of eighty columns, its runs and its figure."""
    path, output, drawn = tmp_path_factory.mktemp("plot") / "small_state.png", io.StringIO(), []

    def draw(runs, plain_draw=small_state.draw):
        drawn.append(runs)
        return plain_draw(runs)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setenv("COLUMNS", "80")
        patch.setattr(small_state, "draw", draw)
        patch.setattr(small_state, "EVERY", 10)
        patch.setattr(small_state, "CharacterModel", functools.partial(small_state.CharacterModel, width=128, depth=0))
        small_state.main(["--steps", "40", "--plot", str(path)])
    return output.getvalue(), drawn[0], path


@pytest.mark.exhaustive
def test_float32_keeps_twelve_bytes_a_parameter_and_the_small_recipe_about_five(run):
    table, runs, _ = run
    wide, small = (runs[name].per_parameter() for name in ("float32", "5 bytes"))
    assert wide.items() >= {"weights": 4.0, "first moment": 4.0, "second moment": 4.0, "residual": 0.0}.items()
    assert wide["scales and counts"] < 0.01
    assert small.items() >= {"weights": 2.0, "residual": 1.0}.items()
    # a few vectors, too small for eight bits, weigh more in a tiny model
    assert 5.0 < sum(small.values()) < 5.4
    (printed,) = re.findall(r"in all +│ +([\d.]+) │ +([\d.]+)", table)
    assert printed == tuple(f"{sum(parts.values()):.2f}" for parts in (wide, small))


@pytest.mark.exhaustive
def test_both_recipes_learn_alike(run):
    table, runs, _ = run
    wide, small = (runs[name].validation for name in ("float32", "5 bytes"))
    assert len(wide) == len(small) == 5
    assert wide[0] > wide[-1] + 0.5
    np.testing.assert_allclose(small, wide, atol=0.05)  # a tenth of what was learnt
    assert small[-1] != wide[-1]
    assert f"{small[-1] - wide[-1]:+.4f}" in table


@pytest.mark.exhaustive
def test_the_figure_is_a_picture_of_both(run):
    *_, path = run
    assert matplotlib.image.imread(path)[..., :3].std() > 0.05


def test_validation_text_is_not_trained_on_and_no_window_leaves_its_text():
    text = small_state.split(["a" * 90 + "b" * 10, "c" * 45 + "d" * 5 + "é"])
    assert text.training.tobytes().decode() == "a" * 90 + "\n" + "c" * 45
    assert text.validation.tobytes().decode() == "b" * 9 + "b" + "\n" + "d" * 5 + "?"
    short = np.arange(small_state.LENGTH + 2, dtype=np.uint8)
    batches = small_state.draw_batches(short, seed=0, steps=50)
    assert batches.shape == (50, small_state.BATCH, small_state.LENGTH + 1)
    assert set(batches[..., 0].ravel()) == {0, 1}
    np.testing.assert_array_equal(np.diff(batches.astype(int)), 1)
    assert small_state.spread_batches(short, 2)[..., 0].ravel().tolist() == [0] * 15 + [1]


def test_the_model_does_not_see_the_character_that_it_predicts():
    model = functools.partial(small_state.CharacterModel, width=16, depth=1, heads=2)
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: model(nnx.Rngs(0))))
    draw = np.random.default_rng(0).standard_normal  # because at first the blocks add nothing
    params = jax.tree.map(lambda w: 0.3 * draw(w.shape, np.float32), shapes)
    apply = jax.jit(lambda text: nnx.merge(graphdef, params)(text))
    text = jnp.arange(small_state.LENGTH)[None]
    before, after = apply(text), apply(text.at[0, 10].set(99))
    np.testing.assert_array_equal(before[:, :10], after[:, :10])
    assert np.all(np.any(before[:, 10:] != after[:, 10:], axis=-1))


def test_a_buffer_that_appears_twice_counts_once():
    weights = jnp.ones((4, 8))
    parts = small_state.measure_bytes({"a": weights, "b": weights}, {"c": jnp.ones(2, jnp.bfloat16)})
    assert (parts["weights"], parts["scales and counts"]) == (128, 4)


def test_steps_that_do_not_fill_the_calls_are_refused(capsys):
    with pytest.raises(SystemExit):
        small_state.main(["--steps", "33"])
    assert "must be a positive multiple of" in capsys.readouterr().err
