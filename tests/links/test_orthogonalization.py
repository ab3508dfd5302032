"""`scale_by_orthogonalization`: bring the singular values of a matrix of updates near one, which is Muon's step."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import run
from catalogue import costly
from optax.contrib import _muon

import adam_tx
from adam_tx.links.orthogonalization import COEFFICIENTS

TRIPLES = ((3.0, -3.0, 1.0), (2.0, -1.5, 0.5))


def orthogonalized(steps, coefficients=(oracles.JORDAN,) * 5, **settings):
    for u, _, _ in steps:
        yield oracles.newton_schulz(u, coefficients, **settings)


def of_heads(steps):
    """A kernel (model, heads, head), each head a matrix of its own."""
    for u, _, _ in steps:
        yield np.stack([oracles.newton_schulz(u[:, h], (oracles.JORDAN,) * 5) for h in range(u.shape[1])], 1)


def of_convolution(steps):
    """A kernel (height, width, in, out), whose rows are the first three."""
    for u, _, _ in steps:
        yield oracles.newton_schulz(u.reshape(-1, u.shape[-1]), (oracles.JORDAN,) * 5).reshape(u.shape)


def by_shape(path, shape):
    assert path in ("['real']", "['complex']")
    return (1, 0) if shape == (4, 3) else (0, 1)


SETTINGS = {
    "tall": ({}, orthogonalized, (4, 3)),
    "wide": ({"eps": 0.5}, partial(orthogonalized, eps=0.5), (3, 5)),
    "as PyTorch": ({"eps": 0.0, "min_norm": 20.0}, partial(orthogonalized, eps=0.0, min_norm=20.0), (4, 3)),
    "the last triple serves the rest": (
        {"steps": 3, "coefficients": TRIPLES},
        partial(orthogonalized, coefficients=(*TRIPLES, TRIPLES[1])),
        (4, 3),
    ),
    "the first of many triples": (
        {"steps": 1, "coefficients": TRIPLES},
        partial(orthogonalized, coefficients=TRIPLES[:1]),
        (4, 3),
    ),
    "adaptive": ({"adaptive": True}, partial(orthogonalized, adaptive=True), (4, 3)),
    "columns first": ({"axes": by_shape}, orthogonalized, (4, 3)),
    "heads": ({"axes": (0, -1)}, of_heads, (4, 2, 3)),
    "convolution": ({"axes": ((0, 1, 2), 3)}, of_convolution, (2, 1, 3, 2)),
}


@pytest.mark.parametrize("name", costly(SETTINGS, ["as PyTorch", "heads"]))
def test_scale_by_orthogonalization_is_its_formula(name):
    settings, oracle, shape = SETTINGS[name]
    run.assert_follows(adam_tx.scale_by_orthogonalization(**settings), oracle, shape=shape, steps=3)


PRECONDITIONINGS = ("frobenius", "spectral", "aol", "schatten")


@pytest.mark.parametrize("coefficients", costly(["standard", "dion"], ["dion"]))
def test_its_formula_is_that_of_optax_with_every_preconditioning_and_preset(coefficients, x64, standard_promotion):
    grad = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)))

    def both(name):
        tx = adam_tx.scale_by_orthogonalization(5, 1e-8, coefficients=coefficients, preconditioning=name)
        triples = jnp.asarray(_muon._NS_COEFFS_PRESET_DICT[coefficients])
        theirs = _muon.orthogonalize_via_newton_schulz(grad, triples, 5, name, 1e-8)
        return tx.update(grad, tx.init(grad))[0], theirs

    for ours, theirs in jax.jit(lambda: [both(name) for name in PRECONDITIONINGS])():
        np.testing.assert_allclose(ours, theirs, atol=1e-13)


REACHED = {  # the least and the largest singular value that comes out, of those from 0.01 to 1 of the norm
    "standard": (5, 0.65, 1.25),
    "dion": (5, 0.95, 1.05),
    "polar_express": (5, 0.95, 1.15),
}


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_singular_values_come_near_one(name):
    steps, least, most = REACHED[name]
    values = jnp.geomspace(0.01, 1.0, 8)
    tx = adam_tx.scale_by_orthogonalization(steps, coefficients=name, preconditioning="spectral")
    emitted, _ = jax.jit(tx.update)(jnp.diag(values), tx.init(values))
    reached = np.diagonal(np.asarray(emitted))
    assert least < reached.min()
    assert reached.max() < most


def test_more_steps_of_polar_express_give_the_orthogonal_factor():
    grad = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    tx = adam_tx.scale_by_orthogonalization(9, coefficients="polar_express")
    u, _, vh = np.linalg.svd(grad, full_matrices=False)
    np.testing.assert_allclose(tx.update(grad, tx.init(grad))[0], u @ vh, atol=1e-5)


def test_products_may_be_made_in_bfloat16():
    grad = jnp.asarray(np.random.default_rng(0).standard_normal((6, 4)), jnp.float32)
    exact, coarse = (adam_tx.scale_by_orthogonalization(dtype=dtype) for dtype in (None, jnp.bfloat16))
    (a, _), (b, _) = (jax.jit(tx.update)(grad, tx.init(grad)) for tx in (exact, coarse))
    assert b.dtype == jnp.float32
    # each step may multiply by 3.4445 what the first has rounded
    assert 0 < np.abs(a - b).max() < 3.4445**4 * 2.0**-9


def test_products_are_as_exact_as_a_device_can_make_them_unless_a_dtype_is_given():
    for dtype in (None, jnp.bfloat16):
        tx = adam_tx.scale_by_orthogonalization(1, dtype=dtype)
        jaxpr = str(jax.make_jaxpr(tx.update)(jnp.ones((2, 2)), tx.init(jnp.ones((2, 2)))))
        assert ("HIGHEST" in jaxpr) == (dtype is None)


@pytest.mark.parametrize("preconditioning", costly(PRECONDITIONINGS, ["frobenius"]))
def test_zero_updates_stay_zero_and_derivatives_finite(preconditioning):
    tx = adam_tx.scale_by_orthogonalization(eps=0.0, preconditioning=preconditioning)

    def emitted(grad):
        return jnp.sum(tx.update(grad, tx.init(grad))[0])

    zero = jnp.zeros((3, 2))
    value, slope = jax.jit(jax.value_and_grad(emitted))(zero)
    assert value == 0
    assert np.isfinite(slope).all()


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"coefficients": "jordan"}, r"coefficients must be one of \['standard', .*got 'jordan'"),
        ({"coefficients": ((1.0, 2.0),)}, "coefficients must be a name, three numbers, or a sequence of such triples"),
        ({"preconditioning": "none"}, r"preconditioning must be one of \['frobenius', "),
        ({"dtype": jnp.int8}, "dtype must be None or a floating-point dtype"),
    ],
)
def test_what_it_does_not_know_is_refused(settings, error):
    with pytest.raises(ValueError, match=error):
        adam_tx.scale_by_orthogonalization(**settings)


@pytest.mark.parametrize(
    ("shape", "axes", "error"),
    [
        ((3,), None, r"leaf \['w'\] of shape \(3,\) is no matrix. Give axes=\(rows, columns\)"),
        ((2, 2, 2), None, r"leaf \['w'\] of shape \(2, 2, 2\) is no matrix"),
        ((2, 2), (0, 2), r"leaf \['w'\] of shape \(2, 2\) has no matrix along axes \(0, 2\)"),
        ((2, 2), (0, 0), "has no matrix along axes"),
        ((2, 2), (0,), "has no matrix along axes"),
        ((2, 2), ((), 1), "has no matrix along axes"),
    ],
)
def test_a_leaf_that_is_no_matrix_is_refused_by_its_path(shape, axes, error):
    tx = adam_tx.scale_by_orthogonalization(axes=axes)
    with pytest.raises(ValueError, match=f"scale_by_orthogonalization: .*{error}"):
        tx.update({"w": jnp.ones(shape)}, tx.init({"w": jnp.ones(shape)}))


def test_leaves_sharded_on_an_explicit_mesh_come_back_as_they_lay():
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,), devices=jax.devices()[:2])
    grad = jnp.asarray(np.random.default_rng(0).standard_normal((4, 6)), jnp.float32)
    tx = optax.with_extra_args_support(adam_tx.scale_by_orthogonalization())
    whole, _ = tx.update(grad, tx.init(grad))
    with jax.set_mesh(mesh):
        split = jax.device_put(grad, jax.NamedSharding(mesh, jax.P("d", None)))
        emitted, _ = jax.jit(tx.update)(split, tx.init(split))
        assert jax.typeof(emitted).sharding == jax.typeof(split).sharding
    np.testing.assert_allclose(emitted, whole, atol=1e-5)
