"""A pickled optimizer is the same one, in this process and in another, and still says what it is."""

import json
import pickle
import subprocess
import sys

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import OPTIMIZERS, PER_TENSOR, SMALL_STATE, costly
from rebuild import program

import adam_tx
from adam_tx._core import states
from adam_tx._core.call import maker_name
from adam_tx.describe import source

CATALOGUE = OPTIMIZERS | PER_TENSOR | SMALL_STATE
PARAMS = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.ones(3)}
LINEAR = optax.linear_schedule(0.1, 0.0, 10)

pytestmark = pytest.mark.usefixtures("standard_promotion")  # Optax's schedules promote the count


@adam_tx.link
def scale_by_mine(factor: adam_tx.Positive = 2.0) -> adam_tx.Rule:
    """Multiply by a factor."""
    return adam_tx.Rule(lambda now, updates: updates * now.factor, formula="factor · u")


def is_matrix(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def described(tx):
    """What a link says of itself and of its members."""
    members = [(name, described(link)) for name, link in tx.links.items()]
    return repr(tx), tx.name, tx.formula, members


@pytest.mark.parametrize("name", costly(CATALOGUE))
def test_a_pickled_optimizer_computes_the_same_and_still_describes_itself(name):
    tx = CATALOGUE[name]()
    again = cloudpickle.loads(cloudpickle.dumps(tx))
    assert type(again) is type(tx)
    assert program(again, PARAMS) == program(tx, PARAMS)
    if isinstance(tx, adam_tx.Link):
        assert described(again) == described(tx)


@pytest.mark.parametrize("name", costly(CATALOGUE))
def test_a_pickled_wrapper_of_optax_around_it_is_still_known(name):
    tx = CATALOGUE[name]()
    for wrapped in (optax.chain(optax.clip(1.0), tx), optax.masked(tx, {"w": True, "b": False})):
        again = cloudpickle.loads(cloudpickle.dumps(wrapped))
        assert source.render(again) == source.render(wrapped) != f"<{maker_name(wrapped)}>"
        assert adam_tx.summary(again, PARAMS) == adam_tx.summary(wrapped, PARAMS)


def test_plain_pickle_serves_where_the_arguments_are_plain():
    plain = {name: tx for name, make in CATALOGUE.items() if not any(word in repr(tx := make()) for word in NOT_PLAIN)}
    for name, tx in plain.items():
        assert described(pickle.loads(pickle.dumps(tx))) == described(tx), name
    assert len(plain) > 40
    assert described(pickle.loads(pickle.dumps(scale_by_mine(3.0)))) == described(scale_by_mine(3.0))


NOT_PLAIN = ("<lambda>", "<function", "schedule", "optax")  # closures, which only cloudpickle takes


def test_both_references_to_a_link_are_one_link_after_pickling():
    tx = adam_tx.adam(1e-3)
    one, other = pickle.loads(pickle.dumps((tx, tx)))
    assert one.implementation is other.implementation


def test_a_function_may_name_what_a_module_was_once_called():
    """Its pickle has, for `adam_tx.chain` in it, the module of that name too, where there is one."""

    @adam_tx.optimizer
    def mine(learning_rate: adam_tx.NonNegative):
        return adam_tx.chain(adam_tx.scale_by_momentum(0.9), adam_tx.scale_by_learning_rate(learning_rate))

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        again = cloudpickle.loads(cloudpickle.dumps(mine(0.1)))
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert described(again) == described(mine(0.1))


ELSEWHERE = """
import json, cloudpickle, jax, jax.numpy as jnp, numpy as np, adam_tx

made = cloudpickle.loads(open("pickled", "rb").read())
made["config"] = adam_tx.from_config(json.load(open("config")))
params = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.ones(3)}
for name, tx in made.items():
    updates, state = tx.update(params, tx.init(params), params)
    bits = [np.asarray(leaf).tobytes().hex() for leaf in jax.tree.leaves((updates, state))]
    print(json.dumps([name, adam_tx.get_config(tx), bits]))
"""


def test_a_pickle_and_a_config_serve_in_another_process(tmp_path):
    made = {
        "adamw": adam_tx.adamw(LINEAR, weight_decay=0.1, mask=is_matrix),
        "masked": optax.masked(scale_by_mine(3.0), {"w": True, "b": False}),
    }
    config = adam_tx.chain(adam_tx.ademamix(LINEAR, b3=jnp.float32(0.99)), ("half", optax.scale(0.5)))
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # as if they were defined in a notebook
    try:
        (tmp_path / "pickled").write_bytes(cloudpickle.dumps(made))
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    made["config"] = config
    (tmp_path / "config").write_text(json.dumps(adam_tx.get_config(config)))
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        name, theirs, bits = json.loads(line)
        updates, state = made[name].update(PARAMS, made[name].init(PARAMS), PARAMS)
        assert bits == [np.asarray(leaf).tobytes().hex() for leaf in jax.tree.leaves((updates, state))], name
        if name == "config":
            assert theirs == adam_tx.get_config(config)


def test_a_state_that_was_pickled_before_a_field_was_renamed_loads_under_its_name_of_today(monkeypatch):
    tx = adam_tx.scale_by_momentum(0.9)
    state = tx.init(jnp.ones(2))

    class Former:
        """What is pickled as an earlier version, which called the average `m`, would pickle the state."""

        def __reduce__(self):
            make, (link, fields, module, values) = state.__reduce__()
            return make, (link, tuple("m" if field == "mu" else field for field in fields), module, values)

    pickled = pickle.dumps(Former())
    assert pickle.loads(pickled)._fields == ("count", "m")
    with pytest.raises(ValueError, match=r"its state is a ScaleByMomentumState of \['mu'\]"):
        tx.update(jnp.ones(2), pickle.loads(pickled))
    monkeypatch.setitem(states.FORMER, ("scale_by_momentum", "m"), "mu")
    loaded = pickle.loads(pickled)
    assert type(loaded) is type(state)
    tx.update(jnp.ones(2), loaded)
