"""`adam_tx.step`: where it is used, what it falls back from, and what it says of that."""

import functools
import pickle
import subprocess
import sys
import threading

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import step_problems as problems
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adam_tx
from adam_tx.executors.cpu import engine
from adam_tx.storage import Storage, Stored

needs_llvmlite = pytest.mark.skipif(
    engine.obstacle() is not None, reason="one pass on a CPU needs llvmlite: pip install 'adam_tx[cpu]'"
)
SHAPES = {"w": (12, 200), "b": (7,)}


def problem(dtype=jnp.float32):
    return problems.tree(SHAPES, dtype), problems.tree(SHAPES, dtype, seed=1)


def adamw():
    return adam_tx.adamw(1e-2, weight_decay=0.1)


def five_bytes():
    return problems.STORAGES["five bytes"]()


def close(one, other, atol=1e-6):
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float32), np.asarray(y, np.float32), rtol=1e-6, atol=atol)


# Where it is used


@needs_llvmlite
@pytest.mark.usefixtures("as_written", "standard_promotion")
@pytest.mark.parametrize("make", [adamw, pytest.param(five_bytes, marks=pytest.mark.exhaustive)])
def test_steps_and_updates_take_turns(make):
    tx = make()
    dtype = jnp.bfloat16 if make is five_bytes else jnp.float32
    params, grads = problem(dtype)
    step = adam_tx.step(tx, "cpu")
    ours = theirs = params, tx.init(params)
    for k in range(4):
        theirs = problems.updated(tx, grads, theirs[1], theirs[0])
        ours = (step(grads, ours[1], ours[0])) if k % 2 else problems.updated(tx, grads, ours[1], ours[0])
    assert not problems.differing(ours, theirs)


@needs_llvmlite
def test_parameters_and_state_are_written_in_their_place():
    tx = five_bytes()
    step = adam_tx.step(tx, "cpu")
    params, grads = problem(jnp.bfloat16)
    state = jax.jit(tx.init)(params)

    def train(params, state, grads):
        return step(grads, state, params)

    compiled = jax.jit(train, donate_argnums=(0, 1)).lower(params, state, grads).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 1024
    assert memory.alias_size_in_bytes >= sum(x.nbytes for x in jax.tree.leaves((params, state)))


@needs_llvmlite
@pytest.mark.usefixtures("standard_promotion")
def test_a_scan_makes_the_steps_of_a_loop():
    tx = adamw()
    step = adam_tx.step(tx, "cpu")
    params, grads = problem()
    several = jax.tree.map(lambda g: jnp.stack([g, 2 * g, -g]), grads)
    scanned = jax.jit(
        lambda params, state: jax.lax.scan(lambda c, g: (step(g, c[1], c[0]), None), (params, state), several)[0]
    )(params, tx.init(params))
    looped = params, tx.init(params)
    for k in range(3):
        looped = step(jax.tree.map(lambda g, k=k: g[k], several), looped[1], looped[0])
    close(scanned, looped, 0)


@pytest.mark.exhaustive
@needs_llvmlite
@pytest.mark.usefixtures("standard_promotion")
def test_under_vmap_and_derivatives_it_is_xla():
    tx = adamw()
    step = adam_tx.step(tx, "cpu")
    params, grads = problem()
    state = tx.init(params)
    many = jax.tree.map(lambda g: jnp.stack([g, -g]), grads)
    members = jax.vmap(lambda g: step(g, state, params))(many)
    expected = jax.vmap(lambda g: problems.updated(tx, g, state, params))(many)
    close(members, expected)

    def loss(grads, run):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(run(grads, state, params)[0]))

    ours = jax.grad(functools.partial(loss, run=step))(grads)
    theirs = jax.grad(functools.partial(loss, run=functools.partial(problems.updated, tx)))(grads)
    close(ours, theirs)
    assert any(np.any(x) for x in jax.tree.leaves(ours))
    _, tangent = jax.jvp(lambda g: step(g, state, params)[0], (grads,), (grads,))
    close(tangent, jax.jvp(lambda g: problems.updated(tx, g, state, params)[0], (grads,), (grads,))[1])


