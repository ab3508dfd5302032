"""A step that is not finite, or far too large, leaves no trace but in the guard's own counts."""

import functools

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import run
from cost import compiled_cost
from jax.sharding import NamedSharding, PartitionSpec

import adam_tx

pytestmark = pytest.mark.usefixtures("standard_promotion")
ALL = catalogue.OPTIMIZERS | catalogue.PER_TENSOR | catalogue.SMALL_STATE
BAD = {"nan": np.nan, "inf": np.inf, "spike": 1e6}


def stepped(optimizers, carry, grad):
    """Parameters and state of each optimizer after a step."""
    after = {}
    for name, tx in optimizers.items():
        params, state = carry[name]
        updates, state = tx.update(grad, state, params)
        after[name] = run.apply_updates(params, updates), state
    return after


FEW = {"adam", "amsgrad", "lion", "adafactor", "soap", "adamw, eight bit"}


@pytest.fixture(scope="module")
def runs(request):
    """The optimizers over the good gradients of a thousand, and over all; one program for both."""
    with jax.numpy_dtype_promotion("standard"), run.compiled_for_users():
        rng = np.random.default_rng(0)
        grads = np.float32(rng.normal(size=(1000, 2, 4)) + 0.5)
        bad = rng.random(1000) < 0.1
        bad[:100] = False  # the guard's norms are from then on
        spoilt = grads.copy()
        for k in np.flatnonzero(bad):
            spoilt[k, rng.integers(2), rng.integers(4)] = list(BAD.values())[k % 3]
        optimizers = {name: adam_tx.guard(ALL[name](), deviations=20.0) for name in run.asked_for(request)}

        @jax.jit
        def after(grads, steps):
            start = {name: (jnp.ones((2, 4)), tx.init(jnp.ones((2, 4)))) for name, tx in optimizers.items()}
            return jax.lax.fori_loop(0, steps, lambda k, carry: stepped(optimizers, carry, grads[k]), start)

        good = np.flatnonzero(~bad)
        padded = np.zeros_like(grads)
        padded[: len(good)] = grads[good]
        clean, faulty = after(padded, len(good)), after(spoilt, len(grads))
        return clean, faulty, int(bad.sum())


