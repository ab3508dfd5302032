"""Any container that JAX knows can hold the parameters: in every public function they count as the leaves they are.

What a container gives is compared with what the same leaves give in a plain dict.
"""

import dataclasses
import re
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import OPTIMIZERS, PER_TENSOR, SMALL_STATE, costly
from flax import nnx
from flax.core import FrozenDict, meta

import adam_tx

LEAVES = (jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), jnp.array([0.5, -0.25, 2.0]), jnp.array([[1.5], [-3.0]]))


class Fields(NamedTuple):
    """With a field called value."""

    value: Any
    bias: Any
    scale: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Data:
    """The same as a class of one's own."""

    value: Any
    bias: Any
    scale: Any


class Module(eqx.Module):
    """With an activation, which is no leaf of numbers, and a field that may be empty."""

    value: Any
    bias: Any
    inside: Any
    activation: Any = jax.nn.relu
    empty: Any = None

    def __call__(self, x):
        return self.activation(self.value @ x)


class Net(nnx.Module):
    """Three parameters in boxes."""

    def __init__(self, kernel, bias, scale):
        self.kernel, self.bias, self.scale = nnx.Param(kernel), nnx.Param(bias), nnx.Param(scale)


def of_module(value, bias, scale):
    return eqx.filter(Module(value, bias, {"value": scale}), eqx.is_array)


def of_nnx(kernel, bias, scale):
    return nnx.state(Net(kernel, bias, scale), nnx.Param)


def of_linen(kernel, bias, scale):
    return {"params": {"kernel": meta.Partitioned(kernel, (None, "data")), "bias": bias, "scale": meta.unbox(scale)}}


CATALOGUE = OPTIMIZERS | PER_TENSOR | SMALL_STATE
# how to put three leaves into a container, and their paths in the order in which JAX flattens it
CONTAINERS = {
    "dict": (lambda a, b, c: {"a": {"kernel": a, "bias": b}, "z": c}, ["a/bias", "a/kernel", "z"]),
    "list": (lambda a, b, c: [a, (b, [c])], ["0", "1/0", "1/1/0"]),
    "Haiku": (lambda a, b, c: {"mlp/~/linear_0": {"w": a, "b": b}, "norm": {"scale": c}},
              ["mlp/~/linear_0/b", "mlp/~/linear_0/w", "norm/scale"]),
    "FrozenDict": (lambda a, b, c: FrozenDict({"a": {"kernel": a}, "b": b, "c": c}), ["a/kernel", "b", "c"]),
    "NamedTuple": (lambda a, b, c: {"n": Fields(a, b, c)}, ["n/value", "n/bias", "n/scale"]),
    "dataclass": (lambda a, b, c: {"n": Data(a, b, c)}, ["n/value", "n/bias", "n/scale"]),
    "Equinox": (of_module, ["value", "bias", "inside/value"]),
    "None leaves": (lambda a, b, c: {"a": None, "b": [a, None, b], "c": {"d": c, "e": None}}, ["b/0", "b/2", "c/d"]),
    "absent subtrees": (lambda a, b, c: {"a": optax.MaskedNode(), "b": (a, b), "c": {"d": c, "e": optax.MaskedNode()}},
                        ["b/0", "b/1", "c/d"]),
    "Linen, partitioned": (of_linen, ["params/bias", "params/kernel", "params/scale"]),
    "NNX": (of_nnx, ["bias", "kernel", "scale"]),
    "NNX, without boxes": (lambda *leaves: nnx.to_pure_dict(of_nnx(*leaves)), ["bias", "kernel", "scale"]),
}  # fmt: skip
each_container = pytest.mark.parametrize("name", CONTAINERS)