@needs_llvmlite
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.exhaustive
def test_a_population_of_rates_is_stepped_by_xla():
    params, grads = problem()

    def end(rate, make):
        tx = adam_tx.adam(rate)
        return make(tx)(grads, tx.init(params), params)[0]

    rates = jnp.array([1e-3, 1e-2])
    ours = jax.vmap(functools.partial(end, make=lambda tx: adam_tx.step(tx, "cpu")))(rates)
    theirs = jax.vmap(functools.partial(end, make=lambda tx: functools.partial(problems.updated, tx)))(rates)
    close(ours, theirs)


@needs_llvmlite
def test_each_device_runs_its_own_part_in_shard_map():
    tx = adamw()
    step = adam_tx.step(tx)
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2], axis_types=(AxisType.Auto,))
    params = problems.tree({"w": (8, 40)}, jnp.float32)
    state = tx.init(params)
    of = jax.tree.map(lambda x: P("x") if x.ndim == 2 else P(), (params, state, params))
    run = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=of, out_specs=(of[2], of[1])))
    assert "ffi_call[" in str(jax.make_jaxpr(run)(params, state, params))
    close(run(params, state, params), problems.updated(tx, params, state, params))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_what_is_spread_over_devices_is_stepped_by_xla_and_stays_spread(kind):
    tx = adamw()
    step = adam_tx.step(tx)
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2], axis_types=(kind,))
    params = jax.device_put(problems.tree({"w": (8, 40)}, jnp.float32), NamedSharding(mesh, P("x", None)))
    with jax.set_mesh(mesh):
        state = jax.jit(tx.init)(params)
        for run in (step, jax.jit(step)):
            new, _ = run(params, state, params)
            assert new["w"].sharding == params["w"].sharding
            close(new, problems.updated(tx, params, state, params)[0])
        assert "ffi_call[" not in str(jax.make_jaxpr(step)(params, state, params))


@needs_llvmlite
def test_an_export_refuses_the_kernel_aloud_and_takes_xla():
    tx = adamw()
    params, grads = problem()
    arguments = grads, tx.init(params), params
    with pytest.raises(
        ValueError, match="custom_call @adam_tx_kernel_of_this_process_use_executor_xla_to_export_a_step"
    ):
        jax.export.export(jax.jit(adam_tx.step(tx, "cpu").__call__))(*arguments)
    exported = jax.export.export(jax.jit(adam_tx.step(tx, "xla").__call__))(*arguments)
    close(exported.call(*arguments), problems.updated(tx, *arguments))


@needs_llvmlite
def test_threads_may_step_at_once():
    tx = five_bytes()
    step = adam_tx.step(tx, "cpu")
    params, grads = problem(jnp.bfloat16)
    state = tx.init(params)
    results = []

    def work():
        results.append(step(grads, state, params))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(problems.differing(results[0], other) for other in results[1:])
    assert len(results) == 6


@pytest.mark.exhaustive
@needs_llvmlite
@pytest.mark.usefixtures("as_written", "standard_promotion")
def test_a_tree_may_be_a_module_of_flax_or_equinox_or_of_numpy():
    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones((3, 5)))

    flax = nnx.state(Model(), nnx.Param)
    linear = equinox.filter(equinox.nn.Linear(3, 4, key=jax.random.key(0)), equinox.is_array)
    tx = adamw()
    step = adam_tx.step(tx, "cpu")
    for params in (flax, linear, {"w": np.ones(4, np.float32)}, (np.float32(1.0), jnp.ones(3))):
        state = tx.init(params)
        expected = problems.updated(tx, params, state, params)
        assert not problems.differing(step(params, state, params), expected)
        assert not problems.differing(jax.jit(step)(params, state, params), expected)


