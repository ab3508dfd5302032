"""In another basis every link does what it does in the parameters' own, and what it has accumulated follows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import run

import adam_tx

SHAPE, STEPS = (4, 3), 4

LINKS = {
    "scale_by_momentum": lambda: adam_tx.scale_by_momentum(0.8),
    "scale_by_momentum nesterov": lambda: adam_tx.scale_by_momentum(0.8, nesterov=True, debias=True),
    "scale_by_lion_momentum": lambda: adam_tx.scale_by_lion_momentum(0.7, 0.9),
    "scale_by_heavy_ball": lambda: adam_tx.scale_by_heavy_ball(0.8, nesterov=True),
    "scale_by_rms": lambda: adam_tx.scale_by_rms(0.8, debias=True),
    "scale_by_centered_rms": lambda: adam_tx.scale_by_centered_rms(0.8),
    "scale_by_belief_rms": lambda: adam_tx.scale_by_belief_rms(0.8, eps=1e-3),
    "scale_by_yogi_rms": lambda: adam_tx.scale_by_yogi_rms(0.8),
    "scale_by_max_rms": lambda: adam_tx.scale_by_max_rms(0.8),
    "scale_by_summed_rms": lambda: adam_tx.scale_by_summed_rms(),
    "scale_by_max_norm": lambda: adam_tx.scale_by_max_norm(0.8),
    "scale_by_delayed_rms": lambda: adam_tx.scale_by_delayed_rms(0.8),
    "scale_by_rectified_rms": lambda: adam_tx.scale_by_rectified_rms(0.8, threshold=2.0),
    "scale_by_atan2": lambda: adam_tx.scale_by_atan2(0.8, debias=True),
    "scale_by_block_rms": lambda: adam_tx.scale_by_block_rms(0.8, block=adam_tx.output_unit),
    "scale_by_row_column_rms": lambda: adam_tx.scale_by_row_column_rms(0.8),
    "gradient_difference": lambda: adam_tx.gradient_difference(),
    "add_gradient_change": lambda: adam_tx.add_gradient_change(0.5),
    "clip_by_rms": lambda: adam_tx.clip_by_rms(0.5),
    "clip_by_norm": lambda: adam_tx.clip_by_norm(0.5),
    "scale_by_caution": lambda: adam_tx.scale_by_caution(),
    "scale_by_orthogonalization": lambda: adam_tx.scale_by_orthogonalization(),
    "scale_by_shape": lambda: adam_tx.scale_by_shape(),
    "scale_by_gradient_norm": lambda: adam_tx.scale_by_gradient_norm(),
    "scale_by_learning_rate": lambda: adam_tx.scale_by_learning_rate(0.1),
    "bias_correction": lambda: adam_tx.bias_correction(0.8, 0.9),
}
COMBINED = {
    "chain": lambda: adam_tx.chain(
        adam_tx.scale_by_momentum(0.8), ("mine", adam_tx.scale_by_rms(0.9)), adam_tx.bias_correction()
    ),
    "chain in a chain": lambda: adam_tx.chain(adam_tx.gradient_difference(), adam_tx.adam(0.1)),
    "parallel": lambda: adam_tx.parallel(
        adam_tx.scale_by_momentum(0.8), adam_tx.scale_by_momentum(0.5), weights=(1.0, -0.5)
    ),
    "with_gradient": lambda: adam_tx.with_gradient(adam_tx.scale_by_rms(0.8), lambda grad, updates: grad - updates / 2),
    "with_gradient of a link": lambda: adam_tx.with_gradient(
        adam_tx.scale_by_rms(0.8), adam_tx.add_gradient_change(0.5)
    ),
    "scale_by_surprise": lambda: adam_tx.scale_by_surprise(adam_tx.scale_by_rms(0.8, debias=True)),
    "a foreign link without a state": lambda: adam_tx.chain(adam_tx.scale_by_momentum(0.8), optax.scale_by_sign()),
}
READ_PARAMS = {
    "add_decay_to_start": (0.1,),
    "add_cautiously_decayed_weights": (0.1,),
    "add_decayed_weights": (0.1,),
    "decay_weights": (0.1,),
    "decay_stepped_weights": (0.1,),
    "decay_to_start": (0.1,),
    "on_decayed_weights": (adam_tx.scale_by_learning_rate(0.1), 0.1),
    "scale_by_trust_ratio": (),
    "step_on_hyperball": (0.1,),
    "step_schedule_free": (0.1,),
    "master_weights": (),
    "stochastic_round": (),
}


def test_every_link_of_the_library_is_tested_in_a_basis():
    around_others = {"scale_by_surprise", "in_basis", "in_eigenbasis"}
    assert run.public_links().keys() - READ_PARAMS.keys() - around_others == {name.split()[0] for name in LINKS}


class Scripted(adam_tx.Basis):
    """Both axes change to given matrices, one set for each update."""

    def __init__(self, bases, orders):
        self._bases, self._orders = bases, orders  # for each axis: steps x n x n, steps x n

    def axes(self, path, shape):
        return range(len(shape))

    def find(self, basis, memory, grad, axis, count):
        return adam_tx.Turn(jnp.asarray(self._bases[axis])[count], jnp.asarray(self._orders[axis])[count])


def changing_bases(seed):
    """For each axis of SHAPE an orthogonal matrix and an order of its vectors for each step."""
    rng = np.random.default_rng(seed)
    bases = [np.stack([np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(STEPS)]) for n in SHAPE]
    return bases, [np.stack([rng.permutation(n) for _ in range(STEPS)]) for n in SHAPE]


def emitted(tx, grads):
    """What is emitted for each gradient."""

    def step(state, grad):
        updates, state = tx.update(grad, state, grad=grad)
        return state, updates

    return jax.lax.scan(step, tx.init(grads[0]), grads)[1]


def of_all(function, names):
    """The results of a function of a name, for all of them in one program: compiling is what takes the time."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(lambda: {name: function(name) for name in names})())