@pytest.mark.parametrize("name", catalogue.costly(ALL, FEW))
def test_after_bad_steps_everything_is_to_the_last_bit_as_if_they_had_not_been(name, runs):
    (params, state), (faulty_params, faulty_state), bad = runs[0][name], runs[1][name], runs[2]
    assert int(state.skipped) == 0
    assert int(faulty_state.skipped) == bad > 50
    assert int(faulty_state.count) == int(state.count) + bad == 1000
    np.testing.assert_array_equal(np.asarray(params), np.asarray(faulty_params))
    inner, faulty_inner = (jax.tree.leaves(of.inner) for of in (state, faulty_state))
    for one, other in zip(inner, faulty_inner, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    assert np.isfinite(np.asarray(params)).all()


@pytest.fixture(scope="module")
def after_spikes(request):
    """The optimizers, and some of Optax, after a step with a huge finite gradient; one program for all."""
    optimizers = {name: adam_tx.guard(SPIKED[name]()) for name in run.asked_for(request)}

    @jax.jit
    def after(spike):
        grads = jax.random.normal(jax.random.key(0), (12, 4, 3)).at[5].multiply(spike)
        start = {name: (jnp.ones((4, 3)), tx.init(jnp.ones((4, 3)))) for name, tx in optimizers.items()}
        return jax.lax.scan(lambda carry, grad: (stepped(optimizers, carry, grad), None), start, grads)[0]

    with jax.numpy_dtype_promotion("standard"):
        return {spike: after(jnp.float32(spike)) for spike in (1e15, 1e20, 1e38)}


OPTAX = {name: getattr(optax, name) for name in ("adam", "adagrad", "rmsprop", "adabelief")}
SPIKED = ALL | {f"Optax's {name}": lambda make=make: make(1e-3) for name, make in OPTAX.items()}


@pytest.mark.parametrize("name", catalogue.costly(SPIKED, FEW | {"Optax's adam"}))
def test_a_huge_finite_gradient_leaves_nothing_infinite_and_later_steps_are_taken(name, after_spikes):
    for after in after_spikes.values():
        params, state = after[name]
        for leaf in jax.tree.leaves((params, state)):
            assert np.isfinite(np.asarray(leaf, np.float64)).all()
        assert int(state.skipped) <= 1
        assert int(state.skipped_in_a_row) == 0


def test_a_new_state_that_is_not_finite_is_a_bad_step_unless_it_was_so_before():
    grows = optax.GradientTransformation(
        lambda params: {"at first": jnp.float32(jnp.inf), "sum": jnp.zeros(2)},
        lambda updates, state, params=None: (updates, {**state, "sum": state["sum"] + 1e38 * updates}),
    )
    tx = adam_tx.guard(grows)
    state = tx.init(jnp.ones(2))
    for grad, skipped in ((1.0, 0), (4.0, 1), (1.0, 1)):
        _, state = tx.update(jnp.full(2, grad), state, jnp.ones(2))
        assert int(state.skipped) == skipped
    np.testing.assert_allclose(state.inner["sum"], 2e38)

    plateau = adam_tx.guard(optax.chain(adam_tx.sgd(0.1), optax.contrib.reduce_on_plateau()))
    _, state = plateau.update(jnp.ones(2), plateau.init(jnp.ones(2)), jnp.ones(2), value=1.0)
    assert int(state.skipped) == 0


def test_codes_of_nan_in_a_new_state_are_no_numbers():
    small = adam_tx.storage.EightBit(block=2, min_size=1)
    hidden = adam_tx.chain(adam_tx.scale_by_momentum(0.9, dtype=small), optax.scale(0.0), optax.zero_nans())
    tx, params = adam_tx.guard(hidden), jnp.ones((2, 64))
    state = tx.init(params)
    for grad in (3e38, -3.4e38, 1.0):  # their difference overflows in the average
        _, state = tx.update(params * grad, state, params)
        assert int(state.skipped_in_a_row) == (grad < 0)


def test_figures_that_overflow_are_no_reason_to_skip():
    tx = adam_tx.guard(adam_tx.monitor(adam_tx.adam(0.1)), deviations=6.0)
    _, state = tx.update(jnp.full(2, 1e25), tx.init(jnp.ones(2)), jnp.ones(2))
    assert (int(state.skipped), float(adam_tx.metrics(state)["grad_norm"])) == (0, np.inf)
    _, state = adam_tx.guard(tx).update(jnp.full(2, 1e25), adam_tx.guard(tx).init(jnp.ones(2)), jnp.ones(2))
    assert int(state.skipped) == 0


def test_a_raw_gradient_that_is_not_finite_is_seen_beside_updates_that_are():
    tx = adam_tx.guard(adam_tx.scale_by_rms(0.9))
    _, state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), grad=jnp.array([1.0, jnp.nan]))
    assert int(state.skipped) == 1


def test_a_guard_reads_the_state_as_often_as_its_steps_do(usual_compiler):
    shapes, size = [(64, 128)] * 4, 4 * 64 * 128
    plain, guarded = (compiled_cost(tx, shapes) for tx in (adam_tx.adamw(1e-3), adam_tx.guard(adam_tx.adamw(1e-3))))
    # 36 to select the state and updates, 22 to keep them until then and to look at them; scalars are a few bytes
    squares = 8 if run.JAXLIB < (0, 10) else 0  # before, the square of the gradient is written before it is summed up
    assert (guarded.bytes_accessed - plain.bytes_accessed) / size <= 58.5 + squares


MAKERS = {
    "adam": adam_tx.adam,
    "sgd": adam_tx.sgd,
    "lamb": adam_tx.lamb,
    "Optax's adam": optax.adam,
    "scaled": adam_tx.adamw,
}
DERIVED = [(name, bad) for name in MAKERS for bad in (np.nan, np.inf)]


