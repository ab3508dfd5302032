"""A link of one's own is a declaration: what it may say, what follows from it, and what is refused by name."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adam_tx
from adam_tx import Decay, Finite, NonNegative, Rule, Slot
from adam_tx.numerics import abs_sq, ema, root_and_divide

GRAD = {"w": jnp.array([[3.0, -4.0]]), "b": jnp.array([1.0, 2.0, 2.0])}


def update(link, grad=GRAD, params=GRAD):
    return link.update(grad, link.init(params), params, grad=grad)


def declare(rule, slots=None, decay_type=Decay, **options):
    """A link with this rule, and the hyperparameters `decay` and `eps`."""
    said = {key: options.pop(key) for key in ("numbers", "debiases") if key in options}

    def mine(decay: decay_type = 0.9, eps: NonNegative = 1e-8):
        return Rule(rule, **options)

    return adam_tx.link(slots=slots or {}, **said)(mine)()


MU = {"mu": Slot("gradient", decay="decay")}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: declare(lambda now, updates, nu: updates),
            r"mine: its rule reads \['nu'\]; it may read now, .*\[\]",
        ),
        (lambda: declare(lambda updates: updates, {"mu": "gradient"}), "slot mu must be a Slot of one of the kinds"),
        (lambda: declare(lambda updates: updates, {"mu": Slot("first")}), "slot mu must be a Slot of one of the kinds"),
        (
            lambda: declare(lambda updates: updates, {"mu": Slot("gradient", decay="dec")}),
            "slot mu says that it averages by 'dec'; that must be a hyperparameter",
        ),
        (lambda: declare(lambda updates: updates, {"mu": Slot("params", decay="decay")}), "no copy of the parameters"),
        (lambda: declare(lambda updates: updates, {"count": Slot("gradient")}), "'count' cannot name a slot"),
        (lambda: declare(lambda updates: updates, {"class": Slot("gradient")}), "'class' cannot name a slot"),
        (
            lambda: declare(lambda updates: updates, {"weight": Slot("gradient")}, debiases=("decay",)),
            "'weight' cannot name a slot",
        ),
        (lambda: declare(lambda updates: updates, MU, decay_type=NonNegative), "annotate it with Decay"),
        (
            lambda: declare(lambda updates: updates, debiases=("decya",)),
            r"debiases by \['decya'\], which must be among",
        ),
        (lambda: declare(lambda updates: updates, debias=["decay"]), r"Rule\(debias=...\) names \['decay'\]"),
        (lambda: declare(lambda updates: updates, start={"nu": 1.0}), r"Rule\(start=...\) names \['nu'\]"),
        (lambda: declare(lambda updates: updates, numbers={"d": 1.0}), "a link with numbers has a Rule"),
        (
            lambda: declare(lambda s: s, statistics={"s": adam_tx.total(abs_sq, over="leaf")}),
            "the statistic 's' is the total over 'leaf'",
        ),
        (
            lambda: declare(lambda s: s, statistics={"s": adam_tx.mean(lambda updates: updates, over="tree")}),
            "over the tree only a total",
        ),
        (
            lambda: declare(lambda updates: updates, statistics={"updates": adam_tx.total(lambda grad: grad)}),
            "the statistic 'updates' has the name of something else",
        ),
        (lambda: adam_tx.link(lambda: Rule(lambda updates: updates)), "a function with a name"),
    ],
)
def test_a_declaration_that_cannot_be_meant_is_refused_by_name(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_arguments_that_cannot_be_given_by_name_are_refused():
    def variadic(*decays):
        return Rule(lambda updates: updates)

    with pytest.raises(TypeError, match=r"variadic: .* unlike \['decays'\]"):
        adam_tx.link(variadic)

    def counted(count: NonNegative = 1.0):
        return Rule(lambda updates: updates)

    with pytest.raises(TypeError, match="counted: name the argument 'count' otherwise"):
        adam_tx.link(counted)


def test_what_is_no_rule_or_no_link_is_refused():
    @adam_tx.link
    def nothing():
        return None

    with pytest.raises(TypeError, match="nothing must return an adam_tx.Rule, got None"):
        nothing()

    @adam_tx.optimizer
    def foreign():
        return optax.sgd(1.0)

    with pytest.raises(TypeError, match="foreign must return a link.*adam_tx.as_link makes one of it"):
        foreign()


@pytest.mark.parametrize(
    ("rule", "slots", "message"),
    [
        (lambda updates, mu: updates, MU, r"leaf \['b'\] its rule must return updates and mu .* returned \[\(3,\)\]"),
        (lambda updates, mu: (updates, jnp.sum(mu)), MU, r"of the shapes \[\(3,\), \(3,\)\], but it returned"),
        (lambda updates, mu: (updates, None), MU, "but it returned .*None"),
        (lambda updates: (updates, updates), {}, "its rule must return updates of the shapes"),
        (lambda now, updates: updates * now.decay, {}, "now: a decay is no number; use its .value"),
        (lambda now, updates: updates * now.decay.weight, {}, r"Rule\(debias=...\); name it there"),
        (lambda now, updates: updates * now.momentum, {}, "the link has no hyperparameter 'momentum'"),
    ],
)
def test_what_a_rule_returns_is_checked_leaf_by_leaf(rule, slots, message):
    link = declare(rule, slots)
    with pytest.raises((TypeError, ValueError, AttributeError), match=message):
        update(link)


@pytest.mark.parametrize(
    ("rule", "slots", "came"),
    [(lambda updates: 0.5, {}, r"\['float'\]"), (lambda updates, mu: (updates, 0.5), MU, r"\[\(\), 'float'\]")],
)
def test_a_rule_of_a_leaf_without_axes_must_return_arrays(rule, slots, came):
    tx = adam_tx.chain(declare(rule, slots), adam_tx.scale_by_learning_rate(1.0))
    with pytest.raises(ValueError, match=f"mine: for leaf .* but it returned {came}"):
        tx.update(jnp.ones(()), tx.init(jnp.ones(())))


@pytest.mark.parametrize(
    ("rule", "odd"),
    [(lambda *args: args[1], "'*args'"), (lambda now, **kw: kw, "'**kw'"), (lambda now, *, grad: grad, "'grad'")],
)
def test_a_rule_whose_parameters_are_not_given_by_place_is_refused_when_it_is_made(rule, odd):
    with pytest.raises(TypeError, match=re.escape(f"mine: its rule has the parameters [{odd}]; each must be given")):
        declare(rule, {})


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"sign": 5}, "sign=...) must be 1 or -1, got 5"),
        ({"mask": 5}, "mask must be a tree of booleans"),
        ({"correctable": "x"}, "correctable=...) must be a bool, got 'x'"),
        ({"elementwise": None}, "elementwise=...) must be a bool, got None"),
        ({"formula": 3}, "formula=...) must be a str, got 3"),
    ],
    ids=repr,
)
def test_what_no_rule_says_is_refused_when_it_is_made(said, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        declare(lambda updates: updates, {}, **said)


@pytest.mark.parametrize("name", ["now", "updates", "grad", "size"])
def test_numbers_do_not_take_the_place_of_what_the_rule_reads(name):
    @adam_tx.link(numbers={"d": 1.0})
    def mine():
        size = adam_tx.total(lambda grad: abs(grad), over="tree")
        numbers = lambda d: {"d": d, "beside": d, name: d}  # noqa: E731
        return adam_tx.Rule(lambda updates, beside: updates * beside, statistics={"size": size}, numbers=numbers)

    with pytest.raises(ValueError, match=rf"mine: Rule\(numbers=...\) returned \['{name}'\]"):
        update(adam_tx.chain(mine()))


def test_a_slot_whose_blocks_do_not_divide_the_leaf_is_refused():
    link = declare(lambda updates, mu: (updates, mu), MU, shape={"mu": lambda path, shape: (2,)})
    with pytest.raises(ValueError, match=r"mine: leaf \['b'\] of shape \(3,\) cannot have a mu of shape \(2,\)"):
        link.init(GRAD)


def test_an_optimizer_leaves_the_name_of_the_link_that_it_returns_alone():
    base = adam_tx.chain(adam_tx.scale_by_momentum(0.9))

    @adam_tx.optimizer
    def same():
        return base

    assert repr(same()).endswith("same()")
    assert repr(base).startswith("adam_tx.chain(")


def test_numbers_for_the_whole_tree_follow_from_sums_over_it_and_are_read_by_every_leaf():
    """The updates over the largest norm so far."""

    @adam_tx.link(numbers={"largest": 0.0})
    def scale_by_largest_norm(least: NonNegative = 0.0):
        def numbers(now, total, largest):
            return {"largest": jnp.maximum(jnp.maximum(largest, jnp.sqrt(total)), now.least)}

        return Rule(
            lambda updates, largest: updates / largest,
            numbers=numbers,
            statistics={"total": adam_tx.total(abs_sq_of_updates, over="tree")},
        )

    link = scale_by_largest_norm()
    updates, state = update(link)
    size = (9 + 16 + 1 + 4 + 4) ** 0.5
    np.testing.assert_allclose(updates["b"], GRAD["b"] / size, rtol=1e-6)
    halved, state = link.update(jax.tree.map(lambda g: g / 2, GRAD), state)
    np.testing.assert_allclose(halved["w"], GRAD["w"] / 2 / size, rtol=1e-6)
    np.testing.assert_allclose(state.largest, size, rtol=1e-6)


def abs_sq_of_updates(updates):
    return abs_sq(updates)


def test_a_number_may_be_of_either_sign_where_it_says_so():
    @adam_tx.link
    def shift(by: Finite = -1.0):
        return Rule(lambda now, updates: updates + now.by)

    np.testing.assert_array_equal(update(shift())[0]["b"], GRAD["b"] - 1)


def test_a_link_of_ones_own_has_a_state_that_goes_on_in_another_of_its_kind():
    def rule(now, updates, grad, nu):
        nu = ema(nu, abs_sq(grad), now.decay.step)
        return root_and_divide(updates, nu / now.decay.weight, now.eps), nu

    one, other = (
        declare(rule, {"nu": Slot("square", decay="decay")}, debiases="decay", debias=["decay"]) for _ in "ab"
    )
    updates, state = update(one)
    assert type(state) is type(other.init(GRAD))
    np.testing.assert_allclose(updates["b"], jnp.ones(3), rtol=1e-6)
    jax.jit(other.update)(GRAD, state, grad=GRAD)


def test_links_read_out_of_an_undeclared_average_are_not_corrected_in_silence():
    link = declare(lambda now, updates, mu: (mu, ema(mu, updates, now.decay.step)), MU)
    with pytest.raises(ValueError, match="no average that a factor could correct"):
        adam_tx.chain(link, adam_tx.bias_correction(0.9))
