"""The Flax example reads like the Keras notebook, and computes what the notebook computes."""

import ast
import contextlib
import functools
import io
import pprint
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import matplotlib.image
import numpy as np
import optax
import pytest
from flax import nnx
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from run import compiled_for_users, load_script

import adam_tx

EXAMPLE = Path(__file__).parents[1] / "examples" / "flax_mlp.py"
SEED = 5  # and 100 steps, the defaults
EPOCHS = 30


flax_mlp = load_script(EXAMPLE)


@pytest.fixture(scope="module", autouse=True)
def standard_promotion():
    """For Keras and optax.adam; for all of the module, because JAX compiles anew in each mode."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Run(NamedTuple):
    """What the command prints with every option, its figure and the figure's file, and the histories behind them."""

    output: str
    figure: Figure
    path: Path
    histories: dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the command with every option."""
    path, output, drawn = tmp_path_factory.mktemp("plot") / "adam.png", io.StringIO(), []

    def draw(dialect, histories, plain_draw=flax_mlp.draw):
        drawn.append((plain_draw(dialect, histories), histories))
        return drawn[0][0]

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setenv("COLUMNS", "100")
        patch.setattr(flax_mlp, "draw", draw)
        flax_mlp.main(["--plot", str(path), "--compare"])
    ((figure, histories),) = drawn
    return Run(output.getvalue(), figure, path, histories)


def test_it_prints_the_cells_of_the_notebook_in_order(run):
    history = run.histories["keras"]
    kernels = [
        [str(jnp.array(w[:100].reshape(10, 10))), str(jnp.array(w[110:130].reshape(10, 2)))] for w in history.weights
    ]
    cells = [
        *("MLP Summary", "Input", "float32[2,10,10]", "Linear", "Linear", "float32[2,10,2]", "Total Parameters: 132"),
        *("scale_by_momentum", "scale_by_rms", "bias_correction", "scale_by_learning_rate"),
        *("Initial Layer Weights", "Weight for Layer 1:", kernels[0][0], "Weight for Layer 2:", kernels[0][1]),
        *("'beta_1': 0.9", "'epsilon': 1e-07"),
        *("100/100", "ms/step", f"accuracy: {history.accuracy[-1]:.4f} - loss: {history.loss[-1]:.4f}"),
        *("Final Layer Weights", "Weight for Layer 1:", kernels[-1][0], "Weight for Layer 2:", kernels[-1][1]),
        "Largest distance of a weight after 100 steps",
    ]
    at = 0
    for text in cells:
        found = run.output.find(text, at)
        assert found >= 0, f"{text!r} is not after what should precede it"
        at = found + len(text)


def printed_config(capsys, dialect, tx):
    """What is printed of an optimizer's configuration, as Python reads it."""
    flax_mlp.print_config(dialect, tx)
    return ast.literal_eval(capsys.readouterr().out)


def test_the_keras_dialect_prints_what_keras_does(run, capsys):
    config = keras.optimizers.Adam(name="adam").get_config()
    assert printed_config(capsys, "keras", flax_mlp.create_optimizer("keras")) == config
    assert pprint.pformat(config, sort_dicts=False) in run.output


def test_the_printed_config_is_that_of_the_optimizer(capsys):
    other = flax_mlp.KERAS_CONFIG | {"beta_1": 0.8}
    torch = flax_mlp.create_optimizer("torch")
    assert printed_config(capsys, "torch", torch) == flax_mlp.TORCH_GROUP
    assert printed_config(capsys, "keras", adam_tx.interop.keras.from_config(other)) == other
    group = flax_mlp.TORCH_GROUP | {"betas": (0.8, 0.99)}
    assert printed_config(capsys, "torch", adam_tx.interop.torch.from_param_group(group)) == group
    formula = flax_mlp.create_optimizer("formula")
    assert repr(adam_tx.from_config(printed_config(capsys, "formula", formula))) == repr(formula)


@pytest.mark.parametrize(
    ("readings", "text"),
    [
        ((0.0, 0.668), "1s 668ms/step"),  # the notebook's
        ((0.0, 2.0, 2.5, 3.0), "3s 500ms/step"),
        ((0.0, 1.0, 1.00035), "1s 0.35ms/step"),
    ],
)
def test_the_time_of_a_step_is_a_mean_without_the_first_as_in_keras(readings, text, monkeypatch):
    clock = iter(readings)
    monkeypatch.setattr(flax_mlp.time, "perf_counter", lambda: next(clock))
    timer = flax_mlp.Clock()
    for _ in readings[1:]:
        timer.tick()
    assert str(timer) == text


def test_input_refuses_features_of_another_shape():
    model = flax_mlp.create_model(SEED)
    assert model(jnp.zeros((3, 10, 10))).shape == (3, 10, 2)
    with pytest.raises(ValueError, match=r"must be \(batch, 10, 10\), got \(10, 10\)"):
        model(jnp.zeros((10, 10)))