def centered_rms_in_basis(steps, bases, orders):
    """`scale_by_centered_rms(0.8, 0.1, eps_root=0.2)`, whose mean is turned and whose nu is sorted."""
    old, mean, nu = [np.eye(n) for n in SHAPE], np.zeros(SHAPE), np.zeros(SHAPE)
    for t, (u, g, _) in enumerate(steps):
        left, right = new = [basis[t] for basis in bases]
        mean = left.T @ old[0] @ mean @ old[1].T @ right
        nu = nu[orders[0][t]][:, orders[1][t]]
        turned_u, turned_g = (left.T @ x @ right for x in (u, g))
        mean = 0.8 * mean + 0.2 * turned_g
        nu = 0.8 * nu + 0.2 * np.abs(turned_g) ** 2
        v = np.maximum(
            nu - np.abs(mean) ** 2, 0
        )  # here an order says nothing of where squares go, so it can be negative
        yield left @ (turned_u / (np.sqrt(v + 0.2) + 0.1)) @ right.T
        old = new


def test_in_basis_is_its_formula():
    bases, orders = changing_bases(4)
    link = adam_tx.in_basis(adam_tx.scale_by_centered_rms(0.8, 0.1, eps_root=0.2), Scripted(bases, orders))
    run.assert_follows(link, lambda steps: centered_rms_in_basis(steps, bases, orders), steps=STEPS)


GRADS = np.random.default_rng(0).standard_normal((STEPS, *SHAPE))