@pytest.mark.parametrize(("name", "bad"), catalogue.costly(DERIVED, {("scaled", np.inf)}))
def test_derivatives_through_a_step_that_is_skipped_are_those_without_it(name, bad):
    scale = adam_tx.LossScale(1.0) if name == "scaled" else None

    def loss(lr, steps):
        tx, params = adam_tx.guard(MAKERS[name](lr), loss_scale=scale), jnp.array([1.0, -2.0])
        state = tx.init(params)
        for spoilt in steps:
            grad = (2 * params).at[0].set(bad) if spoilt else 2 * params
            updates, state = tx.update(grad * (state.scale if scale else 1.0), state, params)
            params = run.apply_updates(params, updates)
        return jnp.sum(params**2)

    for derivative in (jax.grad, jax.jacfwd):
        with_it, without = (derivative(loss)(1e-2, steps) for steps in ((False, True, False), (False, False)))
        np.testing.assert_allclose(with_it, without, rtol=1e-6)
    if name == "adam":
        np.testing.assert_allclose(with_it, -11.8378, rtol=1e-5)


def test_the_guard_never_gives_in_and_counts_what_it_skips():
    tx, params = adam_tx.guard(adam_tx.adam(1e-3)), jnp.array([1.0, -0.0])

    def step(state, grad):
        updates, state = tx.update(grad, state, params)
        return state, params + updates

    grads = jnp.full((300, 2), jnp.nan).at[200].set(1.0)
    state, after = jax.jit(lambda grads: jax.lax.scan(step, tx.init(params), grads))(grads)
    assert (int(state.skipped), int(state.skipped_in_a_row), int(state.count)) == (299, 99, 300)
    assert int(state.inner["count"]) == 1
    np.testing.assert_array_equal(
        np.asarray(after[:200]).view(np.int32), np.tile(np.asarray(params).view(np.int32), (200, 1))
    )


def test_a_step_is_skipped_where_the_updates_are_not_finite_though_the_gradient_is():
    tx = adam_tx.guard(optax.scale(1e30))
    updates, state = tx.update(jnp.array([1e20]), tx.init(jnp.ones(1)), jnp.ones(1))
    assert int(state.skipped) == 1
    assert float(updates[0]) == 0.0


def test_a_level_that_rises_slowly_is_no_spike():
    tx = adam_tx.guard(adam_tx.sgd(1.0), deviations=5.0, decay=0.9)
    sizes = 1.01 ** jnp.arange(500) * (1 + 0.1 * jax.random.normal(jax.random.key(0), (500,)))

    def step(state, size):
        return tx.update(size[None], state, jnp.ones(1))[1], None

    state, _ = jax.lax.scan(step, tx.init(jnp.ones(1)), sizes)
    assert int(state.skipped) == 0
    assert float(state.mean) == pytest.approx(float(sizes[-10:].mean()), rel=0.1)


def test_a_bad_part_of_an_accumulated_batch_is_as_if_it_had_not_been():
    tx = adam_tx.guard(optax.MultiSteps(adam_tx.adam(0.1), 2).gradient_transformation())
    params = jnp.ones(1)
    state = tx.init(params)
    for grad in jnp.array([[1.0], [jnp.nan], [2.0], [3.0]]):  # 1 and 2 make a batch, 3 waits
        updates, state = tx.update(grad, state, params)
        params = run.apply_updates(params, updates)
    assert float(params[0]) == pytest.approx(0.9, abs=1e-6)
    assert int(state.inner.mini_step) == 1


def test_one_bad_shard_holds_all_devices_back():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    place = NamedSharding(mesh, PartitionSpec("x"))
    tx = adam_tx.guard(adam_tx.adam(0.1))
    params = jax.device_put(jnp.ones(16), place)
    step = jax.jit(lambda grad, state: tx.update(grad, state, params))
    grad = jax.device_put(jnp.ones(16).at[13].set(jnp.nan), place)
    updates, state = step(grad, tx.init(params))
    assert not np.asarray(updates).any()
    assert int(state.skipped) == 1
    assert updates.sharding.is_equivalent_to(place, 1)


SCALE = adam_tx.LossScale(initial=2.0**14, every=3)