ADAMW = lambda **options: adam_tx.adamw(1e-2, weight_decay=0.1, **options)  # noqa: E731
EIGHT_BIT = adam_tx.storage.EightBit(block=2, min_size=1)
WRAPPERS = {
    "adamw": ADAMW,
    "masked decay": lambda: ADAMW(mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    "matching": lambda: ADAMW(mask=adam_tx.matching(lambda path, shape: len(shape) > 1)),
    "eight bits": lambda: ADAMW(mu_dtype=EIGHT_BIT, nu_dtype=EIGHT_BIT),
    "guard": lambda: adam_tx.guard(ADAMW(), deviations=6.0, loss_scale=adam_tx.LossScale()),
    "monitor": lambda: adam_tx.monitor(ADAMW(), groups={"matrices": lambda path, shape: len(shape) > 1}),
    "guard, monitor": lambda: adam_tx.guard(adam_tx.monitor(ADAMW())),
    "groups": lambda: adam_tx.groups({(lambda path, shape: len(shape) == 1): "freeze"}, ADAMW()),
    "soap": lambda: adam_tx.soap(1e-2, every=2),
    "cautious": lambda: adam_tx.cautious(ADAMW()),
    "parallel": lambda: adam_tx.parallel(ADAMW(), adam_tx.sgd(1e-2, 0.9)),
    "with_gradient": lambda: adam_tx.chain(
        adam_tx.scale_by_momentum(0.9), adam_tx.with_gradient(adam_tx.scale_by_rms(0.9), lambda g, u: g - u)
    ),
    "on_decayed_weights": lambda: adam_tx.on_decayed_weights(adam_tx.lamb(1e-2), 0.1),
    "adafactor": lambda: adam_tx.adafactor(1e-2, min_dim_size_to_factor=2),
    "novograd": lambda: adam_tx.novograd(1e-2),
    "adam_mini": lambda: adam_tx.adam_mini(1e-2),
    "mars": lambda: adam_tx.mars_adamw(1e-2),
    "whole weights": lambda: adam_tx.chain(ADAMW(), adam_tx.master_weights()),
    "optax.chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), ADAMW()),
    "optax.masked": lambda: optax.masked(ADAMW(), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    "optax.partition": lambda: optax.partition(
        {"a": ADAMW(), "b": optax.set_to_zero()}, lambda p: jax.tree.map(lambda x: "a" if x.ndim > 1 else "b", p)
    ),
    "optax.MultiSteps": lambda: optax.MultiSteps(ADAMW(), 2).gradient_transformation(),
    "optax.apply_if_finite": lambda: optax.apply_if_finite(ADAMW(), 2),
    "optax.inject_hyperparams": lambda: optax.inject_hyperparams(adam_tx.adamw, hyperparam_dtype=jnp.float32)(1e-2),
    "optax.adamw": lambda: optax.adamw(1e-2),
}
EXPORTED = {*WRAPPERS, "adamc", "lion", "adafactor", "amsgrad", "keras ema"}
PAIRS = [(name, wrapper) for name in CONTAINERS for wrapper in WRAPPERS]
OFTEN = {"adamw", "guard, monitor", "groups", "soap", "whole weights", "optax.partition"}
SELDOM = {"soap", "guard, monitor"}  # take long, and so are tried in few containers
EVERY_RUN = [(name, of) for name, of in PAIRS if of in OFTEN and (of not in SELDOM or name in ("dict", "Equinox"))]
each_pair = pytest.mark.parametrize(("name", "wrapper"), costly(PAIRS, EVERY_RUN))
pytestmark = pytest.mark.usefixtures("standard_promotion")  # Optax's wrappers need it


def put(name, leaves=LEAVES):
    return CONTAINERS[name][0](*leaves)


def plain(tree):
    """The same leaves in a dict, in the same order; what is absent has a place too, by which random bits go."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: x is None or isinstance(x, optax.MaskedNode))
    return {f"leaf_{i}": leaf for i, leaf in enumerate(leaves)}


def two_steps(tx, params):
    """What two updates emit, and the state after them."""
    state = tx.init(params)
    first, state = tx.update(params, state, params)
    second, state = tx.update(jax.tree.map(lambda x: 0.5 - x, params), state, params)
    return (first, second), state


def assert_same(ours, theirs):
    ours, theirs = jax.tree.leaves(ours), jax.tree.leaves(theirs)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.fixture(scope="module")
def stepped():
    """For each container and wrapper what two steps give, and what they give of a plain dict, which many share."""
    found = {}

    def once(key, make):
        if key not in found:
            found[key] = make()
        return found[key]

    def of(name, wrapper):
        tx = once(wrapper, WRAPPERS[wrapper])
        dtype = jnp.bfloat16 if wrapper == "whole weights" else jnp.float32
        params = jax.tree.map(lambda x: x.astype(dtype), put(name))
        in_container = once((name, wrapper), lambda: two_steps(tx, params))
        in_dict = once((repr(plain(params)), wrapper), lambda: two_steps(tx, plain(params)))
        return tx, params, in_container, in_dict

    return of


@each_pair
def test_a_step_gives_what_it_gives_of_a_dict(name, wrapper, stepped):
    _, params, ((first, second), state), plainly = stepped(name, wrapper)
    assert_same(((first, second), state), plainly)
    assert jax.tree.structure(second) == jax.tree.structure(params)


@each_pair
def test_a_state_is_exported_under_the_paths_and_imported_again(name, wrapper, stepped):
    tx, params, (_, state), (_, of_dict) = stepped(name, wrapper)
    exported = adam_tx.export_state(state, params, tx)
    present = [key for key, leaf in plain(params).items() if jax.tree.leaves(leaf)]
    paths = dict(zip(present, CONTAINERS[name][1], strict=True))
    expected = adam_tx.export_state(of_dict, plain(params), tx)
    renamed = {re.sub(r"(?<=/)leaf_\d+", lambda found: paths[found[0]], key): x for key, x in expected.items()}
    assert exported.keys() == renamed.keys()
    assert_same(exported, renamed)
    again = adam_tx.import_state(tx, params, exported, report=None)
    assert jax.tree.structure(again) == jax.tree.structure(tx.init(params))
    assert_same(again, state)


@each_container
def test_moments_of_optax_migrate(name):
    old, new = optax.adamw(1e-2), ADAMW()

    def migrated(params):
        _, state = two_steps(old, params)
        return adam_tx.migrate(state, old, new, params, report=None)

    assert_same(migrated(put(name)), migrated(plain(put(name))))


@each_container
def test_explain_names_the_leaf_by_its_path(name):
    params, tx = put(name), ADAMW()
    last = jax.tree.leaves(params)[-1]
    grads = jax.tree.map(lambda x: x * jnp.nan if x is last else x, params)
    found = adam_tx.explain(tx, grads, tx.init(params), params, show=False)
    assert {row.leaf for row in found.rows} == set(CONTAINERS[name][1])
    assert (found.first.link, found.first.leaf) == ("gradient", CONTAINERS[name][1][-1])


@each_container
def test_metrics_and_summary_say_the_same(name):
    params, tx = put(name), adam_tx.monitor(ADAMW())
    _, state = two_steps(tx, params)
    _, of_dict = two_steps(tx, plain(params))
    assert_same(adam_tx.metrics(state), adam_tx.metrics(of_dict))
    assert adam_tx.summary(tx, params) == adam_tx.summary(tx, plain(params))


@each_container
def test_whole_weights_are_split_and_joined(name):
    weights = put(name)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights)
    tx = adam_tx.chain(ADAMW(), adam_tx.master_weights(bits=32))
    params, state = adam_tx.split_float32_weights(weights, tx.init(params))
    whole = adam_tx.float32_weights(params, state)
    assert jax.tree.structure(whole) == jax.tree.structure(weights)
    assert_same(whole, weights)


@each_container
def test_a_state_lies_as_the_parameters_do(name):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    params, tx = jax.device_put(put(name), jax.NamedSharding(mesh, jax.P())), ADAMW()
    places = adam_tx.state_sharding(tx, params)
    assert jax.tree.structure(places) == jax.tree.structure(jax.eval_shape(tx.init, params))


@pytest.mark.parametrize("name", costly({**WRAPPERS, **CATALOGUE}, every_run=EXPORTED))
def test_a_step_is_exported_with_its_trees(name):
    params, tx = put("dict"), {**WRAPPERS, **CATALOGUE}[name]()
    state = jax.eval_shape(tx.init, params)
    exported = jax.export.export(jax.jit(tx.update))(params, state, params)
    again = jax.export.deserialize(exported.serialize())
    assert again.in_tree == jax.tree.structure(((params, state, params), {}))


def test_a_mask_may_be_a_module_that_can_be_called():
    lin = eqx.nn.Linear(2, 2, key=jax.random.key(0))
    mask, zero = jax.tree.map(lambda x: x.ndim > 1, lin), jax.tree.map(jnp.zeros_like, lin)
    for tx in (
        adam_tx.adamw(0.1, weight_decay=0.5, mask=mask),
        adam_tx.adamc(0.1, weight_decay=0.5, max_learning_rate=0.1, mask=mask, normalized=mask),
        optax.masked(adam_tx.adamw(0.1, weight_decay=0.5), mask),
        adam_tx.monitor(optax.masked(adam_tx.adamw(0.1, weight_decay=0.5), mask)),
    ):
        state = tx.init(lin)
        updates, state = tx.update(zero, state, lin)
        np.testing.assert_array_equal(updates.bias, [0.0, 0.0])
        np.testing.assert_allclose(updates.weight, -0.05 * lin.weight, rtol=1e-6)
        exported = adam_tx.export_state(state, lin, tx)
        assert "mu/weight" in exported


def test_a_whole_part_of_the_parameters_may_be_absent_in_the_gradient():
    params = {"a": {"kernel": LEAVES[0], "bias": LEAVES[1]}, "z": LEAVES[2]}
    absent = {"a": None, "z": LEAVES[2]}
    everything = lambda p: jax.tree.map(lambda _: True, p)  # noqa: E731
    for tx in (
        ADAMW(),
        adam_tx.monitor(ADAMW()),
        ADAMW(mask={"a": {"kernel": True, "bias": False}, "z": True}),
        ADAMW(mask=everything),
        adam_tx.monitor(optax.masked(ADAMW(), everything)),
    ):
        updates, _ = tx.update(absent, tx.init(absent), params)
        assert_same(updates, ADAMW().update(absent, ADAMW().init(absent), absent)[0])


@pytest.mark.parametrize("make", [
    ADAMW,
    lambda: adam_tx.monitor(ADAMW()),
    lambda: adam_tx.guard(ADAMW()),
    lambda: adam_tx.groups({"*bias": "freeze"}, ADAMW()),
    lambda: adam_tx.adafactor(1e-2),
    lambda: adam_tx.lamb(1e-2),
    lambda: adam_tx.soap(1e-2),
    lambda: adam_tx.chain(ADAMW(), adam_tx.master_weights()),
    lambda: adam_tx.chain(ADAMW(), adam_tx.stochastic_round()),
    lambda: adam_tx.on_decayed_weights(ADAMW(), 0.1),
], ids=lambda make: repr(make())[:60])  # fmt: skip
def test_what_is_absent_in_the_gradient_is_not_read_in_the_parameters(make):
    tx, model = make(), Module(*LEAVES)
    grads = eqx.filter(jax.tree.map(lambda x: x if eqx.is_array(x) else None, model), eqx.is_array)
    params = eqx.filter(model, eqx.is_array)
    state = tx.init(params)
    assert_same(tx.update(grads, state, model)[0], tx.update(grads, state, params)[0])


def test_a_leaf_that_is_no_array_is_refused_by_its_path():
    for leaf, what in ((len, "builtin_function"), ("text", "str")):
        with pytest.raises(TypeError, match=rf"params: leaf \['act'\] is .*{what}"):
            ADAMW().init({"act": leaf, "w": jnp.ones(2)})


# Flax NNX


def trained(tx, steps=3):
    """A model and its optimizer after some steps."""
    model = Net(*LEAVES)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for _ in range(steps):
        optimizer.update(
            model, nnx.grad(lambda m: sum(jnp.sum((x[...] - 0.1) ** 2) for x in (m.kernel, m.bias, m.scale)))(model)
        )
    return model, optimizer


def test_what_nnx_keeps_is_read_and_what_migrate_gives_goes_back_in_one_line():
    model, optimizer = trained(optax.adamw(1e-2))
    params = nnx.state(model, nnx.Param)
    new = adam_tx.migrate(optimizer.opt_state, optimizer.tx, ADAMW(), params, report=None)

    again = nnx.Optimizer(model, ADAMW(), wrt=nnx.Param)
    nnx.update(again.opt_state, nnx.state(new))
    assert_same(again.opt_state, new)
    assert int(again.opt_state["count"][...]) == 3
    np.testing.assert_array_equal(
        again.opt_state["scale_by_momentum"].mu["bias"][...], optax.tree.get(optimizer.opt_state, "mu")["bias"][...]
    )
    model_step = nnx.jit(lambda m, o: o.update(m, nnx.state(m, nnx.Param)))
    model_step(model, again)
    assert int(again.opt_state["count"][...]) == 4


def test_every_function_takes_the_state_that_nnx_keeps():
    tx = adam_tx.guard(adam_tx.monitor(adam_tx.groups({"*bias": "freeze"}, ADAMW())))
    model, optimizer = trained(tx)
    params, state = nnx.state(model, nnx.Param), optimizer.opt_state
    exported = adam_tx.export_state(state, params, tx)
    assert {"count", "mu/kernel", "nu/scale"} <= exported.keys()
    assert_same(adam_tx.import_state(tx, params, exported, report=None), state)
    assert_same(adam_tx.migrate(state, tx, tx, params, report=None), state)
    assert adam_tx.explain(tx, params, state, params, show=False).first is None
    assert float(adam_tx.metrics(state)["step"]) == 3
    assert float(adam_tx.metrics(trained(adam_tx.guard(ADAMW()))[1].opt_state)["step"]) == 3
    assert adam_tx.summary(tx, params) == adam_tx.summary(tx, nnx.to_pure_dict(params))


def test_whole_weights_are_joined_from_the_state_that_nnx_keeps():
    tx = adam_tx.chain(ADAMW(), adam_tx.master_weights(bits=32))
    model = Net(*(leaf.astype(jnp.bfloat16) for leaf in LEAVES))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    params = nnx.state(model, nnx.Param)
    split, state = adam_tx.split_float32_weights(of_nnx(*LEAVES), optimizer.opt_state)
    nnx.update(model, split)
    nnx.update(optimizer.opt_state, nnx.state(state))
    whole = adam_tx.float32_weights(nnx.state(model, nnx.Param), optimizer.opt_state)
    assert jax.tree.structure(whole) == jax.tree.structure(params)
    assert_same(whole, of_nnx(*LEAVES))


@pytest.mark.parametrize(
    "mask", [adam_tx.matching("!*/bias"), lambda params: params, {}], ids=["pattern", "function", "tree"]
)
def test_a_tree_without_leaves_needs_no_parameters_for_a_mask(mask):
    tx = adam_tx.chain(adam_tx.add_decayed_weights(0.1, mask=mask))
    assert tx.update({}, tx.init({}))[0] == {}
