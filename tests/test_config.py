"""A config holds all that makes an optimizer: through JSON, `repr` or pickle it comes back to the last bit."""

import collections
import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import OPTIMIZERS, PER_TENSOR, SMALL_STATE, costly
from flax.core import FrozenDict
from rebuild import program, through_json, unknown

import adam_tx
from adam_tx.describe import source

CATALOGUE = OPTIMIZERS | PER_TENSOR | SMALL_STATE
PARAMS = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.ones(3)}
LINEAR = optax.linear_schedule(0.1, 0.0, 10)
ADAM = adam_tx.adam(1e-3)


class Pair(NamedTuple):
    """A tree of parameters that is a class of the user's."""

    w: object
    b: object


@adam_tx.link
def scale_by_mine(factor: adam_tx.Positive = 2.0, given: object = None) -> adam_tx.Rule:
    """Multiply by a factor."""
    return adam_tx.Rule(lambda now, updates: updates * now.factor, formula="factor · u")


@adam_tx.optimizer
def mine(learning_rate: adam_tx.NonNegative, given: object = None):
    """A user's own optimizer."""
    return adam_tx.chain(scale_by_mine(given=given), adam_tx.scale_by_learning_rate(learning_rate))


MINE = [__name__]


def is_matrix(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def a_tenth(_):
    return 0.1


def trajectory(tx, steps=2):
    """The bits of a matrix and of the state after a few steps, and of each update."""
    params, bits = PARAMS["w"], []
    state = tx.init(params)
    for step in range(steps):
        grads = jax.tree.map(lambda p, step=step: p * 0.5 + 0.1 * step, params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        bits += [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(updates)]
    return bits + [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((params, state))]


def evaluated(text):
    """What the code makes here, where adam_tx, optax, jnp and np are imported and this module's names are known."""
    return eval(text.replace(f"{__name__}.", ""))


@pytest.mark.parametrize("name", costly(CATALOGUE))
def test_an_optimizer_comes_back_from_json_and_from_its_code_to_the_last_bit(name, standard_promotion):
    tx = CATALOGUE[name]()
    config, text = through_json(tx), source.render(tx)
    if lost := list(unknown(config)):
        assert all("<lambda>" in what for _, what in lost)
        assert "<lambda>" in text
        with pytest.raises(ValueError, match=r"<lambda> cannot be made from a config") as caught:
            adam_tx.from_config(config)
        assert str(caught.value).startswith(f"{lost[0][0]}: the function {lost[0][1].split()[-1]}")
        return
    made, expected = [adam_tx.from_config(config), evaluated(text)], program(tx, PARAMS)
    assert trajectory(made[0]) == trajectory(tx)
    for again in made:
        assert program(again, PARAMS) == expected
        assert adam_tx.get_config(again) == config
        assert source.render(again) == text


def test_a_config_has_the_maker_and_all_of_its_arguments():
    assert adam_tx.get_config(adam_tx.adam(1e-3, b1=0.8, mu_dtype=jnp.bfloat16)) == {
        "name": "adam",
        "learning_rate": 1e-3,
        "b1": 0.8,
        "b2": 0.999,
        "eps": 1e-8,
        "eps_root": 0.0,
        "mu_dtype": {"dtype": "bfloat16"},
        "nesterov": False,
        "nu_dtype": None,
    }


def test_members_are_listed_and_carry_the_key_they_were_given():
    tx = adam_tx.chain(
        adam_tx.scale_by_momentum(0.9), ("mine", optax.scale(2.0)), ("sum", adam_tx.parallel(("a", optax.scale(1.0))))
    )
    first, second, third = adam_tx.get_config(tx)["links"]
    assert (first["name"], "key" in first) == ("scale_by_momentum", False)
    assert second == {"key": "mine", "name": "optax.scale", "step_size": 2.0}
    assert (third["key"], third["links"]) == ("sum", [{"key": "a", "name": "optax.scale", "step_size": 1.0}])
    assert list(adam_tx.from_config(through_json(tx)).links) == ["scale_by_momentum", "mine", "sum"]


def test_what_was_read_from_another_framework_is_its_own_configuration():
    config = adam_tx.get_config(OPTIMIZERS["torch amsgrad"]())
    assert (config["name"], config["optimizer"]) == ("interop.torch.from_param_group", "AdamW")
    assert config["group"]["betas"] == {"tuple": [0.9, 0.999]}
    config = adam_tx.get_config(OPTIMIZERS["keras"]())
    assert config["config"]["dict"]["name"] == "adam"  # a dict with a name of its own


def test_a_link_and_an_optimizer_of_the_user_are_named_after_their_module():
    tx = optax.chain(mine(0.1, given=is_matrix), scale_by_mine(3.0))
    first, second = adam_tx.get_config(tx)["links"]
    assert (first["name"], first["given"]) == (f"{__name__}:mine", {"function": f"{__name__}:is_matrix"})
    assert second == {"name": f"{__name__}:scale_by_mine", "factor": 3.0, "given": None}
    assert program(adam_tx.from_config(through_json(tx), allow=MINE), PARAMS) == program(tx, PARAMS)
    assert repr(mine(0.1)) == f"{__name__}.mine(0.1)"


def same(one, other):
    """Whether two arguments are of the same type and have the same bits, all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict | FrozenDict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, jax.Array | np.ndarray | np.generic):
        weak = [getattr(x, "weak_type", None) for x in (one, other)]
        bits = [np.asarray(x).tobytes() for x in (one, other)]
        return one.dtype == other.dtype and weak[0] == weak[1] and bits[0] == bits[1]
    if isinstance(one, functools.partial):
        return same((one.func, one.args, one.keywords), (other.func, other.args, other.keywords))
    return one is other or one == other


ARGUMENTS = {
    "nothing": None,
    "a string": "raw",
    "an integer": 3,
    "infinity": float("inf"),
    "a float32": jnp.float32(0.1),
    "a weak float32": jnp.asarray(0.1),
    "a bfloat16": jnp.bfloat16(0.1),
    "an int32": jnp.int32(7),
    "a vector": jnp.array([0.1, float("inf")]),
    "a scalar of NumPy": np.float32(0.1),
    "a float64 of NumPy": np.float64(0.1),
    "an array of NumPy": np.array(0.1, np.float32),
    "a boolean of NumPy": np.bool_(True),
    "a dtype": jnp.bfloat16,
    "a dtype of NumPy": np.dtype("float32"),
    "a scalar type of NumPy": np.float32,
    "our function": adam_tx.output_unit,
    "a function of optax": optax.global_norm,
    "the user's function": is_matrix,
    "a function with arguments": functools.partial(adam_tx.largest_axes, least=2),
    "tuples in lists": [(0.9, 0.999), (1,), ()],
    "a mask": {"w": True, "b": [False, (True, None)]},
    "a mask with our words": {"name": True, "links": False, "dtype": {"unknown": True}},
    "a frozen mask": FrozenDict({"w": True, "b": False}),
    "a mask of the user's class": Pair(True, (False, optax.MaskedNode())),
    "an ordered mask": collections.OrderedDict(w=True, b=False),
    "numbers by number": {1: 0.5, 2: 0.25},
}


@pytest.mark.parametrize("given", ARGUMENTS.values(), ids=ARGUMENTS)
def test_an_argument_comes_back_as_what_it_was(given):
    again = adam_tx.from_config(through_json(scale_by_mine(given=given)), allow=[*MINE, "flax.core"])
    assert same(given, again.implementation.hyperparams["given"])


def test_a_float64_comes_back_as_one_or_not_at_all(x64):
    config = through_json(scale_by_mine(given=jnp.float64(0.1)))
    assert adam_tx.from_config(config, allow=MINE).implementation.hyperparams["given"].dtype == jnp.float64
    with jax.enable_x64(False), pytest.raises(ValueError, match=r"config\['given'\].*float64 needs jax_enable_x64"):
        adam_tx.from_config(config, allow=MINE)


@pytest.mark.parametrize(
    "given", [v for v in ARGUMENTS.values() if not isinstance(v, FrozenDict | dict | functools.partial)]
)
def test_an_argument_comes_back_from_its_code(given):
    assert same(given, evaluated(source.render(given)))


def local_function(params):
    def mask(leaf):
        return leaf.ndim > 1

    return mask


UNPROVED = optax.GradientTransformation(optax.trace(0.9).init, optax.ema(0.9).update)


@pytest.mark.parametrize(
    ("tx", "place", "what"),
    [
        (adam_tx.adam(lambda _: 0.1), "config['learning_rate']", "the function test_config:<lambda>"),
        (
            optax.chain(ADAM, mine(0.1, given=local_function(0))),
            "config['links'][1]['given']",
            "local_function.<locals>",
        ),
        (mine(0.1, given=(1, {"a": object()})), "config['given']['tuple'][1]['a']", "an object of builtins:object"),
        (adam_tx.chain(("x", UNPROVED)), "config['links'][0]", "the transformation optax"),
        (mine(0.1, given=jax.random.key(0)), "config['given']", "key<fry> array"),
        (mine(0.1, given=(recursive := []).append(recursive) or recursive), "config['given'][0]", "too many others"),
    ],
)
def test_what_cannot_be_made_again_is_said_to_be_unknown_with_its_place(tx, place, what):
    config = through_json(tx)
    (lost,) = unknown(config)
    assert lost[0].startswith(place)
    assert what in lost[1].replace(__name__, "test_config")
    with pytest.raises(ValueError, match=r"cannot be made from a config\. Put the object itself there") as caught:
        adam_tx.from_config(config, allow=MINE)
    assert str(caught.value).startswith(place)


def test_a_number_that_is_known_only_when_it_runs_is_unknown():
    configs = []
    jax.eval_shape(lambda rate: configs.append(adam_tx.get_config(adam_tx.adam(rate))) or rate, jnp.float32(0.1))
    assert configs[0]["learning_rate"] == {"unknown": "a float32 array that is known only when it runs"}


def test_a_local_link_is_unknown_but_its_arguments_are_there():
    @adam_tx.link
    def scale_by_local(factor: adam_tx.Positive = 2.0) -> adam_tx.Rule:
        return adam_tx.Rule(lambda now, updates: updates * now.factor)

    config = adam_tx.get_config(scale_by_local(3.0))
    assert config["factor"] == 3.0
    assert "scale_by_local" in config["unknown"]


def test_the_object_itself_may_stand_in_a_config():
    config = adam_tx.get_config(adam_tx.scale_by_learning_rate(lambda _: 0.1))
    config["learning_rate"] = a_tenth
    assert adam_tx.from_config(config).implementation.hyperparams["learning_rate"] is a_tenth


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "scale_by_rm"}, r"config\['name'\]: 'scale_by_rm' is neither a name of adam_tx.*mean 'scale_by_rms'"),
        ({"name": "optax.scal"}, r"config\['name'\]: 'optax.scal' .*did you mean 'optax.scale'"),
        ({"name": "no_such:thing"}, r"config\['name'\]: 'no_such:thing' cannot be imported here"),
        ({"name": "chain", "links": 5}, r"config\['links'\]: it must be a list, got a int"),
        ({"name": {"tuple": []}}, r"config\['name'\]: \{'tuple': \[\]\} is neither a name"),
        *(
            ({"name": "adam", "learning_rate": form}, r"config\['learning_rate'\]\['\w+'\]: ")
            for form in (
                *({"array": ["x"], "dtype": "float32"}, {"array": 1.0}, {"array": 1.0, "dtype": "no"}),
                *({"tuple": 5}, {"dict": [1]}, {"items": 5}, {"items": [1]}, {"float": "x"}, {"numpy_dtype": "no"}),
            )
        ),
        ({"name": "adam", "learning_rat": 1.0}, r"config\['learning_rat'\]: adam has no argument.*'learning_rate'"),
        ({"name": "adam"}, r"config: give the arguments \['learning_rate'\]"),
        ({"name": "adam", "learning_rate": 1.0, "links": []}, r"config\['links'\]: adam has no argument 'links'"),
        ({"learning_rate": 1.0}, r"config has no 'name' of what to make, only \['learning_rate'\]"),
        (
            {"name": "chain", "links": [{"name": "adam", "learning_rate": 1.0, "b3": 0}]},
            r"config\['links'\]\[0\]\['b3'\]: adam has no argument 'b3'",
        ),
        (
            {"name": "adam", "learning_rate": {"name": "schedules.warmpu"}},
            r"config\['learning_rate'\]\['name'\]: 'schedules.warmpu' is neither",
        ),
        (
            {"name": "adam", "learning_rate": 1.0, "mu_dtype": {"dtype": "float"}},
            r"config\['mu_dtype'\]\['dtype'\]: 'float' must be a dtype of JAX",
        ),
        (
            {"name": "adam_mini", "learning_rate": 1.0, "block": {"function": "no_such"}},
            r"config\['block'\]\['function'\]: 'no_such' cannot be imported here",
        ),
        (
            {"name": "adam", "learning_rate": {"tuple": [1], "of": 2}},
            r"config\['learning_rate'\]: \['of'\] cannot stand beside 'tuple'",
        ),
    ],
)
def test_a_mistake_in_a_config_is_named_with_its_place(config, message):
    with pytest.raises(ValueError, match=message):
        adam_tx.from_config(config, allow=["no_such"])


def test_an_error_of_a_maker_says_from_where_in_the_config_it_came():
    config = {"name": "chain", "links": [{"name": "scale_by_momentum", "decay": 2.0}]}
    with pytest.raises(ValueError, match="decay must be in") as caught:
        adam_tx.from_config(config)
    assert caught.value.__notes__[0] == "It was made from config['links'][0]."


def test_only_transformations_have_a_config_and_are_made_from_one():
    with pytest.raises(TypeError, match=r"tx must be a transformation.*got dict"):
        adam_tx.get_config(ADAM.init(PARAMS))
    with pytest.raises(TypeError, match=r"config must be a dict.*got str"):
        adam_tx.from_config(json.dumps(adam_tx.get_config(ADAM)))
    with pytest.raises(TypeError, match=r"'schedules.warmup' makes no transformation"):
        adam_tx.from_config({"name": "schedules.warmup", "end": 1.0, "steps": 2})


@pytest.mark.parametrize(
    ("tx", "text"),
    [
        (adam_tx.adam(1e-3), "adam_tx.adam(0.001)"),
        (adam_tx.adam(1e-3, 0.8), "adam_tx.adam(0.001, b1=0.8)"),
        (
            adam_tx.chain(adam_tx.scale_by_momentum(0.9), adam_tx.bias_correction()),
            "adam_tx.chain(adam_tx.scale_by_momentum(0.9), adam_tx.bias_correction())",
        ),
        (
            adam_tx.adam(LINEAR),
            "adam_tx.adam(optax.linear_schedule(init_value=0.1, end_value=0.0, transition_steps=10))",
        ),
        (adam_tx.chain(("a", optax.masked(ADAM, is_matrix))), None),
        (adam_tx.parallel(ADAM, optax.scale(2.0)), "adam_tx.parallel(adam_tx.adam(0.001), optax.scale(2.0))"),
        (adam_tx.adam(jnp.float32(0.1)), "adam_tx.adam(jnp.float32(0.1))"),
        (adam_tx.adam(lambda _: 0.1), "adam_tx.adam(<lambda>)"),
        (adam_tx.scale_by_surprise(adam_tx.scale_by_rms(debias=True)), None),
    ],
)
def test_a_link_prints_as_the_code_that_makes_it(tx, text):
    expected = {
        "chain": f"adam_tx.chain(('a', optax.masked(adam_tx.adam(0.001), mask={__name__}.is_matrix)))",
        "scale_by_surprise": "adam_tx.scale_by_surprise(adam_tx.scale_by_rms(0.999, debias=True))",
    }
    assert repr(tx) == (text or expected[tx.name])


@pytest.mark.parametrize("dtype", ["(20000,10000)f4", "U100000000", "object", "S9"])
def test_an_array_of_a_config_is_of_numbers(dtype):
    for form in ({"numpy": 0, "dtype": dtype}, {"numpy_dtype": dtype}):
        with pytest.raises(ValueError, match="must be a dtype of numbers"):
            adam_tx.from_config({"name": "optax.scale", "step_size": form})


@pytest.mark.parametrize("name", ["plot_metrics", "explain", "optax.tree.add", "optax.losses.l2_loss", "metrics"])
def test_a_config_makes_parts_of_optimizers_alone(name):
    with pytest.raises(ValueError, match="is no part of an optimizer"):
        adam_tx.from_config({"name": name})