@needs_llvmlite
@pytest.mark.usefixtures("standard_promotion")
def test_a_state_of_nnx_optimizer_is_taken_as_it_is_and_given_back_in_its_boxes():
    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones((3, 5)))

    model = Model()
    tx = adamw()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    params = nnx.state(model, nnx.Param)
    grads = jax.tree.map(jnp.ones_like, params)
    expected = problems.updated(tx, grads, tx.init(params), params)
    new, state = adam_tx.step(tx, "cpu")(grads, optimizer.opt_state, params)
    assert jax.tree.structure((new, state)) == jax.tree.structure((params, optimizer.opt_state))
    close((new, state), expected)
    nnx.update(model, new)
    nnx.update(optimizer.opt_state, nnx.state(state))
    optimizer.update(model, grads)
    close(optimizer.opt_state, problems.updated(tx, grads, expected[1], expected[0])[1])


@needs_llvmlite
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    "make",
    [
        adamw,
        pytest.param(lambda: adam_tx.guard(adam_tx.monitor(adamw())), marks=pytest.mark.exhaustive),
        pytest.param(lambda: optax.inject_hyperparams(adam_tx.adam)(1e-2), marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.exhaustive
def test_no_array_of_a_step_outlives_its_trace(make):
    params, grads = problem()
    tx = make()
    step = adam_tx.step(tx, "cpu")
    state = tx.init(params)
    with jax.checking_leaks():
        jax.jit(lambda *given: step(*given)).lower(grads, state, params)
        assert "cpu" in step.summary(params)


def test_what_update_takes_beside_the_gradient_is_given_to_it():
    seen = []

    def update(updates, state, params=None, *, value):
        seen.append(value)
        return updates, state

    tx = optax.GradientTransformationExtraArgs(optax.sgd(1.0).init, update)
    params = jnp.ones(3)
    adam_tx.step(tx)(params, tx.init(params), params, value=3.0)
    assert seen == [3.0]


@needs_llvmlite
def test_the_summary_knows_that_what_update_takes_by_name_sends_all_to_xla():
    step = adam_tx.step(adamw())
    assert step.summary({"w": jnp.ones(3)}) == "cpu  w"
    assert step.summary({"w": jnp.ones(3)}, value=1.0) == "xla  w: only tx.update takes value"


def test_a_step_is_pickled_with_its_optimizer():
    step = pickle.loads(pickle.dumps(adam_tx.step(adamw(), "xla")))
    assert step.executor == "xla"
    assert repr(step.tx) == repr(adamw())


@needs_llvmlite
@pytest.mark.usefixtures("as_written")
def test_a_step_that_has_compiled_is_pickled_without_what_it_compiled():
    params, grads = problem()
    step = adam_tx.step(adamw(), "cpu")
    state = step.tx.init(params)
    expected = step(grads, state, params)
    assert not problems.differing(pickle.loads(pickle.dumps(step))(grads, state, params), expected)


# What it says of itself


def reason(tx, params=None, executor="auto"):
    reasons = adam_tx.step(tx, executor).reasons(jnp.ones((2, 64)) if params is None else params)
    assert len(set(reasons.values())) == 1
    return next(iter(reasons.values()))


@adam_tx.link(slots={"nu": adam_tx.Slot("square")})
def scale_by_own_rms(eps: adam_tx.Positive = 1e-8):
    def rule(now, updates, grad, nu):
        nu = nu + grad * grad
        return updates / (jnp.sqrt(nu) + now.eps), nu

    return adam_tx.Rule(rule, formula="u / (sqrt(nu) + eps)")


class Halves(Storage):
    """A number as its half."""

    def begin(self, where, first, param, kind, noise):
        return Stored(first / 2)

    def encode(self, x, like, noise):
        return Stored(x / 2)

    def decode(self, stored, dtype):
        return stored.values * 2


class OneScale(Halves):
    """The same with a scale that is of the whole leaf."""

    scaled = True

    def begin(self, where, first, param, kind, noise):
        return Stored(first / 2, jnp.ones(()))

    def encode(self, x, like, noise):
        return Stored(x / 2, like.scales)


def scale_by_sine():
    @adam_tx.link
    def scale_by_sine():
        return adam_tx.Rule(lambda now, updates: jnp.sin(updates))

    return scale_by_sine()


def largest():
    @adam_tx.link
    def divided_by_largest():  # which does not say that it is not elementwise
        return adam_tx.Rule(lambda now, updates: updates / jnp.max(updates))

    return divided_by_largest()


E8 = problems.E8
REASONS = {
    "a sum": (lambda: adam_tx.parallel(adamw(), adamw()), "parallel runs what is inside it on all leaves together"),
    "two guards": (
        lambda: adam_tx.guard(adam_tx.guard(adamw())),
        "guard stands around guard, which looks at all leaves, too",
    ),
    "a guard after the other": (
        lambda: adam_tx.chain(adam_tx.guard(adamw()), adam_tx.guard(adamw())),
        "chain has guard and guard_2, which look at all leaves one after the other",
    ),
    "a guard of a group": (
        lambda: adam_tx.groups({"*": adam_tx.guard(adamw())}),
        "guard needs sums over the leaves of its group",
    ),
    "a clip of a group": (
        lambda: adam_tx.groups({"*": optax.chain(optax.clip_by_global_norm(1.0), adamw())}),
        "clip_by_global_norm steps the leaves of its group together",
    ),
    "a clip behind a link": (
        lambda: adam_tx.chain(adam_tx.scale_by_momentum(0.9), optax.chain(optax.clip(1.0), adamw())),
        "chain runs clip on all leaves together, behind another link",
    ),
    "figures of groups": (
        lambda: adam_tx.monitor(adamw(), groups={"all": "*"}),
        "monitor has groups, of which each has a sample of its own",
    ),
    "a monitor around groups": (
        lambda: adam_tx.monitor(adam_tx.groups({"*": adamw()})),
        "monitor stands around groups, of which each has links of its own",
    ),
    "of Optax, injected": (
        lambda: optax.inject_hyperparams(optax.sgd)(1e-2),
        "is not a link of adam_tx, and stands last in optax.inject_hyperparams",
    ),
    "of Optax, behind a link": (
        lambda: optax.chain(adamw(), optax.scale(0.5)),
        "optax.scale is not a link of adam_tx, and stands last in optax.chain",
    ),
    "of Optax": (lambda: optax.scale_by_adam(), "optax.scale_by_adam is not a link of adam_tx"),
    "of Optax, inside": (lambda: adam_tx.lion(1e-2), "scale_by_sign runs what is inside it on all leaves together"),
    "a norm of a tensor": (lambda: adam_tx.lamb(1e-2), "does not step each element by itself"),
    "a sine": (scale_by_sine, "it computes sin"),
    "atan2": (lambda: adam_tx.adam_atan2(1e-2), "it computes atan2"),
    "a maximum": (largest, "reduce_max is not over a block of what is kept"),
    "a scale of a leaf": (lambda: adam_tx.adam(1e-2, nu_dtype=OneScale()), "blocks of several sizes, or of one that"),
    "blocks of two sizes": (
        lambda: adam_tx.adam(1e-2, mu_dtype=E8, nu_dtype=adam_tx.storage.EightBit(block=64, min_size=1)),
        "blocks of several sizes",
    ),
}


@needs_llvmlite
@pytest.mark.parametrize("name", REASONS)
def test_an_optimizer_that_is_run_by_xla_says_why_and_steps(name):
    make, why = REASONS[name]
    tx = make()
    assert why in reason(tx)
    params = {"w": jnp.linspace(-1, 1, 128).reshape(2, 64)}
    state = tx.init(params)
    with jax.numpy_dtype_promotion("standard"):
        close(adam_tx.step(tx)(params, state, params), problems.updated(tx, params, state, params))


@needs_llvmlite
def test_a_leaf_that_is_run_by_xla_says_why():
    for params, why in (
        (jnp.ones(()), "it is a single number"),
        (jnp.ones((0, 3)), "it has no elements"),
        (jnp.ones(3, jnp.complex64), "it is complex64"),
        (jnp.ones(3, jnp.float16), "it is float16"),
    ):
        assert reason(adamw(), params) == why


@needs_llvmlite
def test_float64_is_run_by_xla(x64):
    assert reason(adamw(), jnp.ones(3, jnp.float64)) == "it is float64"
    params = {"double": jnp.ones(3, jnp.float64), "single": jnp.ones(3, jnp.float32)}
    tx = adamw()
    state = tx.init(params)
    close(adam_tx.step(tx)(params, state, params), problems.updated(tx, params, state, params))


@needs_llvmlite
@pytest.mark.usefixtures("as_written")
@pytest.mark.parametrize("make", [scale_by_own_rms, lambda: adam_tx.adam(1e-2, nu_dtype=Halves())])
def test_a_link_and_a_storage_of_ones_own_are_run_in_one_pass(make):
    tx = adam_tx.chain(make(), adam_tx.scale_by_learning_rate(0.1))
    params, grads = problem()
    assert reason(tx, params) == ""
    state = tx.init(params)
    assert not problems.differing(
        adam_tx.step(tx, "cpu")(grads, state, params), problems.updated(tx, grads, state, params)
    )


@needs_llvmlite
def test_the_summary_has_a_line_for_each_way_in_which_leaves_are_run():
    params = {"layers": [{"w": jnp.ones((4, 4)), "scale": jnp.ones(())} for _ in range(3)], "w": jnp.ones(3)}
    assert adam_tx.step(adamw()).summary(params) == (
        "xla  3×layers/#/scale: it is a single number\ncpu  3×layers/#/w, w"
    )


def test_without_llvmlite_it_is_xla_and_says_so(monkeypatch):
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    assert reason(adamw()) == "llvmlite is not installed: pip install 'adam_tx[cpu]'"
    with pytest.raises(ValueError, match=r"because llvmlite is not installed: pip install 'adam_tx\[cpu\]'"):
        adam_tx.step(adamw(), "cpu")
    params, grads = problem()
    tx = adamw()
    state = tx.init(params)
    close(adam_tx.step(tx)(grads, state, params), problems.updated(tx, grads, state, params))


def test_what_cannot_be_a_step_is_refused():
    with pytest.raises(TypeError, match=r"step: tx must be a transformation, with init and update, got float"):
        adam_tx.step(1e-3)
    with pytest.raises(ValueError, match=r"step: executor must be 'auto', 'xla', 'cpu' or 'pallas', got 'gpu'"):
        adam_tx.step(adamw(), "gpu")
    with pytest.raises(ValueError, match=r"step: it needs params, which it changes, but None came"):
        adam_tx.step(adamw())(jnp.ones(3), adamw().init(jnp.ones(3)), None)
    with pytest.raises(ValueError, match=r"executor='cpu' cannot run this optimizer here, because parallel runs"):
        adam_tx.step(adam_tx.parallel(adamw(), adamw()), "cpu")


@pytest.mark.parametrize("executor", ["auto", "xla"])
def test_a_parameter_whose_gradient_is_absent_stays_as_it_is(executor):
    tx = adamw()
    params = {"w": jnp.ones(3), "b": jnp.ones(2)}
    step = adam_tx.step(tx, executor)
    for absent in (None, optax.MaskedNode()):
        new, _ = step({"w": jnp.ones(3), "b": absent}, tx.init(params), params)
        np.testing.assert_array_equal(new["b"], params["b"])
        assert (new["w"] < 1).all()


@needs_llvmlite
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    "make",
    [
        lambda: adam_tx.chain(optax.trace(0.5), adamw()),
        pytest.param(lambda: adam_tx.monitor(problems.STORAGES["eight bits"]()), marks=pytest.mark.exhaustive),
    ],
)
def test_an_absent_gradient_is_absent_to_what_stands_around_and_before_too(make):
    tx = make()
    params, grads = problem()
    state = tx.init(params)
    absent = {**grads, "w": None}
    new, after = adam_tx.step(tx, "cpu")(absent, state, params)
    updates, expected = jax.jit(tx.update)(absent, state, params)
    close(new, {**optax.apply_updates({"b": params["b"]}, {"b": updates["b"]}), "w": params["w"]})
    close(after, expected)


def test_a_step_is_no_transformation_and_says_what_to_write_instead():
    step = adam_tx.step(adamw())
    for name in ("init", "update"):
        with pytest.raises(AttributeError, match=f"step: it has no {name}, because it is no transformation"):
            getattr(step, name)
    assert not hasattr(step, "other")


def test_a_summary_is_told_of_leaves_that_are_masked_out_too():
    mask = {"w": True, "n": False, "none": False}
    tx = optax.masked(adamw(), mask)
    params = {"w": jnp.ones(3), "n": jnp.ones(3, jnp.int32), "none": None}
    why = "optax.masked is not a link of adam_tx"
    assert adam_tx.step(tx).reasons(params) == {"w": why, "n": why}


def test_a_wrong_tree_is_refused_as_update_refuses_it():
    params, grads = problem()
    tx = adamw()
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"leaf \['b'\] must have one shape"):
        adam_tx.step(tx)(grads | {"b": jnp.ones(3)}, state, params)
    with pytest.raises(ValueError, match="state"):
        adam_tx.step(tx)(grads, adam_tx.sgd(1e-2).init(params), params)


