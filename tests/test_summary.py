"""`get_config` and `summary` describe every link they can reach, and say where they cannot."""

import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import OPTIMIZERS, PER_TENSOR

import adam_tx

PARAMS = {"a": jnp.zeros((3, 4)), "b": jnp.zeros(4)}
ADAM = ["scale_by_momentum", "scale_by_rms", "bias_correction", "scale_by_learning_rate"]


def names(config):
    """All names in a description, depth first."""
    return [config["name"], *(name for link in config.get("links", []) for name in names(link))]


def test_a_config_gives_each_link_with_its_hyperparameters():
    config = adam_tx.get_config(adam_tx.adam(1e-3, b1=0.8, mu_dtype=jnp.bfloat16))
    assert config["links"][0] == {
        "name": "scale_by_momentum",
        "decay": 0.8,
        "read": None,
        "nesterov": False,
        "debias": False,
        "dtype": "bfloat16",
    }
    assert config["links"][3] == {"name": "scale_by_learning_rate", "learning_rate": 1e-3}


@pytest.mark.parametrize("make", (OPTIMIZERS | PER_TENSOR).values(), ids=OPTIMIZERS | PER_TENSOR)
def test_every_config_is_plain_json(make):
    config = adam_tx.get_config(make())
    assert json.loads(json.dumps(config)) == config


def test_a_schedule_is_described_by_its_maker_and_arguments():
    config = adam_tx.get_config(adam_tx.adam(optax.cosine_decay_schedule(1e-3, 100)))
    rate = config["links"][-1]["learning_rate"]
    assert rate["name"] == "cosine_decay_schedule"
    assert rate["decay_steps"] == 100


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [
        (lambda tx: optax.chain(optax.clip(1.0), tx), ["chain", "clip", "chain", *ADAM]),
        (lambda tx: optax.masked(tx, {"a": True, "b": False}), ["masked", "chain", *ADAM]),
        (lambda tx: optax.partition({"x": tx, "y": optax.set_to_zero()}, {"a": "x", "b": "y"}), None),
        (lambda tx: optax.apply_if_finite(tx, 3), ["apply_if_finite", "chain", *ADAM]),
        (lambda tx: optax.MultiSteps(tx, 4), ["MultiSteps", "chain", *ADAM]),
        (lambda tx: optax.named_chain(("adam", tx)), ["named_chain", "chain", *ADAM]),
    ],
)
def test_a_config_sees_through_wrappers(wrap, expected):
    found = names(adam_tx.get_config(wrap(adam_tx.adam(1e-3))))
    assert found == (expected or ["partition", "chain", *ADAM, "set_to_zero"])


def test_a_config_sees_through_wrappers_inside_a_chain():
    masked = optax.masked(adam_tx.scale_by_rms(0.99), {"a": True, "b": False})
    config = adam_tx.get_config(adam_tx.chain(adam_tx.scale_by_momentum(0.9), masked))
    assert names(config) == ["chain", "scale_by_momentum", "masked", "scale_by_rms"]


@pytest.mark.parametrize(
    "value", [1j, float("inf"), jax.random.key(0), (recursive := []).append(recursive) or recursive]
)
def test_what_json_cannot_hold_is_described(value):
    def update(updates, state, params=None):
        return updates, (state, value)[:1][0]

    config = adam_tx.get_config(optax.GradientTransformation(optax.init_empty_state, update))
    json.dumps(config, allow_nan=False)


def test_what_is_no_transformation_has_no_config():
    with pytest.raises(TypeError, match=r"tx must be an Optax transformation.*got dict"):
        adam_tx.get_config(adam_tx.adam(1e-3).init(PARAMS))


def test_a_summary_lists_the_links_of_its_own_optimizer_only():
    other = threading.Thread(target=lambda: adam_tx.adamw(1e-3).init(PARAMS))

    def init(params):
        other.start()
        other.join()
        return ()

    slow = optax.GradientTransformation(init, optax.identity().update)
    table = rows(adam_tx.summary(optax.chain(adam_tx.scale_by_momentum(0.5), slow), PARAMS))
    assert "add_decayed_weights" not in table


def test_a_config_says_where_it_cannot_look():
    config = adam_tx.get_config(optax.inject_hyperparams(adam_tx.adam)(1e-3))
    assert config["unseen"] == ["inner_factory"]


def rows(table):
    """Link name -> the lines of its row."""
    lines, found = table.splitlines()[2:], {}
    for line in lines:
        if line[0] not in " -":
            found[name := line.split()[0]] = []
        if line[0] != "-":
            found[name].append(line)
    return found


def test_a_summary_has_a_row_for_each_link_with_state_and_bytes():
    table = rows(adam_tx.summary(adam_tx.adam(1e-3), PARAMS))
    assert list(table) == [*ADAM, "total"]
    momentum = "\n".join(table["scale_by_momentum"])
    for text in ("decay=0.9", "mu float32[3,4] float32[4]", "(u - mu)"):
        assert text in momentum


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_total_of_a_summary_is_the_bytes_of_the_state(make):
    tx = make()
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(tx.init(PARAMS)))
    (total,) = rows(adam_tx.summary(tx, PARAMS))["total"]
    assert int(total.split()[-1]) == state_bytes
    assert f"{state_bytes / 16:.4g} bytes per parameter" in total


def test_a_summary_sees_links_in_any_wrapper_and_counts_the_rest_as_elsewhere():
    tx = optax.MultiSteps(optax.inject_hyperparams(adam_tx.adam)(1e-3), 2)
    table = rows(adam_tx.summary(tx, PARAMS))
    assert list(table) == [*ADAM, "(elsewhere)", "total"]
    links = tx.init(PARAMS).inner_opt_state.inner_state
    elsewhere = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tx.init(PARAMS))) - sum(
        leaf.nbytes for leaf in jax.tree.leaves(links)
    )
    assert table["(elsewhere)"][0].split()[-1] == str(elsewhere)


def test_a_summary_of_masked_parameters_counts_their_state_only():
    table = rows(adam_tx.summary(optax.masked(adam_tx.adam(1e-3), {"a": True, "b": False}), PARAMS))
    assert "mu float32[3,4] " in table["scale_by_momentum"][2]


def test_a_summary_computes_nothing():
    huge = jax.ShapeDtypeStruct((10**6, 10**6), jnp.float32)
    assert "8 bytes per parameter" in adam_tx.summary(adam_tx.adam(1e-3), huge)


def test_no_parameters_have_a_summary_too():
    assert "no parameters" in adam_tx.summary(adam_tx.adam(1e-3), {})