def in_float16(grad, scale):
    """A gradient as a float16 backward pass of a scaled loss gives it."""
    with np.errstate(over="ignore"):
        return np.float16(np.float32(grad) * np.float32(scale))


def test_a_loss_scale_backs_off_when_gradients_overflow_and_grows_again():
    tx, params = adam_tx.guard(adam_tx.sgd(1.0), loss_scale=SCALE), jnp.zeros(1)
    state, scales = tx.init(params), []
    for k in range(12):
        scales.append(float(state.scale))
        updates, state = tx.update(
            jnp.asarray(in_float16(10.0 if k in (0, 4) else 0.25, state.scale)[None]), state, params
        )
        params = params + updates
    k = 2.0**10
    assert scales == [16 * k, 8 * k, 8 * k, 8 * k, 16 * k, 8 * k, 8 * k, 8 * k, 16 * k, 16 * k, 16 * k, 32 * k]
    assert float(params[0]) == -0.25 * 10
    assert int(state.skipped) == 2


@pytest.mark.torch
def test_weights_and_scales_are_those_of_torchs_grad_scaler():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    grads = np.float32(rng.normal(size=(60, 5)) * 10.0 ** rng.uniform(-2, 1, (60, 1)))
    weight = torch.nn.Parameter(torch.ones(5))
    optimizer = torch.optim.Adam([weight], lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=3)
    scaler.scale(torch.zeros(()))
    tx = adam_tx.guard(adam_tx.adam(0.01), loss_scale=SCALE)
    params = jnp.ones(5)
    state, step = tx.init(params), jax.jit(tx.update)
    for grad in grads:
        assert float(state.scale) == scaler.get_scale()
        scaled = in_float16(grad, scaler.get_scale())
        weight.grad = torch.tensor(np.float32(scaled))
        scaler.step(optimizer)
        scaler.update()
        updates, state = step(jnp.asarray(scaled), state, params)
        params = run.apply_updates(params, updates)
    assert int(state.skipped) > 5
    np.testing.assert_allclose(np.asarray(params), weight.detach().numpy(), rtol=1e-6)


def test_a_guard_is_described_rebuilt_and_summed_up():
    tx = adam_tx.guard(adam_tx.adam(1e-3), deviations=6.0, loss_scale=adam_tx.LossScale(2.0**15))
    again = adam_tx.from_config(adam_tx.get_config(tx))
    assert jax.tree.structure(again.init(jnp.ones(2))) == jax.tree.structure(tx.init(jnp.ones(2)))
    assert eval(repr(tx), {"adam_tx": adam_tx}).links["inner"].name == tx.links["inner"].name
    table = adam_tx.summary(tx, jnp.ones(2))
    assert "skipped int32[]" in table
    assert "scale_by_rms" in table


