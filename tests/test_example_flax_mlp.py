"""The Flax example reads like the Keras notebook, and computes what the notebook computes."""

import importlib.util
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import keras
import matplotlib.image
import numpy as np
import optax
import pytest
from matplotlib.colors import to_rgb

import adam_tx

EXAMPLE = Path(__file__).parents[1] / "examples" / "flax_mlp.py"


def load_example():
    spec = importlib.util.spec_from_file_location("flax_mlp", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


flax_mlp = load_example()


def distance(a, b):
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())


def test_it_prints_the_cells_of_the_notebook_in_order(capsys):
    flax_mlp.main(["--steps", "2", "--seed", "7"])
    output = capsys.readouterr().out
    model = flax_mlp.create_model(7)
    trained, history = flax_mlp.train(model, flax_mlp.create_optimizer("keras"), flax_mlp.draw_data(7), 2)
    kernels = [[str(layer.kernel[...]) for layer in (m.hidden, m.output)] for m in (model, trained)]
    cells = [
        *("MLP Summary", "float32[2,10,10]", "float32[2,10,2]", "Total Parameters: 132", "scale_by_learning_rate"),
        *("Initial Layer Weights", "Weight for Layer 1:", kernels[0][0], "Weight for Layer 2:", kernels[0][1]),
        *("'beta_1': 0.9", "'epsilon': 1e-07", "'links'", "'eps': 1e-07"),
        *("2/2", f"accuracy: {history.accuracy[-1]:.4f} - loss: {history.loss[-1]:.4f}"),
        *("Final Layer Weights", "Weight for Layer 1:", kernels[1][0], "Weight for Layer 2:", kernels[1][1]),
    ]
    at = 0
    for text in cells:
        found = output.find(text, at)
        assert found >= 0, f"{text!r} is not after what should precede it"
        at = found + len(text)