def signed_permutations():
    """Both axes at each step by another permutation and other signs."""
    rng = np.random.default_rng(1)
    places = [np.stack([rng.permutation(n) for _ in range(STEPS)]) for n in SHAPE]
    signs = [rng.choice([-1.0, 1.0], (STEPS, n)) for n in SHAPE]
    bases = [
        np.stack([np.eye(n)[p].T * s for p, s in zip(places[k], signs[k], strict=True)]) for k, n in enumerate(SHAPE)
    ]
    orders = []
    for k, n in enumerate(SHAPE):  # column j of the new basis is axis places[j]; where the old one had it
        before = np.concatenate([np.arange(n)[None], places[k][:-1]])
        orders.append(np.stack([np.argsort(old)[new] for old, new in zip(before, places[k], strict=True)]))
    return Scripted(bases, orders)


@pytest.fixture(scope="module")
def permuted():
    basis, makers = signed_permutations(), LINKS | COMBINED

    def both(name):
        tx, grads = makers[name](), jnp.asarray(GRADS)
        return emitted(adam_tx.in_basis(tx, basis), grads), emitted(tx, grads)

    return of_all(both, makers)


@pytest.mark.parametrize("name", LINKS | COMBINED)
def test_turning_the_axes_by_signed_permutations_changes_no_number(name, permuted):
    """The rule of an element does not ask which element it is, so only what is left behind can show."""
    turned, plain = permuted[name]
    # products with a signed permutation only add zeros, but a sum over a tensor has another order
    np.testing.assert_allclose(turned, plain, rtol=1e-12, atol=1e-14)


ROTATED, SORTED = {"mu", "mean", "trace", "previous"}, {"nu", "nu_max", "nu_row", "nu_col"}


def map_slots(state, turns, orders):
    """The oracle's transport: what averages the gradient is turned along, what averages its square is sorted."""
    moved = {}
    for name, slot in state._asdict().items():
        if name in ROTATED:
            moved[name] = jnp.einsum("ai,bj,ij->ab", *turns, slot)
        elif name in SORTED and slot is not None:
            sort_rows = slot[orders[0]] if slot.shape[0] > 1 else slot
            moved[name] = sort_rows[:, orders[1]] if slot.shape[1] > 1 else sort_rows
    return state._replace(**moved)