def test_what_a_guard_cannot_hold_is_refused():
    for make, message in (
        (
            lambda: adam_tx.guard(adam_tx.adam(1e-3), deviations=-1.0),
            r"guard: deviations must be in \[0, inf\), got -1",
        ),
        (lambda: adam_tx.guard(adam_tx.adam(1e-3), decay=1.0), r"guard: decay must be in \[0, 1\), got 1"),
        (lambda: adam_tx.guard(adam_tx.adam(1e-3), loss_scale=2.0), "guard: loss_scale must be an adam_tx.LossScale"),
        (lambda: adam_tx.guard(1e-3), "a transformation is needed"),
        (lambda: adam_tx.LossScale(backoff=2.0), r"LossScale: backoff must be in \(0, 1\), got 2"),
        (lambda: adam_tx.LossScale(every=0), "LossScale: every must be at least 1"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            make()


def test_a_step_that_overflows_only_in_the_dtype_of_its_parameters_is_skipped():
    params, grad = jnp.ones(2, jnp.float16), jnp.full(2, 6e4, jnp.float16)
    tx = adam_tx.guard(adam_tx.sgd(2.0))
    updates, state = tx.update(grad, tx.init(params), params)
    assert int(state.skipped) == 1
    assert not updates.any()


def test_norms_that_hardly_change_or_begin_at_zero_lock_nothing():
    tx, params = adam_tx.guard(adam_tx.sgd(0.1), deviations=6.0), jnp.ones(4)

    def skipped(sizes):
        def step(state, size):
            _, state = tx.update(params * size, state, params)
            return state, None

        return int(jax.jit(lambda: jax.lax.scan(step, tx.init(params), sizes)[0])().skipped)

    constant, more = jnp.ones(200), jnp.full(100, 1.00001)
    assert skipped(jnp.concatenate([constant, more])) == 0
    assert skipped(jnp.concatenate([0.0 * constant, more])) == 0
    assert skipped(jnp.concatenate([constant, 2.0 * more])) == 46  # until the limit has followed


def test_a_state_of_another_guard_is_refused():
    plain, held = adam_tx.guard(adam_tx.sgd(0.1)), adam_tx.guard(adam_tx.sgd(0.1), deviations=3.0)
    with pytest.raises(ValueError, match=r"guard: its state is a GuardState of .*'taken'.*Give update the state"):
        held.update(jnp.ones(2), plain.init(jnp.ones(2)), jnp.ones(2))


@pytest.mark.parametrize(
    "first",
    [
        lambda: adam_tx.guard(optax.clip(0.1)),
        lambda: adam_tx.monitor(optax.clip(0.1)),
        lambda: adam_tx.groups({"*": optax.clip(0.1)}),
        lambda: adam_tx.guard(optax.identity(), loss_scale=adam_tx.LossScale()),
        lambda: adam_tx.guard(adam_tx.scale_by_momentum(), loss_scale=adam_tx.LossScale()),
    ],
)
def test_what_changes_the_gradient_cannot_hide_in_first_place(first):
    with pytest.raises(ValueError, match="stands first, but 'scale_by_rms' reads the gradient"):
        adam_tx.chain(first(), adam_tx.scale_by_rms())


@pytest.mark.parametrize("settings", [{}, {"deviations": 4.0}, {"loss_scale": adam_tx.LossScale(1.0)}])
def test_a_correction_behind_a_guard_corrects_what_is_inside(settings):
    rms, grad = adam_tx.scale_by_rms(0.999), jnp.array([1.0])
    with pytest.warns(
        UserWarning, match="guard may leave updates out, which the correction of b1 outside of it counts"
    ):
        tx = adam_tx.chain(rms, adam_tx.guard(adam_tx.scale_by_momentum(0.9), **settings), adam_tx.bias_correction())
    np.testing.assert_allclose(tx.update(grad, tx.init(grad))[0], [1.0], rtol=1e-6)
    with pytest.raises(ValueError, match="b1 would correct the momentum of scale_by_momentum twice"):
        adam_tx.chain(
            rms, adam_tx.guard(adam_tx.scale_by_momentum(0.9, debias=True), **settings), adam_tx.bias_correction(0.9)
        )
    with pytest.raises(ValueError, match=r"b1 is 0.5, but the momentum .* decays by 0.9"):
        adam_tx.chain(rms, adam_tx.guard(adam_tx.scale_by_momentum(0.9), **settings), adam_tx.bias_correction(0.5))


def test_a_correction_outside_of_what_may_leave_updates_out_is_warned_of_and_inside_it_is_exact():
    grad, nan = jnp.array([1.0]), jnp.array([jnp.nan])
    momentum = adam_tx.scale_by_momentum(0.9)
    for around in (adam_tx.guard, functools.partial(optax.apply_if_finite, max_consecutive_errors=3)):
        with pytest.warns(UserWarning, match=r"after the first one left out it corrects too little. Put it inside"):
            outside = adam_tx.chain(around(momentum), adam_tx.bias_correction(0.9))
        inside = adam_tx.chain(around(adam_tx.chain(momentum, adam_tx.bias_correction(0.9))))
        for tx, expected in ((outside, 0.1 / 0.19), (inside, 1.0)):
            _, state = tx.update(nan, tx.init(grad))
            np.testing.assert_allclose(tx.update(grad, state)[0], [expected], rtol=1e-6)
