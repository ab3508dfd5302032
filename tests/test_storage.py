"""Moments in one or two bytes: what the formats promise, and that every optimizer can use them."""

import inspect

import catalogue
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
import run
from jax.sharding import NamedSharding, PartitionSpec

import adam_tx
from adam_tx._core import rounding
from adam_tx.storage import EightBit, StochasticBFloat16, Storage, Stored, eight_bit

TINY = EightBit(block=4, min_size=1)
STORAGES = {"stochastic": StochasticBFloat16(), "eight bit": TINY}
KINDS = {"square": jnp.uint8, "gradient": jnp.int8}


def test_every_storage_of_the_library_is_tried():
    public = [getattr(adam_tx.storage, name) for name in adam_tx.storage.__all__]
    made = {kind for kind in public if inspect.isclass(kind) and issubclass(kind, adam_tx.storage.Storage)}
    assert {type(storage) for storage in STORAGES.values()} == made - {adam_tx.storage.Storage}


def noise_of(seed):
    return lambda like: rounding.bits(like, jnp.uint32(seed))


def stored(storage, x, kind, noise):
    """What is kept of numbers in a slot of this kind, which began with zeros."""
    zeros = jnp.zeros_like(x)
    return storage.encode(x, storage.begin("x", zeros, zeros, kind, noise), noise)


def stored_and_read(storage, x, kind, seed=0):
    """What is read of numbers that are stored in a slot of this kind."""
    kept = stored(storage, jnp.asarray(x, jnp.float32), kind, noise_of(seed))
    return np.asarray(storage.decode(kept, jnp.dtype(jnp.float32)))


def many(storage, x, kind, draws):
    """What is read of the same numbers under many draws of the random bits."""
    x = jnp.asarray(x, jnp.float32)

    def one(seed):
        kept = stored(storage, x, kind, lambda like: rounding.bits(like, seed))
        return storage.decode(kept, jnp.dtype(jnp.float32))

    return np.asarray(jax.jit(jax.vmap(one))(jnp.arange(draws, dtype=jnp.uint32) * 7919), np.float64)


def numbers_of(kind, scale):
    """Every number that a block with this scale can hold, in order."""
    codes = np.arange(0, 255) if kind == "square" else np.arange(-127, 128)
    kept = Stored(jnp.asarray(codes[None], KINDS[kind]), jnp.asarray(scale, jnp.int16).reshape(1, 1))
    return np.sort(np.asarray(EightBit(block=256).decode(kept, jnp.dtype(jnp.float32)))[0].astype(np.float64))