def test_loss_and_accuracy_are_those_of_keras_even_at_the_edge_of_the_clip():
    rng = np.random.default_rng(0)
    target = rng.standard_normal((50, 10, 3)).astype(np.float32)
    output = rng.uniform(0.0, 3.0, (50, 10, 3)).astype(np.float32)  # not normalised
    output[0] = [1.0, 0.0, 0.0]  # clipped at both ends
    loss = np.mean(keras.losses.categorical_crossentropy(target, output))
    accuracy = np.mean(keras.metrics.categorical_accuracy(target, output))
    # only the order of summation, of 500 float32 terms of order one, may differ
    np.testing.assert_allclose(flax_mlp.categorical_crossentropy(target, output), loss, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(flax_mlp.categorical_accuracy(target, output), accuracy, rtol=1e-6)
    assert 0.1 < accuracy < 0.6


@pytest.fixture(scope="module")
def keras_fit():
    """The history of the notebook's `fit` for thirty epochs from the example's weights."""
    dense = functools.partial(keras.layers.Dense, kernel_initializer="zeros")  # they are replaced
    model = keras.Sequential([keras.layers.Input((10, 10)), dense(10, "relu"), dense(2, "softmax")])
    model.set_weights([np.asarray(w) for w in flax_mlp.get_weights(flax_mlp.create_model(SEED))])
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    x, y = (np.asarray(array) for array in flax_mlp.draw_data(SEED))
    with compiled_for_users(), pytest.MonkeyPatch.context() as patch:  # the seventh digit is asked for
        patch.setattr("keras.src.backend.jax.trainer.jit", jax.jit)
        return model.fit(x, y, batch_size=2, epochs=EPOCHS, shuffle=False, verbose=0).history


def test_the_history_is_that_of_keras_fit(run, keras_fit):
    ours, theirs = run.histories["keras"], keras_fit
    assert np.abs(np.diff(ours.loss)).min() > 1e-3  # so that a history shifted by a step would not pass
    # either loss is a sum of twenty float32 terms of order one; Keras's first steps, and their gain, are 6.5e-6 short
    fallen = ours.loss[0] - ours.loss[EPOCHS]
    np.testing.assert_allclose(ours.loss[:EPOCHS], theirs["loss"], rtol=0, atol=2 * 20 * 2.0**-24 + 6.5e-6 * fallen)
    np.testing.assert_allclose(ours.accuracy[:EPOCHS], theirs["accuracy"], rtol=1e-6)


@pytest.fixture(scope="module")
def gradient():
    """The first gradient, in the order of the weights."""
    graphdef, params = nnx.split(flax_mlp.create_model(SEED))
    x, y = flax_mlp.draw_data(SEED)

    @jax.jit
    @jax.grad
    def grad(params):
        return flax_mlp.categorical_crossentropy(y, nnx.merge(graphdef, params)(x))

    return np.asarray(flax_mlp.flat(flax_mlp.get_weights(nnx.merge(graphdef, grad(params)))))


@pytest.mark.parametrize("dialect", flax_mlp.DIALECTS)
def test_the_first_step_moves_every_weight_with_a_gradient_by_the_learning_rate(dialect, run, gradient):
    weights = run.histories[dialect].weights
    moved = (weights[0] - weights[1]) / 1e-3

    # At the first step every dialect is g / (|g| + eps) or g / sqrt(g² + eps²), with this eps:
    eps = {"keras": 1e-7 / np.sqrt(1e-3), "torch": 1e-8, "formula": np.sqrt(1e-7)}[dialect]
    large = np.abs(gradient) > 10 * eps
    assert large.sum() > len(gradient) / 2
    rounding = 1.2e-4  # of two weights below one, each stored to 6e-8, in learning rates
    assert np.all(np.abs(moved[large]) >= 10 / 11 - rounding)
    assert np.all(np.abs(moved) <= 1 + rounding)
    np.testing.assert_array_equal(np.sign(moved[large]), np.sign(gradient[large]))


def panel(figure, letter):
    """The panel of this letter."""
    (ax,) = (ax for ax in figure.axes if ax.get_title(loc="left").startswith(rf"$\bf{{{letter}}}$"))
    return ax


def test_every_panel_counts_steps(run):
    assert [panel(run.figure, letter).get_xlabel() for letter in "abcd"] == ["step"] * 4


def test_panel_b_shows_every_weight_in_learning_rates(run):
    ax = panel(run.figure, "b")
    assert "learning rates" in ax.get_ylabel()
    weights = run.histories["keras"].weights
    drawn = np.stack([line.get_ydata() for line in ax.lines[: weights.shape[1]]], axis=1)
    np.testing.assert_allclose(drawn, (weights - weights[0]) / 1e-3)


def test_panel_c_shows_the_bias_of_the_decays_in_its_title_and_adams_steps_without_it(run):
    ax = panel(run.figure, "c")
    assert "b1 = 0.9 and b2 = 0.999" in ax.get_title(loc="left")
    raw, corrected, *_ = (line.get_ydata() for line in ax.lines)
    t = np.arange(1, 101)
    # under a constant gradient; the float32 averages round a few hundred times
    np.testing.assert_allclose(raw, (1 - 0.9**t) / np.sqrt(1 - 0.999**t), rtol=1e-4)
    np.testing.assert_allclose(corrected, 1.0, rtol=1e-4)


def test_panel_d_shows_the_drift_of_every_other_dialect_in_learning_rates(run):
    ax = panel(run.figure, "d")
    assert "learning rates" in ax.get_ylabel()
    drawn = {line.get_label().partition(":")[0]: line.get_ydata() for line in ax.lines}
    keras_weights = run.histories["keras"].weights
    for name in ("torch", "formula", "optax.adam"):
        drift = np.abs(run.histories[name].weights[1:] - keras_weights[1:]).max(axis=1) / 1e-3
        np.testing.assert_allclose(drawn[name], drift)
    assert drawn["torch"].max() < 1.0 < drawn["formula"].max()
    np.testing.assert_allclose(drawn["torch"], drawn["optax.adam"], atol=1e-2)  # they are the same Adam


def test_plot_writes_a_png_that_shows_every_dialect(run):
    assert run.path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = matplotlib.image.imread(run.path)[::2, ::2, :3].reshape(-1, 3)
    for name, colour in flax_mlp.COLOURS.items():
        drawn = np.all(np.abs(pixels - to_rgb(colour)) < 1e-2, axis=1).sum()
        assert drawn > 50, f"{name} is not in the figure"


def test_compare_shows_the_chain_at_keras_and_optax_adam_elsewhere(run):
    row = r"│ (adam_tx|optax\.adam|Keras)[^│]*│ +([\d.e+-]+) +│ +([\d.e-]+) +│ +([\d.e-]+) +│"
    cells = re.findall(row, run.output)
    rows = {name: [float(number) for number in numbers] for name, *numbers in cells}
    (ours, our_error, _), (optax_adam, *_), (_, keras_error, travelled) = (
        rows[name] for name in ("adam_tx", "optax.adam", "Keras")
    )
    assert 0.05 < travelled < 0.2
    assert our_error <= 100 * 2.0**-25  # in each step weights below one are rounded by as much
    assert our_error < keras_error
    # Keras's 1 - 0.999f^t is 1.3e-5 too small and its root half that: 6.5e-6 of every step, which the steps after
    # it compound. The next test shows that nothing else is left.
    assert ours <= 3 * 6.5e-6 * travelled
    assert optax_adam > 100 * ours


def test_all_that_keeps_the_chain_from_keras_is_the_correction_that_keras_rounds(as_written):
    def keras_correction(updates, count, _=None):
        t = (count + 1).astype(jnp.float32)
        scale = jnp.sqrt(1 - jnp.float32(0.999) ** t) / (1 - jnp.float32(0.9) ** t)
        return scale * updates, count + 1

    momentum, rms = adam_tx.scale_by_momentum(0.9), adam_tx.scale_by_rms(0.999, eps=1e-7)
    rounded = optax.GradientTransformation(lambda _: jnp.zeros((), jnp.int32), keras_correction)
    start = jnp.zeros(132)  # in every step, so that the weights after it are the step, to all of its digits
    chains = [adam_tx.chain(momentum, rms, of, optax.scale(-1e-3)) for of in (rounded, adam_tx.bias_correction())]
    states = [tx.init(start) for tx in chains]
    theirs = keras.optimizers.Adam(1e-3)
    theirs.build([keras.Variable(start)])
    variables = [variable.value for variable in theirs.variables]
    takes, apply = [jax.jit(tx.update) for tx in chains], jax.jit(theirs.stateless_apply)
    apart = []
    for grad in jax.random.normal(jax.random.key(SEED), (EPOCHS, 132)):
        (step,), variables = apply(variables, [grad], [start])
        (same, other), states = zip(
            *[take(grad, state) for take, state in zip(takes, states, strict=True)], strict=True
        )
        np.testing.assert_allclose(same, step, rtol=6 * 2.0**-24)  # three products and quotients each, in another order
        apart.append(np.abs(other / step - 1).max())
    assert max(apart) > 6e-6  # 1 - 0.999f is 1.3e-5 too small, and its root is taken


def test_compare_without_keras_exits_with_one_line_before_anything_is_trained(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(SystemExit) as exit_:
        flax_mlp.main(["--compare"])
    message = exit_.value.code
    assert isinstance(message, str)  # which Python prints, and exits with status 1
    assert "pip install keras" in message
    assert "\n" not in message
    assert capsys.readouterr().out == ""