@pytest.mark.usefixtures("standard_promotion")
def test_loss_and_accuracy_are_those_of_keras_even_at_the_edge_of_the_clip():
    rng = np.random.default_rng(0)
    target = rng.standard_normal((50, 10, 3)).astype(np.float32)
    output = rng.uniform(0.0, 3.0, (50, 10, 3)).astype(np.float32)  # not normalised
    output[0] = [1.0, 0.0, 0.0]  # clipped at both ends
    loss = np.mean(keras.losses.categorical_crossentropy(target, output))
    accuracy = np.mean(keras.metrics.categorical_accuracy(target, output))
    # the order of a sum over 500 float32 terms of order one
    np.testing.assert_allclose(flax_mlp.categorical_crossentropy(target, output), loss, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(flax_mlp.categorical_accuracy(target, output), accuracy, rtol=1e-6)
    assert 0.1 < accuracy < 0.6


@pytest.mark.usefixtures("standard_promotion")
def test_the_history_is_that_of_keras_fit():
    model, data = flax_mlp.create_model(1), flax_mlp.draw_data(1)
    _, ours = flax_mlp.train(model, flax_mlp.create_optimizer("keras"), data, 20)

    twin = keras.Sequential(
        [keras.layers.Input((10, 10)), keras.layers.Dense(10, "relu"), keras.layers.Dense(2, "softmax")]
    )
    twin.set_weights([np.asarray(w) for w in flax_mlp.get_weights(model)])
    twin.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    x, y = (np.asarray(array) for array in data)
    theirs = twin.fit(x, y, batch_size=2, epochs=20, shuffle=False, verbose=0).history

    np.testing.assert_allclose(ours.loss, theirs["loss"], atol=2e-6)  # an update moves the loss by 1e-3 and more
    np.testing.assert_allclose(ours.accuracy, theirs["accuracy"], rtol=1e-6)
    assert np.abs(np.diff(ours.loss)).min() > 1e-4


@pytest.mark.parametrize("dialect", flax_mlp.DIALECTS)
def test_the_first_step_moves_every_weight_with_a_gradient_by_the_learning_rate(dialect):
    model, data = flax_mlp.create_model(5), flax_mlp.draw_data(5)
    _, history = flax_mlp.train(model, flax_mlp.create_optimizer(dialect), data, 1)
    _, after_sgd = flax_mlp.train(model, optax.sgd(1.0), data, 1)
    gradient = np.abs(after_sgd.weights[0] - after_sgd.weights[1])
    moved = np.abs(history.weights[1] - history.weights[0]) / 1e-3

    # epsilon is 1e-7 beside a gradient of 0.03 |g| in Keras, and 1e-7 beside g² in the formula
    epsilon = {"keras": 3.2e-6, "torch": 1e-8, "formula": 3.2e-4}[dialect]
    large = gradient > 10 * epsilon + 1e-5  # which a difference of two float32 weights still shows
    assert large.sum() > 50
    # a hundredth for epsilon in the formula, a tenth elsewhere; float32 weights below one are 6e-8 apart
    np.testing.assert_allclose(moved[large], 1.0, atol=0.1)
    assert moved.max() <= 1.0 + 1e-4


@pytest.mark.usefixtures("standard_promotion")  # optax.adam needs it
def test_plot_writes_a_png_that_shows_every_dialect(tmp_path, capsys):
    path = tmp_path / "adam.png"
    flax_mlp.main(["--steps", "3", "--plot", str(path)])
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = matplotlib.image.imread(path)[..., :3].reshape(-1, 3)
    for name, colour in flax_mlp.COLOURS.items():
        drawn = np.all(np.abs(pixels - to_rgb(colour)) < 1e-2, axis=1).sum()
        assert drawn > 100, f"{name} is not in the figure"


@pytest.mark.usefixtures("standard_promotion")
def test_compare_shows_the_chain_at_keras_and_optax_adam_elsewhere(capsys):
    flax_mlp.main(["--compare", "--steps", "100"])
    output = capsys.readouterr().out
    rows = dict(re.findall(r"│ (adam_tx|optax\.adam|Keras)[^│]*│ +([\d.e-]+) +│", output))
    ours, optax_adam, travelled = (float(rows[name]) for name in ("adam_tx", "optax.adam", "Keras"))
    assert 0.05 < travelled < 0.2
    # Keras's 1 - 0.999f^t is 1.3e-5 too small and its root half that: 6.5e-6 of every step, which the steps after
    # it compound. The next test shows that nothing else is left.
    assert ours <= 3 * 6.5e-6 * travelled
    assert optax_adam > 100 * ours


@pytest.mark.usefixtures("standard_promotion")
def test_all_that_keeps_the_chain_from_keras_is_the_correction_that_keras_rounds():
    def keras_rounded(updates, count):
        t = (count + 1).astype(jnp.float32)
        b1_power, b2_power = jnp.float32(0.9) ** t, jnp.float32(0.999) ** t
        scale = jnp.sqrt(1 - b2_power) / (1 - b1_power)
        return jax.tree.map(lambda u: scale * u, updates), count + 1

    tx = adam_tx.chain(
        adam_tx.scale_by_momentum(0.9),
        adam_tx.scale_by_rms(0.999, eps=1e-7),
        optax.GradientTransformation(
            lambda _: jnp.zeros((), jnp.int32), lambda u, count, _=None: keras_rounded(u, count)
        ),
        optax.scale_by_learning_rate(1e-3),
    )
    model, data = flax_mlp.create_model(5), flax_mlp.draw_data(5)
    _, history = flax_mlp.train(model, tx, data, 100)
    theirs = flax_mlp.train_keras(model, data, 100)
    assert distance(history.weights[-1], theirs) <= 5e-7  # a hundred roundings of weights 6e-8 apart


def test_compare_without_keras_exits_with_one_line_before_anything_is_trained(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(SystemExit) as exit_:
        flax_mlp.main(["--compare"])
    message = exit_.value.code
    assert isinstance(message, str)  # which Python prints, and exits with status 1
    assert "pip install keras" in message
    assert "\n" not in message
    assert capsys.readouterr().out == ""
