"""What an earlier version pickled, or wrote as a config, is read by this one and is the same optimizer.

`goldens/record_pickles.py` recorded them. A case that fails here is a run that users can no longer go on with.
"""

import json

import jax
import numpy as np
import pytest
from catalogue import costly
from goldens import record_pickles as golden

import adam_tx

RECORDED = json.loads(golden.FILE.read_text())
CASES = RECORDED["cases"]
PICKLED = {name: case["pickle"] for name, case in CASES.items() if "pickle" in case}
ALLOWED = ["goldens"]

pytestmark = pytest.mark.usefixtures("standard_promotion")  # Optax's schedules promote the count


def unknown_in(config):
    """Whether it says that a part of it cannot be made anew."""
    return '"unknown"' in json.dumps(config)


def program(tx, case, state):
    """All that `init` and `update` compute: equal programs give equal bits."""
    params = golden.parameters(case)
    made = jax.make_jaxpr(tx.init)(params)
    stepped = jax.make_jaxpr(lambda grad, state, params: golden.update(tx, grad, state, params))(params, state, params)
    constants = [np.asarray(x).tobytes() for jaxpr in (made, stepped) for x in jaxpr.consts]
    return str(made), str(stepped), constants


def test_every_case_is_recorded():
    assert CASES.keys() == golden.CASES.keys()
    assert RECORDED["objects"].keys() == golden.objects().keys()
    assert len(PICKLED) > 60


@pytest.mark.parametrize("name", PICKLED)
def test_an_earlier_pickle_is_what_the_same_code_makes_today(name):
    today = golden.CASES[name].make()
    earlier = golden.unpickled(PICKLED[name])
    assert type(earlier) is type(today)
    assert repr(earlier) == repr(today)
    assert adam_tx.get_config(earlier) == adam_tx.get_config(today)


ADDED = {"guard": {"watch": "step", "window": None}, "groups": {"overlap": "error"}}
"""By function the arguments that it takes since then, each with what it was before."""


def as_earlier(config):
    """A config of today without the arguments that were added, where they are what they were."""
    if isinstance(config, list):
        return [as_earlier(part) for part in config]
    if not isinstance(config, dict):
        return config
    added = ADDED.get(str(config.get("name")), {})
    return {key: as_earlier(part) for key, part in config.items() if key not in added or part != added[key]}


@pytest.mark.parametrize("name", CASES)
def test_an_earlier_config_is_what_the_same_code_makes_today(name):
    config = CASES[name]["config"]
    today = adam_tx.get_config(golden.CASES[name].make())
    assert config == as_earlier(json.loads(json.dumps(today)))
    if not unknown_in(config):
        assert adam_tx.get_config(adam_tx.from_config(config, allow=ALLOWED)) == today


@pytest.mark.parametrize("name", CASES)
def test_an_earlier_state_keeps_its_paths_and_bits_and_has_the_structure_of_todays(name):
    case = golden.CASES[name]
    state = golden.unpickled(CASES[name]["state"])
    assert golden.described(state) == CASES[name]["leaves"]
    today = jax.eval_shape(case.make().init, golden.parameters(case))
    assert jax.tree.structure(state) == jax.tree.structure(today)
    assert [(x.dtype, x.shape) for x in jax.tree.leaves(state)] == [(x.dtype, x.shape) for x in jax.tree.leaves(today)]


@pytest.mark.parametrize(
    "name", costly(CASES, every_run={*golden.COMPOSED, *golden.BFLOAT16, "adam, rounded at random"})
)
def test_what_comes_from_earlier_goes_on_as_todays_does_to_the_last_bit(name):
    case, recorded = golden.CASES[name], CASES[name]
    today = case.make()
    state = golden.unpickled(recorded["state"])
    fresh = jax.eval_shape(today.init, golden.parameters(case))
    expected = program(today, case, fresh)
    assert program(today, case, state) == expected
    if name in PICKLED:
        assert program(golden.unpickled(PICKLED[name]), case, state) == expected
    if not unknown_in(recorded["config"]):
        assert program(adam_tx.from_config(recorded["config"], allow=ALLOWED), case, state) == expected


@pytest.mark.parametrize("name", RECORDED["objects"])
def test_an_earlier_object_is_what_the_same_code_makes_today(name):
    """Both are pickled once more: by a class's or a function's address of today, and its arguments to the last bit."""
    today = golden.objects()[name]
    earlier = golden.unpickled(RECORDED["objects"][name])
    assert type(earlier) is type(today)
    if name == "explanation":  # its last digits are the machine's
        assert str(earlier) == str(today)
    elif name == "functions and classes":  # of which later versions have more
        assert [thing for thing in earlier if thing not in today] == []
    else:
        assert golden.pickled(earlier) == golden.pickled(golden.unpickled(golden.pickled(today)))
