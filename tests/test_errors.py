"""Every documented error: what was wrong, which argument or leaf, and how to mend it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import KERAS_CONFIG, TORCH_ADAFACTOR, TORCH_GROUP

import adam_tx
from adam_tx import interop

PARAMS = {"dense": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}}


def update(tx, grads, params=PARAMS):
    return tx.update(grads, tx.init(params), params)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adam_tx.adam(1e-3, b1=1.5), r"b1 must be in \[0, 1\), got 1.5"),
        (lambda: adam_tx.adam(1e-3, b1=1), r"b1 must be in \[0, 1\), got 1"),
        (lambda: adam_tx.adam(1e-3, b2=-0.1), r"b2 must be in \[0, 1\), got -0.1"),
        (lambda: adam_tx.adam(1e-3, b2=jnp.float32(2)), r"b2 must be in \[0, 1\), got 2"),
        (lambda: adam_tx.adam(1e-3, eps=-1e-8), r"eps must be in \[0, inf\), got -1e-08"),
        (lambda: adam_tx.adam(1e-3, eps_root=float("nan")), r"eps_root must be in \[0, inf\), got nan"),
        (lambda: adam_tx.adam(-1e-3), r"learning_rate must be in \[0, inf\), got -0.001"),
        (lambda: adam_tx.adamw(1e-3, weight_decay=float("inf")), r"weight_decay must be in \[0, inf\), got inf"),
        (lambda: adam_tx.scale_by_momentum(1.0), r"decay must be in \[0, 1\), got 1"),
        (
            lambda: adam_tx.scale_by_momentum(jnp.array([0.9, 0.8])),
            r"decay must be a 0-d array, got shape \(2,\).*vmap",
        ),
    ],
)
def test_a_number_out_of_range_is_refused_when_the_link_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0.9", "b1 must be a number, a 0-d array or a schedule, got str"),
        (True, "b1 must be a number, a 0-d array or a schedule, got the boolean True"),
        (None, "b1 must be a number, a 0-d array or a schedule, got NoneType"),
        (jnp.complex64(0), "b1 came as a complex64 array; it must be float32 or float64.$"),
        (jnp.bfloat16(0.9), "b1 came as a bfloat16 array.*hyperparam_dtype=jnp.float32"),
        (jnp.float16(0.9), "b1 came as a float16 array.*hyperparam_dtype=jnp.float32"),
    ],
)
def test_what_is_no_hyperparameter_is_refused(value, message):
    with pytest.raises(TypeError, match=message):
        adam_tx.adam(1e-3, b1=value)


def test_a_schedule_is_checked_when_it_gives_its_value():
    tx = adam_tx.adam(1e-3, b2=lambda _: 1.0)
    with pytest.raises(ValueError, match=r"adam: b2 must be in \[0, 1\), got 1"):
        update(tx, PARAMS)


def test_bfloat16_hyperparameters_from_inject_hyperparams_are_refused_with_the_fix():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    with pytest.raises(TypeError, match=r"bfloat16 array.*hyperparam_dtype=jnp.float32"):
        optax.inject_hyperparams(adam_tx.adam)(1e-3).init(params)


@pytest.mark.parametrize("b2", [0.999, 0.991, jnp.float32(0.9), optax.constant_schedule(0.9)])
def test_a_bfloat16_second_moment_that_would_never_decay_is_refused_with_the_reason(b2):
    with pytest.raises(
        ValueError, match=r"nu stored as bfloat16 needs a decay that is a number of at most 0.99.*never decays"
    ):
        adam_tx.adam(1e-3, b2=b2, nu_dtype=jnp.bfloat16)


def test_other_storage_dtypes_that_cannot_hold_a_moment_are_refused():
    with pytest.raises(ValueError, match="nu cannot be stored as float16"):
        adam_tx.adam(1e-3, b2=0.9, nu_dtype=jnp.float16)
    with pytest.raises(ValueError, match="mu stored as bfloat16 needs a decay"):
        adam_tx.adam(1e-3, b1=0.999, mu_dtype=jnp.bfloat16)
    with pytest.raises(TypeError, match="the dtype of mu must be a floating-point or complex dtype or None, got int8"):
        adam_tx.adam(1e-3, mu_dtype=jnp.int8)
    with pytest.raises(TypeError, match=r"leaf \['z'\] is complex.*cannot be stored as bfloat16"):
        adam_tx.adam(1e-3, mu_dtype=jnp.bfloat16).init({"z": jnp.zeros(2, jnp.complex64)})


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float8_e8m0fnu])
def test_moments_of_fewer_than_16_bits_are_refused(dtype):
    with pytest.raises(ValueError, match=r"mu cannot be stored as float8.*would stand still"):
        adam_tx.adam(1e-3, b1=0.5, mu_dtype=dtype)
    with pytest.raises(ValueError, match="nu cannot be stored as float8"):
        adam_tx.adam(1e-3, b2=0.5, nu_dtype=dtype)


def test_schedules_of_the_learning_rate_and_of_weight_decay_are_checked_too():
    with pytest.raises(ValueError, match=r"learning_rate must be in \[0, inf\), got -1"):
        update(adam_tx.adam(lambda _: -1.0), PARAMS)
    with pytest.raises(ValueError, match=r"weight_decay must be a 0-d array, got shape \(1,\)"):
        update(adam_tx.adamw(1e-3, weight_decay=lambda _: jnp.zeros(1)), PARAMS)


@pytest.mark.parametrize("deeper", [{"k": {"x": jnp.ones(2)}}, {"k": [jnp.ones(())] * 2}, {"k": {}}, {"k": None}])
def test_a_tree_that_goes_deeper_than_the_gradient_names_the_leaf(deeper):
    tx, grads = adam_tx.adam(1e-3), {"k": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"updates and params are different trees: only updates has \['k'\]"):
        tx.update(grads, tx.init(grads), deeper)
    with pytest.raises(ValueError, match=r"updates and mu are different trees: only updates has \['k'\]"):
        tx.update(grads, tx.init(deeper))


def test_a_wrong_shape_names_the_leaf_and_both_shapes():
    grads = {"dense": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(3)}}
    with pytest.raises(ValueError, match=r"leaf \['dense'\]\['kernel'\] must have one shape.*\(3, 2\).*\(2, 3\)"):
        update(adam_tx.adam(1e-3), grads)


def test_a_wrong_shape_without_params_is_found_against_the_moment():
    tx = adam_tx.adam(1e-3)
    grads = {"dense": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(())}}
    with pytest.raises(ValueError, match=r"leaf \['dense'\]\['bias'\] must have one shape.*updates \(\).*mu \(3,\)"):
        tx.update(grads, tx.init(PARAMS))


def test_a_wrong_tree_names_the_leaves_that_differ():
    grads = {"dense": {"kernel": jnp.zeros((2, 3)), "weight": jnp.zeros(3)}}
    with pytest.raises(
        ValueError, match=r"only updates has \['dense'\]\['weight'\], only params has \['dense'\]\['bias'\]"
    ):
        update(adam_tx.adam(1e-3), grads)
    tx = adam_tx.adam(1e-3)
    with pytest.raises(
        ValueError, match=r"only updates has \['dense'\]\['weight'\], only mu has \['dense'\]\['bias'\]"
    ):
        tx.update(grads, tx.init(PARAMS))


@pytest.mark.parametrize(
    "leaf", [jnp.zeros(2, jnp.int32), np.zeros(2, jax.dtypes.float0), jnp.zeros(2, bool), jax.random.key(0), 3]
)
def test_a_leaf_that_has_no_gradient_is_refused_with_its_path(leaf):
    tx = adam_tx.adam(1e-3)
    for first in (tx, adam_tx.scale_by_rms(0.9), adam_tx.bias_correction(0.9), adam_tx.rmsprop(1e-3)):
        with pytest.raises(TypeError, match=r"params: leaf \['step'\] has dtype .*optax.masked"):
            first.init({"w": jnp.zeros(2), "step": leaf})
    floats = {"w": jnp.zeros(2), "step": jnp.zeros(2)}
    with pytest.raises(TypeError, match=r"updates: leaf \['step'\] has dtype"):
        tx.update({"w": jnp.zeros(2), "step": leaf}, tx.init(floats))


def test_a_complex_gradient_without_params_is_refused_for_a_real_moment():
    tx = adam_tx.adam(1e-3)
    with pytest.raises(TypeError, match=r"leaf \['w'\]: a complex gradient came for mu.*Give update the params"):
        tx.update({"w": jnp.zeros(2, jnp.complex64)}, tx.init({"w": jnp.zeros(2)}))


@pytest.mark.parametrize(
    "first",
    [
        optax.clip(1.0),
        optax.chain(optax.clip_by_global_norm(1.0)),
        adam_tx.clip_by_norm(1.0),
        adam_tx.clip_by_rms(1.0),
        adam_tx.add_gradient_change(),
        adam_tx.add_decayed_weights(0.1),
        adam_tx.chain(adam_tx.clip_by_norm(1.0)),
    ],
    ids=lambda tx: adam_tx.as_link(tx).name,
)
def test_what_changes_the_gradient_is_refused_before_a_link_that_reads_the_raw_one(first):
    with pytest.raises(ValueError, match=r"stands first, but 'scale_by_rms' reads the gradient.*in front of the chain"):
        adam_tx.chain(first, adam_tx.scale_by_momentum(0.9), adam_tx.scale_by_rms(0.999))


def test_a_first_member_of_ones_own_is_told_how_to_say_that_it_is_meant():
    mine = optax.stateless(lambda updates, _: updates)
    with pytest.raises(ValueError, match=r"If it is a part of the algorithm, say so: as_link\(<it>, formula=...\)"):
        adam_tx.chain(mine, adam_tx.scale_by_rms(0.999))
    tx = adam_tx.chain(adam_tx.as_link(mine, name="mine", formula="u"), adam_tx.scale_by_rms(0.0))
    updates, _ = tx.update(jnp.array([3.0]), tx.init(jnp.zeros(1)))
    np.testing.assert_allclose(updates, [1.0])


def test_what_changes_the_gradient_may_stand_before_links_that_do_not_read_the_raw_one():
    tx = adam_tx.chain(optax.clip(1.0), adam_tx.scale_by_momentum(0.0))
    np.testing.assert_array_equal(tx.update(jnp.array([3.0]), tx.init(jnp.zeros(1)))[0], [1.0])
    assert adam_tx.chain(adam_tx.clip_by_norm(1.0), adam_tx.adam(1e-3)).links


MOMENTUM, RMS = adam_tx.scale_by_momentum, adam_tx.scale_by_rms


@pytest.mark.parametrize(
    ("links", "message"),
    [
        ([MOMENTUM(0.9, debias=True), adam_tx.bias_correction(0.9)], "b1 would correct the momentum .* twice"),
        (
            [MOMENTUM(0.9), RMS(0.999, debias=True), adam_tx.bias_correction(0.9, 0.999)],
            "b2 would correct the second moment of scale_by_rms twice",
        ),
        ([MOMENTUM(0.9), *[adam_tx.bias_correction(0.9)] * 2], "b1 would correct the momentum .* twice"),
        ([MOMENTUM(0.9), adam_tx.bias_correction(0.95)], "b1 is 0.95, but the momentum .* decays by 0.9"),
        ([MOMENTUM(0.9), RMS(0.99), adam_tx.bias_correction(0.9, 0.999)], "b2 is 0.999, but .* decays by 0.99"),
        (
            [MOMENTUM(optax.linear_schedule(0.8, 0.9, 10)), adam_tx.bias_correction(0.9)],
            "b1 is 0.9, but .* decays by a schedule",
        ),
        ([adam_tx.chain(MOMENTUM(0.9), adam_tx.bias_correction()), adam_tx.bias_correction(0.9)], "twice"),
        ([MOMENTUM(0.9), adam_tx.bias_correction(), adam_tx.bias_correction()], "no average .* corrected already"),
        ([RMS(0.9, debias=True), adam_tx.bias_correction()], "no average .* corrected already"),
        ([MOMENTUM(0.9), MOMENTUM(0.8), adam_tx.bias_correction()], "which momentum to correct is not clear"),
        (
            [adam_tx.parallel(MOMENTUM(0.9), MOMENTUM(0.8)), adam_tx.bias_correction(0.8)],
            "b1 would also correct what stands beside",
        ),
    ],
)
def test_a_correction_of_the_wrong_average_is_refused_when_the_chain_is_made(links, message):
    with pytest.raises(ValueError, match=f"bias_correction.*{message}"):
        adam_tx.chain(*links)


def test_a_bias_correction_without_decays_or_a_chain_says_where_it_belongs():
    with pytest.raises(ValueError, match="takes them from the links before it in adam_tx.chain"):
        adam_tx.bias_correction().init(PARAMS)


def test_a_link_that_reads_the_gradient_is_refused_in_a_plain_optax_chain():
    tx = optax.chain(adam_tx.scale_by_momentum(0.9), adam_tx.scale_by_rms(0.999))
    with pytest.raises(TypeError, match=r"scale_by_rms reads the gradient.*adam_tx.chain.*grad=g"):
        update(tx, PARAMS)


def test_a_chain_of_nothing_or_of_something_else_is_refused():
    with pytest.raises(ValueError, match="chain: no member"):
        adam_tx.chain()
    with pytest.raises(TypeError, match="member 1 must be a transformation or a pair"):
        adam_tx.chain(adam_tx.scale_by_momentum(0.9), 0.1)


def test_parallel_links_need_as_many_weights():
    with pytest.raises(ValueError, match="parallel: needs members and a weight for each, got 1 and 2"):
        adam_tx.parallel(adam_tx.scale_by_momentum(0.9), weights=(1.0, 2.0))
    with pytest.raises(ValueError, match="parallel: needs members and a weight for each, got 0 and 0"):
        adam_tx.parallel()
    with pytest.raises(ValueError, match=r"weights\[0\] must be in \(-inf, inf\), got inf"):
        adam_tx.parallel(adam_tx.scale_by_momentum(0.9), weights=(float("inf"),))


def test_read_outs_that_exclude_each_other_are_refused():
    with pytest.raises(ValueError, match="read is the decay of a look-ahead; give nesterov=True"):
        adam_tx.scale_by_momentum(0.9, read=0.8, debias=True)
    with pytest.raises(ValueError, match='max_of must be "raw", or "debiased" together with debias=True'):
        adam_tx.scale_by_max_rms(0.9, max_of="debiased")


def test_a_state_of_another_chain_is_refused_and_both_are_named():
    state = adam_tx.chain(adam_tx.scale_by_momentum(0.9)).init(PARAMS)
    with pytest.raises(ValueError, match=r"lacks \['scale_by_rms', .* and has \[\] instead"):
        adam_tx.adam(1e-3).update(PARAMS, state)
    with pytest.raises(ValueError, match=r"but a tuple came.*update\(updates, state, params\)"):
        adam_tx.adam(1e-3).update(PARAMS, optax.adam(1e-3).init(PARAMS))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rho": 0.9}, r"\['rho'\] cannot be honoured"),
        ({"name": "ftrl"}, "keras.optimizers.ftrl is not known, only .*'adamax'"),
        ({"clipnorm": 1.0, "clipvalue": 1.0}, "only one of"),
        ({"beta_1": 1.5}, r"must be in \[0, 1\), got 1.5"),
        ({"gradient_accumulation_steps": 2.5}, "gradient_accumulation_steps=2.5 .*a whole number of at least 2"),
        ({"loss_scale_factor": 0.0}, "loss_scale_factor=0.0 .*must be a number from"),
        ({"clipnorm": -1.0}, "clipnorm=-1.0 cannot be honoured"),
        ({"use_ema": True, "ema_momentum": 1.5}, "ema_momentum=1.5 .*from 0 to 1"),
        ({"learning_rate": {"class_name": "MySchedule", "config": {}}}, "schedule 'MySchedule' is not known"),
        (
            {"learning_rate": {"class_name": "InverseTimeDecay", "config": {"decay_rate": 1.0}}},
            r"keras schedule InverseTimeDecay: missing \['initial_learning_rate', 'decay_steps', 'staircase'\]",
        ),
    ],
)
def test_a_keras_config_that_cannot_be_honoured_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        interop.keras.from_config(KERAS_CONFIG | config)


def test_a_keras_config_with_a_missing_key_is_refused():
    config = {key: value for key, value in KERAS_CONFIG.items() if key != "amsgrad"}
    with pytest.raises(ValueError, match=r"missing \['amsgrad'\]"):
        interop.keras.from_config(config)


@pytest.mark.parametrize(
    ("group", "optimizer", "message"),
    [
        ({"momentum": 0.9}, "Adam", r"\['momentum'\] cannot be honoured"),
        ({}, "LBFGS", r"optimizer must be one of \['Adafactor', .*, got 'LBFGS'"),
        ({"decoupled_weight_decay": True}, "Adam", "that is AdamW; pass optimizer='AdamW'"),
        ({"betas": (0.9, 1.0)}, "Adam", r"must be in \[0, 1\), got 1"),
        ({"betas": (0.9,)}, "Adam", r"betas=\(0.9,\) cannot be honoured: it must be a pair"),
        ({"lr": None}, "Adam", "lr=None cannot be honoured: it must be a number"),
    ],
)
def test_a_torch_group_that_cannot_be_honoured_is_refused(group, optimizer, message):
    with pytest.raises(ValueError, match=message):
        interop.torch.from_param_group(TORCH_GROUP | group, optimizer)


def test_weight_decay_and_averages_without_params_are_refused():
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    for tx in (adam_tx.adamw(1e-3), interop.keras.from_config(KERAS_CONFIG | {"use_ema": True})):
        with pytest.raises(ValueError, match="params"):
            tx.update(grads, tx.init(PARAMS))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adam_tx.clip_by_rms(0.0), r"threshold must be in \(0, inf\), got 0"),
        (lambda: adam_tx.clip_by_norm(-1.0), r"max_norm must be in \(0, inf\), got -1"),
        (lambda: adam_tx.scale_by_caution(0.0), r"floor must be in \(0, inf\), got 0"),
        (
            lambda: adam_tx.scale_by_surprise(adam_tx.scale_by_rms(debias=True), threshold=-1.0),
            r"threshold must be in \(0, inf\)",
        ),
        (lambda: adam_tx.in_eigenbasis(adam_tx.scale_by_rms(), every=0), "every must be at least 1, got 0"),
        (lambda: adam_tx.adamc(1e-3, max_learning_rate=0.0), r"max_learning_rate must be in \(0, inf\), got 0"),
        (lambda: adam_tx.schedules.half_life_decay(0.0, 0.9, 10), r"start must be in \(0, 1\), got 0"),
        (lambda: adam_tx.schedules.warmup(1.0, 0), "steps must be at least 1, got 0"),
    ],
)
def test_arguments_of_the_links_on_whole_tensors_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adam_tx.clip_by_rms("1"), "threshold must be a number, a 0-d array or a schedule, got str"),
        (lambda: adam_tx.clip_by_norm(True), "max_norm must be a number, .*got the boolean True"),
        (lambda: adam_tx.soap(1e-3, every=2.5), "every must be a whole number, got float: 2.5"),
        (lambda: adam_tx.schedules.warmup(1.0, float("nan")), "steps must be a whole number, got float"),
        (lambda: adam_tx.decay_weights(0.1, before=1), "decay_weights: got an unexpected keyword argument 'before'"),
        (lambda: adam_tx.adafactor(1e-3, 0.5), "min_dim_size_to_factor must be a whole number, got float"),
        (lambda: adam_tx.adam_mini(1e-3, eps=None), "eps must be a number, a 0-d array or a schedule, got NoneType"),
        (lambda: adam_tx.cautious("adam"), "a transformation is needed.*got 'adam'"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_novograd_calls_its_decay_by_its_own_name():
    with pytest.raises(ValueError, match=r"b2 must be in \[0, 1\), got 1"):
        adam_tx.novograd(1e-3, b2=1.0)


@pytest.mark.parametrize("mask", [{"dense": {"kernel": True}}, [True], {"dense": {"kernel": np.ones((2, 3), bool)}}])
def test_a_mask_of_another_tree_is_named(mask):
    tx = adam_tx.decay_weights(0.1, mask)
    with pytest.raises(ValueError, match="mask must be a tree of booleans"):
        update(tx, PARAMS)


def test_a_surprise_refuses_the_state_of_another_chain():
    tx = adam_tx.scale_by_surprise(adam_tx.scale_by_rms(debias=True))
    with pytest.raises(ValueError, match=r"keyed \['count', 'scale_by_rms'\], but a EmptyState came"):
        tx.update(PARAMS, optax.EmptyState(), grad=PARAMS)


def test_a_basis_for_a_leaf_that_was_absent_is_missed_by_name():
    tx = adam_tx.soap(1e-3)
    with pytest.raises(ValueError, match=r"leaf \['a'\] has shape \(2, 2\), but its basis is that of another"):
        tx.update({"a": jnp.ones((2, 2))}, tx.init({"a": None}), {"a": jnp.ones((2, 2))})


@pytest.mark.parametrize("block", [(2,), (2, 2), (3, 1), (-1, 1), (0, 1), (1.0, 1.0), None])
def test_a_block_that_does_not_divide_its_leaf_names_both(block):
    tx = adam_tx.scale_by_block_rms(block=lambda *_: block)
    with pytest.raises(ValueError, match=r"leaf \['dense'\]\['\w+'\] of shape .* cannot be cut into blocks of shape"):
        tx.init(PARAMS)


@pytest.mark.parametrize("axes", [(0, 0), (0, 2), (0,), (-2, -1)])
def test_axes_that_a_leaf_does_not_have_are_named(axes):
    tx = adam_tx.scale_by_row_column_rms(axes=lambda _, shape: axes if len(shape) == 2 else None)
    with pytest.raises(ValueError, match=r"leaf \['dense'\]\['kernel'\] of shape \(2, 3\) cannot be factored along"):
        tx.init(PARAMS)


def test_an_eigenbasis_of_an_axis_that_is_not_there_is_named():
    tx = adam_tx.in_eigenbasis(adam_tx.scale_by_rms(), axes=lambda *_: (1,))
    with pytest.raises(ValueError, match=r"leaf \['dense'\]\['bias'\] of shape \(3,\) has no axes \(1,\)"):
        tx.init(PARAMS)


@pytest.mark.parametrize("make", [adam_tx.soap, adam_tx.adafactor, adam_tx.adam_mini, adam_tx.novograd])
def test_a_state_of_another_shape_names_the_leaf(make):
    tx = make(1e-3)
    grads = {"dense": {"kernel": jnp.zeros((5, 7)), "bias": jnp.zeros(3)}}
    with pytest.raises(ValueError, match=r"leaf \['dense'\]\['kernel'\]"):
        tx.update(grads, tx.init(PARAMS), grads)


def test_a_surprise_needs_a_second_moment_to_be_measured_against():
    with pytest.raises(
        ValueError, match=r"scale_by_momentum keeps no debiased average.*give scale_by_rms\(debias=True\)"
    ):
        adam_tx.scale_by_surprise(adam_tx.scale_by_momentum(debias=True))
    with pytest.raises(ValueError, match="scale_by_rms keeps no debiased average"):
        adam_tx.scale_by_surprise(adam_tx.scale_by_rms())


@pytest.mark.parametrize(
    "link", [adam_tx.decay_weights(0.1), adam_tx.scale_by_trust_ratio()], ids=["decay_weights", "trust_ratio"]
)
def test_links_that_read_the_parameters_ask_for_them(link):
    with pytest.raises(ValueError, match=r"needs params: call tx.update\(updates, state, params\)"):
        link.update(PARAMS, link.init(PARAMS))


def test_torch_pairs_are_checked():
    with pytest.raises(ValueError, match=r"eps=1e-08 cannot be honoured: it must be a pair"):
        interop.torch.from_param_group(TORCH_ADAFACTOR | {"eps": 1e-8}, "Adafactor")
    with pytest.raises(ValueError, match=r"beta2_decay=0\.8 cannot be honoured"):
        interop.torch.from_param_group(TORCH_ADAFACTOR | {"beta2_decay": 0.8}, "Adafactor")


@pytest.mark.parametrize("make", [lambda: adam_tx.adam(1e-3), lambda: adam_tx.guard(adam_tx.adam(1e-3))])
def test_plain_dicts_as_a_checkpoint_gives_them_are_refused_with_the_way_to_restore_it(make):
    def dicts(tree):
        parts = tree._asdict() if hasattr(tree, "_asdict") else tree
        return {name: dicts(part) for name, part in parts.items()} if isinstance(parts, dict) else parts

    tx, params = make(), {"w": jnp.ones(2)}
    with pytest.raises(
        ValueError, match=r"[rR]estore checkpoints into tx.init\(params\), without which they give plain dicts"
    ):
        tx.update(params, dicts(tx.init(params)), params)