def test_a_state_of_another_length_is_refused_as_a_chain_of_optax_refuses_it():
    params, grads = problem()
    tx = optax.chain(optax.clip(1.0), adamw())
    first, last = tx.init(params)
    for state in ((), (last,), (first, last, last)):
        with pytest.raises(ValueError, match="The number of updates and states has to be the same in chain"):
            adam_tx.step(tx)(grads, state, params)


@needs_llvmlite
@pytest.mark.parametrize("around", [lambda tx: tx, adam_tx.guard, adam_tx.monitor])
def test_slots_of_another_shape_are_refused_as_update_refuses_them(around):
    params, grads = problem()
    tx = around(adamw())
    state = tx.init({"w": params["w"], "b": jnp.ones(9)})
    for run in (tx.update, adam_tx.step(tx, "cpu")):
        with pytest.raises(
            ValueError, match=r"leaf \['b'\] must have one shape, but came with updates \(7,\), mu \(9,\)"
        ):
            run(grads, state, params)


@needs_llvmlite
def test_figures_of_another_shape_are_refused_by_their_names():
    params, grads = problem()
    tx = adam_tx.monitor(adamw())
    state = tx.init(params)
    state = state._replace(metrics={name: figure[None] for name, figure in state.metrics.items()})
    with pytest.raises(ValueError, match=r"monitor: the figure \w+ .* came with the shape \(1,\)"):
        adam_tx.step(tx, "cpu")(grads, state, params)


def test_state_and_params_in_each_others_place_are_told_apart_by_step():
    params, grads = problem()
    tx = adamw()
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"may be the params. Call step\(grads, state, params\)"):
        adam_tx.step(tx)(grads, params, state)
    with pytest.raises(ValueError, match="different trees") as caught:
        adam_tx.step(tx)({"w": grads["w"]}, state, params)
    assert any("step(grads, state, params), and not update" in note for note in caught.value.__notes__)


@needs_llvmlite
def test_a_link_that_is_given_no_gradient_is_refused_as_update_refuses_it():
    step = adam_tx.step(adam_tx.guard(adam_tx.scale_by_rms()))
    params = {"w": jnp.ones(3)}
    assert step.reasons(params) == {"w": "guard reads the gradient, and stands in no chain that gives it"}
    with pytest.raises(TypeError, match="guard reads the gradient, and update was called without grad"):
        step(params, step.tx.init(params), params)


def test_importing_adam_tx_imports_no_compiler():
    code = "import sys, adam_tx; print(any(name.startswith('llvmlite') for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