@pytest.fixture(scope="module")
def rotated():
    bases, orders = changing_bases(2)

    def expected(tx):
        """The link itself on turned gradients, its state transported by the oracle."""
        state, old, out = tx.init(jnp.asarray(GRADS[0])), [np.eye(n) for n in SHAPE], []
        for t, grad in enumerate(GRADS):
            new = [basis[t] for basis in bases]
            state = map_slots(state, [q.T @ p for q, p in zip(new, old, strict=True)], [order[t] for order in orders])
            turned = jnp.asarray(new[0].T @ grad @ new[1])
            updates, state = tx.update(turned, state, grad=turned)
            out.append(new[0] @ updates @ new[1].T)
            old = new
        return jnp.stack(out)

    def both(name):
        tx = LINKS[name]()
        return emitted(adam_tx.in_basis(tx, Scripted(bases, orders)), jnp.asarray(GRADS)), expected(tx)

    return of_all(both, LINKS)


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.exhaustive
def test_turning_the_axes_by_any_rotation_is_the_link_on_turned_gradients(name, rotated):
    turned, expected = rotated[name]
    np.testing.assert_allclose(turned, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", sorted(READ_PARAMS))
def test_links_that_read_the_parameters_are_refused_in_another_basis(name):
    link = getattr(adam_tx, name)(*READ_PARAMS[name])
    for inside in (link, adam_tx.chain(adam_tx.scale_by_momentum(), link)):
        with pytest.raises(ValueError, match=f"{name} reads the parameters, which are in another basis"):
            adam_tx.in_eigenbasis(inside)


@pytest.mark.parametrize(
    "foreign",
    [
        optax.scale_by_adam(),
        optax.chain(adam_tx.scale_by_momentum(0.9), adam_tx.scale_by_rms(0.9)),
        optax.masked(adam_tx.scale_by_momentum(0.9), True),
        optax.trace(0.9),
    ],
    ids=["scale_by_adam", "chain", "masked", "trace"],
)
def test_a_state_that_is_not_known_is_refused_in_another_basis(foreign):
    for inside in (foreign, adam_tx.chain(adam_tx.scale_by_momentum(), foreign)):
        with pytest.raises(ValueError, match="which is not a link of adam_tx, cannot follow a change of basis"):
            adam_tx.in_eigenbasis(inside)


def test_a_basis_in_a_basis_is_refused():
    with pytest.raises(ValueError, match="cannot stand inside another change of basis"):
        adam_tx.in_eigenbasis(adam_tx.in_eigenbasis(adam_tx.scale_by_rms()))


def test_blocks_of_an_axis_that_turns_are_refused_by_name():
    halves = adam_tx.scale_by_block_rms(block=lambda _, shape: (2, 1))
    with pytest.raises(ValueError, match=r"nu of leaf \['w'\] stands for blocks of an axis whose basis changes"):
        adam_tx.in_eigenbasis(halves).init({"w": jnp.zeros((4, 2))})
    only_columns = adam_tx.in_eigenbasis(halves, axes=lambda *_: (1,))
    assert only_columns.init({"w": jnp.zeros((4, 2))}).inner.nu["w"].shape == (2, 2)


def test_a_momentum_of_a_users_own_follows_whatever_its_slot_is_called(x64):
    @adam_tx.link(slots={"velocity": adam_tx.Slot("gradient", decay="decay")})
    def scale_by_velocity(decay: adam_tx.Decay = 0.8):
        def rule(now, updates, velocity):
            velocity = adam_tx.numerics.ema(velocity, updates, now.decay.step)
            return velocity, velocity

        return adam_tx.Rule(rule)

    turned = adam_tx.in_basis(scale_by_velocity(0.8), Scripted(*changing_bases(3)))
    # a linear rule does not see the basis at all
    grads = jnp.asarray(GRADS)
    np.testing.assert_allclose(emitted(turned, grads), emitted(adam_tx.scale_by_momentum(0.8), grads), rtol=1e-12)


class Projection(adam_tx.Basis):
    """The first `rank` left singular vectors of the gradient, found anew at every update."""

    def __init__(self, rank):
        self.rank = rank

    def axes(self, path, shape):
        return (0,) if len(shape) == 2 else ()

    def size(self, n):
        return self.rank

    def find(self, basis, memory, grad, axis, count):
        return adam_tx.Turn(jnp.linalg.svd(grad)[0][:, : self.rank], jnp.arange(self.rank))


def test_a_projection_has_slots_of_its_own_shape_and_moves_in_its_span():
    tx = adam_tx.in_basis(adam_tx.scale_by_momentum(0.0), Projection(2))
    params = {"w": jnp.zeros(SHAPE), "b": jnp.zeros(3)}
    state = tx.init(params)
    assert state.inner.mu["w"].shape == (2, 3)
    assert state.inner.mu["b"].shape == (3,)
    grad = {"w": jnp.asarray(GRADS[0], jnp.float32), "b": jnp.ones(3)}
    updates, state = jax.jit(tx.update)(grad, state, params, grad=grad)
    u, s, vt = np.linalg.svd(grad["w"])
    np.testing.assert_allclose(updates["w"], (u[:, :2] * s[:2]) @ vt[:2], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(updates["b"], grad["b"])


@pytest.mark.parametrize(
    "shape", [(0, 5), *(pytest.param(of, marks=pytest.mark.exhaustive) for of in [(0, 8), (5, 0), (0,)])]
)
def test_a_leaf_without_elements_has_nothing_to_turn(shape):
    tx, params = adam_tx.soap(0.1, every=1), {"none": jnp.zeros(shape), "some": jnp.ones((2, 2))}
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(params, state, params)
    assert updates["none"].shape == shape
    some = {"some": params["some"]}
    state = tx.init(some)
    for _ in range(3):
        expected, state = tx.update(some, state, some)
    np.testing.assert_array_equal(updates["some"], expected["some"])