def block_of(kind, seed=0, size=256):
    """A block of numbers over twelve powers of ten, with a zero."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=size) * 10.0 ** rng.uniform(-4, 0, size)
    x[0] = 0.0
    return np.float32(x**2 if kind == "square" else x)[None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 3e-9, 7e5])
def test_eight_bits_store_one_of_the_two_neighbours_among_all_numbers_of_the_block(kind, scale):
    x = block_of(kind) * np.float32(scale)
    storage = EightBit(block=256, min_size=1)
    kept = stored(storage, jnp.asarray(x), kind, noise_of(3))
    read = np.asarray(storage.decode(kept, jnp.dtype(jnp.float32)), np.float64)[0]
    numbers = numbers_of(kind, kept.scales)
    assert numbers[-1] >= x.max()
    above = numbers[np.searchsorted(numbers, x[0])]
    below = numbers[np.maximum(np.searchsorted(numbers, x[0], side="right") - 1, 0)]
    assert ((read == above) | (read == below)).all() or kind == "square"
    if kind == "square":  # what is below the range is raised to the smallest number
        least = numbers[1]
        assert ((read == above) | (read == below))[(x[0] >= least) | (x[0] == 0)].all()
        assert (read[(x[0] > 0) & (x[0] < least)] == least).all()


@pytest.mark.parametrize(
    ("storage", "kind"), [(EightBit(256, 1), kind) for kind in KINDS] + [(StochasticBFloat16(), "gradient")]
)
def test_rounding_at_random_is_without_bias(storage, kind):
    """The mean over draws lies within five standard errors of the number, for every number of a block."""
    x, draws = block_of(kind), 4096
    if kind == "square":
        x = np.maximum(x, x.max() * 2.0**-15)  # within the range
    read = many(storage, x, kind, draws)
    error, spread = read.mean(axis=0) - x, read.std(axis=0) / np.sqrt(draws)
    assert (np.abs(error) <= 5 * spread + np.abs(x) * 1e-6).all()
    assert (spread > 0).mean() > 0.9


def test_rounding_is_without_bias_where_sizes_get_coarser():
    """Around 2^-10 of the largest, where four bits of mantissa become three."""
    x = np.float32(2.0**-10 * (1 + np.arange(-64, 64) / 512.0))[None]
    x[0, 0] = 1.0
    read = many(EightBit(128, 1), x, "square", 16_384)
    error, spread = read.mean(axis=0) - x, read.std(axis=0) / np.sqrt(16_384)
    assert (np.abs(error) <= 5 * spread + 1e-9).all()


@pytest.mark.parametrize("kind", KINDS)
def test_zero_stays_zero_and_a_size_never_becomes_zero(kind):
    x = np.float32([[0.0, 1e-45, 1e-38, 1e-20, 1e-9, 1.0, 0.0, 5.0]])
    for seed in range(20):
        read = stored_and_read(EightBit(block=8, min_size=1), x, kind, seed)
        assert (read[x == 0] == 0).all()
        if kind == "square":
            assert (read[x > 0] > 0).all()
    assert (stored_and_read(EightBit(block=4, min_size=1), np.zeros((2, 8)), kind) == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_in_its_place_infinity_becomes_nan_and_neither_disturbs_the_block(kind):
    x = block_of(kind, size=8)
    clean = stored_and_read(EightBit(block=8, min_size=1), x, kind)
    for bad in (np.nan, np.inf):
        spoilt = x.copy()
        spoilt[0, 0] = bad
        read = stored_and_read(EightBit(block=8, min_size=1), spoilt, kind)
        assert np.isnan(read[0, 0])
        np.testing.assert_array_equal(read[0, 1:], clean[0, 1:])


def test_every_bfloat16_is_itself_when_it_is_rounded_at_random():
    every = jax.lax.bitcast_convert_type(jnp.arange(2**16, dtype=jnp.uint32).astype(jnp.uint16), jnp.bfloat16)
    read = stored_and_read(StochasticBFloat16(), every.astype(jnp.float32), "gradient")
    np.testing.assert_array_equal(read, np.asarray(every.astype(jnp.float32)))
    largest = float(jnp.finfo(jnp.float32).max)
    assert np.isfinite(stored_and_read(StochasticBFloat16(), [largest, -largest], "gradient")).all()


@pytest.mark.parametrize("last", [1, 3, 4, 5, 257])
def test_a_last_block_may_be_shorter(last):
    x = np.abs(np.random.default_rng(last).normal(size=(3, last))) + 0.1
    read = stored_and_read(EightBit(block=4, min_size=1), x, "square")
    np.testing.assert_allclose(read, x, rtol=1 / 16)


def test_small_leaves_scalars_empty_and_complex_ones_keep_float32_and_the_summary_says_so():
    params = {
        "large": jnp.ones((32, 128)),
        "short rows": jnp.ones((4096, 2)),
        "few": jnp.ones((2, 128)),
        "scalar": jnp.ones(()),
        "empty": jnp.ones((0, 128)),
        "complex": jnp.ones((32, 128), jnp.complex64),
    }
    tx = adam_tx.adam(1e-3, mu_dtype=EightBit(), nu_dtype=EightBit())
    state = tx.init(params)
    updates, state = jax.jit(tx.update)(params, state, params)
    dtypes = {name: leaf.dtype.name for name, leaf in state["scale_by_momentum"].mu.items()}
    assert dtypes == dict.fromkeys(params, "float32") | {"large": "int8", "complex": "complex64"}
    assert [name for name, leaf in state["scale_by_momentum"].scales["mu_by_128"].items() if leaf is not None] == [
        "large"
    ]
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in updates.values())
    table = adam_tx.summary(tx, params)
    assert "int8[32,128]" in table
    assert "scales int16[32,1]" in table


def moving(tx, grads, read):
    """What is read of the state after steps with these gradients, in one scan."""
    state = tx.init(grads[0])

    def step(state, grad):
        updates, state = tx.update(grad, state, grad)
        return state, jnp.max(jnp.abs(updates))

    state, largest = jax.jit(lambda grads: jax.lax.scan(step, state, grads))(grads)
    return read(state), np.asarray(largest)


def root_of_nu(storage):
    def read(state):
        rms = state["scale_by_rms"]
        kept = Stored(rms.nu, rms.scales[storage.scales_of("nu")] if storage.scaled else None)
        return np.sqrt(np.asarray(storage.decode(kept, jnp.dtype(jnp.float32))))

    return read


@pytest.fixture(scope="module")
def fading():
    """Gradients of which every other column becomes ten times smaller, those columns, and the exact root of nu."""
    keys = jax.random.split(jax.random.key(0), 5000)
    quiet = jnp.arange(128) % 2 == 0
    grads = jax.vmap(lambda key: jax.random.normal(key, (32, 128)))(keys)
    grads = grads * jnp.where(quiet[None, None] & (jnp.arange(5000) >= 2000)[:, None, None], 0.1, 1.0)
    with run.compiled_for_users():  # thousands of steps
        exact, _ = moving(adam_tx.adam(1.0), grads, lambda state: np.sqrt(np.asarray(state["scale_by_rms"].nu)))
    return grads, np.asarray(quiet), exact


@pytest.mark.parametrize("storage", [EightBit(), StochasticBFloat16()])
def test_an_average_with_a_decay_of_0999_follows_gradients_that_become_ten_times_smaller(storage, fading):
    """Rounded to nearest it would stand still: the median would be 3 to 5."""
    grads, quiet, exact = fading
    with run.compiled_for_users():  # thousands of steps
        got, _ = moving(adam_tx.adam(1.0, mu_dtype=storage, nu_dtype=storage), grads, root_of_nu(storage))
    for which in (quiet, ~quiet):
        assert 0.97 <= np.median((got / exact)[:, which]) <= 1.03


@pytest.mark.parametrize("every", [1, 20])
@pytest.mark.parametrize("size", [1e-2, 1e-3])
def test_no_step_is_far_larger_than_one_of_float32_next_to_an_outlier(every, size):
    """One coordinate of a block is loud, the others quiet, and sparse: stored as zero, their nu would be divided by."""
    steps = 600
    keys = jax.random.split(jax.random.key(1), steps)
    loud = jnp.arange(128) == 0
    seen = (jnp.arange(steps) % every == 0)[:, None, None].astype(jnp.float32)
    grads = jax.vmap(lambda key: jax.random.normal(key, (32, 128)))(keys)
    grads = jnp.where(loud[None, None], grads, grads * size * seen)
    _, exact = moving(adam_tx.adam(1.0), grads, lambda state: None)
    _, got = moving(adam_tx.adam(1.0, mu_dtype=EightBit(), nu_dtype=EightBit()), grads, lambda state: None)
    assert got.max() <= 1.5 * exact.max()


def test_the_random_bits_are_uniform_and_differ_between_elements_steps_leaves_and_slots():
    like = jnp.zeros((256, 256))
    count = jnp.int32(5)
    draws = {
        name: np.asarray(rounding.bits(like, seed), np.float64)
        for name, seed in {
            "this": rounding.seed(count, 0, "nu"),
            "next": rounding.seed(count + 1, 0, "nu"),
            "leaf": rounding.seed(count, 1, "nu"),
            "slot": rounding.seed(count, 0, "mu"),
        }.items()
    }
    for bits in draws.values():
        assert abs(bits.mean() / 2**32 - 0.5) < 5 * 0.2887 / 256
        shares = [((bits.astype(np.int64) >> k) & 1).mean() for k in range(32)]
        assert np.abs(np.array(shares) - 0.5).max() < 5 * 0.5 / 256
        assert abs(np.corrcoef(bits[:, :-1].ravel(), bits[:, 1:].ravel())[0, 1]) < 5 / 256
    for name in ("next", "leaf", "slot"):
        assert abs(np.corrcoef(draws["this"].ravel(), draws[name].ravel())[0, 1]) < 5 / 256


@pytest.mark.parametrize(
    ("storage", "shape", "spec"),
    [
        (EightBit(block=32, min_size=1), (2, 4), PartitionSpec("y", "x")),
        (EightBit(block=32, min_size=1), (2, 1), PartitionSpec(None, "y")),
        (StochasticBFloat16(), (2, 4), PartitionSpec("y", "x")),
    ],
)
def test_sharded_parameters_give_the_bits_of_one_device(storage, shape, spec):
    """On two devices and on eight."""
    tx = adam_tx.chain(adam_tx.adam(1e-3, mu_dtype=storage, nu_dtype=storage), adam_tx.master_weights())
    params = jax.random.normal(jax.random.key(0), (16, 128)).astype(jnp.bfloat16)

    def steps(params):
        def step(carry, key):
            params, state = carry
            grad = jax.random.normal(key, params.shape).astype(jnp.bfloat16)
            updates, state = tx.update(grad, state, params)
            return (run.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), jax.random.split(jax.random.key(1), 3))[0]

    mesh = jax.make_mesh(shape, ("y", "x"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    steps = jax.jit(steps, compiler_options=run.AS_FOR_USERS)
    alone, spread = steps(params), steps(jax.device_put(params, NamedSharding(mesh, spec)))
    for one, many in zip(jax.tree.leaves(alone), jax.tree.leaves(spread), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(many))


def test_a_small_state_trains_under_an_explicit_mesh():
    mesh = jax.make_mesh((2, 4), ("y", "x"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    place = NamedSharding(mesh, PartitionSpec("y", "x"))
    storage = EightBit(block=32, min_size=1)
    tx = adam_tx.chain(adam_tx.adamw(1e-3, mu_dtype=storage, nu_dtype=storage), adam_tx.master_weights())
    with jax.set_mesh(mesh):
        params = jax.device_put(jnp.ones((16, 128), jnp.bfloat16), place)
        state = tx.init(params)
        updates, state = jax.jit(tx.update)(params, state, params)
    assert updates.sharding == place
    assert state["master_weights"].residual.sharding == place


def test_a_checkpoint_of_a_small_state_is_restored_to_the_last_bit(tmp_path):
    storage = EightBit(block=8, min_size=1)
    tx = adam_tx.chain(adam_tx.adamw(1e-3, mu_dtype=storage, nu_dtype=StochasticBFloat16()), adam_tx.master_weights())
    params = {"w": jnp.ones((4, 16), jnp.bfloat16), "b": jnp.ones(3)}
    grads = jax.tree.map(lambda p: jnp.linspace(-1.0, 1.0, p.size).reshape(p.shape), params)
    step = jax.jit(lambda params, state: tx.update(grads, state, params))
    _, state = step(params, tx.init(params))
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "kept", (params, state))
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "kept", jax.eval_shape(lambda: (params, tx.init(params))))
    for old, new in zip(jax.tree.leaves((params, state)), jax.tree.leaves(restored), strict=True):
        assert old.dtype == new.dtype
        np.testing.assert_array_equal(np.asarray(old), np.asarray(new))
    on, again = step(params, state), step(*restored)
    np.testing.assert_array_equal(np.asarray(on[0]["w"]), np.asarray(again[0]["w"]))


def test_blocks_that_would_cross_a_device_are_refused():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    params = {"w": jax.device_put(jnp.ones((64, 512)), NamedSharding(mesh, PartitionSpec(None, "x")))}
    with pytest.raises(ValueError, match=r"leaf \['w'\].* 64 elements of its last axis .*a divisor of 64"):
        adam_tx.adam(1e-3, nu_dtype=EightBit()).init(params)
    state = adam_tx.adam(1e-3, nu_dtype=EightBit(block=64)).init(params)
    assert state["scale_by_rms"].nu["w"].sharding == params["w"].sharding


SMALL = {
    name: make
    for name in adam_tx.optimizers.__all__
    if {"mu_dtype", "nu_dtype"} & inspect.signature(make := getattr(adam_tx, name)).parameters.keys()
}
SLOW = {"ademamix": {"b3": 0.99}}  # a slow average of signed numbers is refused
LEARNING_RATE = {"adamc": {"max_learning_rate": 0.01}}
LEARNING_RATE |= {name: {"others": adam_tx.adamw(0.01)} for name in ("adamh", "muonh", "normuon")}


def small(name, storage):
    make = SMALL[name]
    slots = {"mu_dtype", "nu_dtype"} & inspect.signature(make).parameters.keys()
    slots -= {"nu_dtype"} if name == "amsgrad" else set()  # a maximum of what is rounded at random is refused
    extra = SLOW.get(name, {}) | LEARNING_RATE.get(name, {})
    return make(0.01, **extra, **dict.fromkeys(slots, storage))


def test_every_optimizer_with_a_moment_is_tried():
    assert len(SMALL) >= 24


@pytest.mark.exhaustive
@pytest.mark.parametrize("decay", [0.9, 0.999])
def test_a_maximum_that_forgets_does_not_climb_on_what_is_rounded(decay):
    params = jnp.zeros((32, 128))

    def after(stored_as):
        tx = adam_tx.scale_by_max_norm(decay, dtype=stored_as)

        def step(state, t):
            grad = jax.random.normal(jax.random.fold_in(jax.random.key(0), t), params.shape)
            return tx.update(grad, state, grad=grad)[1], None

        state, _ = jax.lax.scan(step, tx.init(params), jnp.arange(10_000))
        return tx.update(jnp.ones_like(params), state, grad=0.0 * params)[0]

    exact, *small = jax.jit(lambda: [after(x) for x in (None, StochasticBFloat16(), EightBit())])()
    # a rounding is at most 1/256 and 1/16 of a number; a maximum climbs by one that was up, and falls by the next
    for steps, most in zip(small, (1 / 256, 1 / 16), strict=True):
        assert abs(float(jnp.mean(steps) / jnp.mean(exact)) - 1.0) < most / 4


@pytest.fixture(scope="module")
def paths(request):
    """Where every optimizer gets from the same gradients, with these storages and without, from one program."""
    grads = np.float32(np.random.default_rng(0).normal(size=(20, 4, 8)) + 1.0)
    asked = {kind: STORAGES[kind] for kind in run.asked_for(request, "kind")}
    makers = {
        f"{name}, {kind}": lambda name=name, storage=storage: small(name, storage)
        for name in SMALL
        for kind, storage in (asked | {"float32": None}).items()
    }
    return run.ends(makers, np.ones((4, 8), np.float32), grads)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("kind", catalogue.costly(STORAGES, every_run=()))
def test_every_optimizer_gets_about_as_far_with_every_storage(name, kind, paths):
    exact, got = (paths[f"{name}, {which}"].astype(np.float64) for which in ("float32", kind))
    moved = np.sqrt(np.mean((exact - 1.0) ** 2))
    assert np.sqrt(np.mean((got - exact) ** 2)) <= {"stochastic": 0.02, "eight bit": 0.2}[kind] * moved


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("kind", STORAGES)
def test_an_update_changes_no_type_of_a_small_state(name, kind):
    params = {"w": jnp.ones((4, 8)), "b": jnp.ones(3), "none": None}
    tx = small(name, STORAGES[kind])
    state = jax.eval_shape(tx.init, params)
    _, new = jax.eval_shape(tx.update, params, state, params)
    described = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (state, new)]
    assert described[0] == described[1]
    rebuilt = adam_tx.from_config(adam_tx.get_config(tx))
    assert adam_tx.get_config(rebuilt) == adam_tx.get_config(tx)
    assert jax.tree.structure(jax.eval_shape(rebuilt.init, params)) == jax.tree.structure(state)


def test_a_small_state_follows_a_change_of_basis():
    tx, exact = (adam_tx.soap(0.01, every=2, mu_dtype=storage, nu_dtype=storage) for storage in (EightBit(8, 1), None))
    grads = np.float32(np.random.default_rng(1).normal(size=(30, 8, 8)))
    ends = run.ends({"small": lambda: tx, "exact": lambda: exact}, np.zeros((8, 8), np.float32), grads)
    assert np.sqrt(np.mean((ends["small"] - ends["exact"]) ** 2)) <= 0.3 * np.sqrt(np.mean(ends["exact"] ** 2))


def test_derivatives_see_no_rounding_to_bfloat16():
    grad, params = jnp.array([0.3, -2.0]), jnp.ones(2)

    def second_step(storage, size):
        tx = adam_tx.adam(0.1, eps=1.0, mu_dtype=storage, nu_dtype=storage)
        _, state = tx.update(grad * size, tx.init(params), params)
        return jnp.sum(tx.update(grad, state, params)[0])

    exact = jax.grad(lambda size: second_step(None, size))(1.0)
    np.testing.assert_allclose(jax.grad(lambda size: second_step(StochasticBFloat16(), size))(1.0), exact, rtol=0.05)


BAD = {
    "slow momentum": (
        lambda: adam_tx.adam(1e-3, b1=0.999, mu_dtype=EightBit()),
        "mu cannot be stored as .*at most 0.99",
    ),
    "unknown decay": (
        lambda: adam_tx.adam(1e-3, b1=optax.constant_schedule(0.9), mu_dtype=EightBit()),
        "mu cannot be stored as .*a number of at most 0.99",
    ),
    "class": (lambda: adam_tx.adam(1e-3, mu_dtype=EightBit), r"write EightBit\(\)"),
    "block": (lambda: EightBit(block=1), "EightBit: block must be at least 2"),
    "size": (lambda: EightBit(min_size=0.5), "EightBit: min_size must be a whole number"),
    "complex": (
        lambda: adam_tx.adam(1e-3, mu_dtype=StochasticBFloat16()).init({"z": jnp.ones(2, jnp.complex64)}),
        r"leaf \['z'\] is complex",
    ),
    "other block": (
        lambda: adam_tx.scale_by_rms(dtype=EightBit(2, 1)).update(
            jnp.ones(4), adam_tx.scale_by_rms(dtype=EightBit(4, 1)).init(jnp.ones(4)), grad=jnp.ones(4)
        ),
        "Blocks of another size",
    ),
    "other storage": (
        lambda: adam_tx.scale_by_rms().update(
            jnp.ones(4), adam_tx.scale_by_rms(dtype=TINY).init(jnp.ones(4)), grad=jnp.ones(4)
        ),
        "scale_by_rms: its state is a ScaleByRmsState of",
    ),
    "bfloat16 that was rounded at random": (
        lambda: adam_tx.scale_by_rms().update(
            {"w": jnp.ones(4)},
            adam_tx.scale_by_rms(dtype=StochasticBFloat16()).init({"w": jnp.ones(4)}),
            grad={"w": jnp.ones(4)},
        ),
        r"state: leaf \['w'\] came as bfloat16, but the link stores float32",
    ),
    "float32 for one that rounds": (
        lambda: adam_tx.scale_by_rms(dtype=StochasticBFloat16()).update(
            jnp.ones(4), adam_tx.scale_by_rms().init(jnp.ones(4)), grad=jnp.ones(4)
        ),
        r"came as float32, but StochasticBFloat16\(\) stores bfloat16",
    ),
    "slow heavy ball": (lambda: adam_tx.sgd(1e-3, 0.999, accumulator_dtype=TINY), "trace cannot be stored as"),
    "largest of sizes, to nearest": (
        lambda: adam_tx.adamax(1e-3, nu_dtype=jnp.bfloat16),
        "nu stored as bfloat16 needs",
    ),
    "sum, to nearest": (lambda: adam_tx.adagrad(1e-3, nu_dtype=jnp.bfloat16), "a sum soon stops growing"),
    "no dtype": (
        lambda: adam_tx.adam(1e-3, mu_dtype="eight_bit"),
        "the dtype of mu must be a dtype, a storage such as",
    ),
    "eight bits by dtype": (lambda: adam_tx.adam(1e-3, mu_dtype=jnp.int8), r"give adam_tx\.storage\.EightBit\(\)"),
    "difference of two averages": (
        lambda: adam_tx.scale_by_centered_rms(dtype=TINY),
        "scale_by_centered_rms: dtype",
    ),
    "maximum over time": (
        lambda: adam_tx.amsgrad(1e-3, nu_dtype=StochasticBFloat16()),
        r"scale_by_max_rms: dtype cannot be StochasticBFloat16\(\).*mu_dtype",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_stored_is_refused_with_the_reason(case):
    make, message = BAD[case]
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_a_state_of_blocks_of_another_size_is_refused_and_moments_are_found_by_name():
    params = jnp.ones((64, 128))
    wide, narrow = (adam_tx.scale_by_rms(dtype=EightBit(block=block)) for block in (128, 100))
    state = wide.init(params)
    with pytest.raises(ValueError, match=r"its scales are \['nu_by_100'\], but \['nu_by_128'\] came.*EightBit\(block="):
        narrow.update(params, state, params, grad=params)
    assert optax.tree.get(adam_tx.chain(wide).init(params), "nu").dtype == jnp.uint8


class Shortened(Storage):
    """A storage that forgets numbers, or how it keeps them."""

    def __init__(self, forget):
        self.forget = forget

    def begin(self, where, first, param, kind, noise):
        return Stored(first)

    def encode(self, x, like, noise):
        return self.forget(x)

    def decode(self, stored, dtype):
        return stored.values.astype(dtype)


@pytest.mark.parametrize(
    ("forget", "came"),
    [
        (lambda x: Stored(x[:1]), r"\['float32\[1\]'\]"),
        (lambda x: Stored(x.astype(jnp.bfloat16)), r"\['bfloat16\[2\]'\]"),
        (lambda x: Stored(x, x[:1]), r"\['float32\[2\]', 'float32\[1\]'\]"),
        (lambda x: None, r"\[\]"),
    ],
    ids=["a shape", "a dtype", "scales", "nothing"],
)
@pytest.mark.parametrize("around", [adam_tx.chain, adam_tx.guard], ids=["chain", "guard"])
def test_a_storage_that_keeps_something_else_than_before_is_refused(around, forget, came):
    tx, grad = around(adam_tx.adam(1.0, mu_dtype=Shortened(forget))), jnp.array([0.5, -0.1])
    with pytest.raises(ValueError, match=rf"must keep mu as before, as \['float32\[2\]'\], but its encode .* {came}"):
        tx.update(grad, tx.init(grad))


@pytest.mark.parametrize("shape", [(8, 128), (24, 384), (3, 2, 16, 256)])
def test_blocks_that_are_seen_tile_by_tile_are_the_blocks_of_the_rows(shape):
    """As a TPU sees them; here both ways are run."""
    x = jnp.abs(jax.random.normal(jax.random.key(0), shape))
    assert eight_bit._has_tiles(x, 128)
    largest = eight_bit._largest_of_rows(x, 128)
    assert jnp.array_equal(eight_bit._largest_of_tiles(x, 128), largest)
    assert jnp.array_equal(eight_bit._expand_tiles(largest, 128), eight_bit._expand_rows(largest, shape[-1], 128))


@pytest.mark.parametrize(("shape", "block"), [((9, 128), 128), ((8, 130), 128), ((8, 192), 64), ((128,), 128)])
def test_blocks_that_are_no_whole_tiles_are_seen_as_rows(shape, block):
    assert not eight_bit._has_tiles(jnp.ones(shape), block)


def test_codes_without_their_scales_are_no_numbers():
    codes = jnp.ones((1, 128), jnp.uint8)
    with pytest.raises(ValueError, match="codes of dtype uint8 came without the scales"):
        EightBit().decode(Stored(codes), jnp.dtype("float32"))
