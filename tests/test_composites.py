"""Every composite hands on every fact of the link inside, or says why not; what a chain refuses, it refuses inside all.

A composite is a class of links that holds others. They are found, and not listed: one that `COMPOSITES` does not make
fails here, and so does a fact for which `PROBES` has no link.
"""

import dataclasses
import importlib
import pkgutil

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import adam_tx
from adam_tx._core.abstract_link import AbstractLink
from adam_tx._core.facts import Facts

R, M = adam_tx.scale_by_rms, adam_tx.scale_by_momentum
CLIP = adam_tx.clip_by_norm(1.0)
TERMINAL = adam_tx.master_weights()
ONE = adam_tx.scale_by_learning_rate(1.0, flip_sign=False)  # passes everything on
GRAD = [jnp.array([1.0]), jnp.array([-2.0])]


class Unturned(adam_tx.Basis):
    """The basis of the parameters."""

    def axes(self, path, shape):
        return ()


class Own(adam_tx.Wrapper):
    """A wrapper as a user writes it, which does nothing itself."""

    def __init__(self, inner):
        super().__init__(inner, name="own")

    def update_leaves(self, leaves, updates, state):
        emitted, inner = self.run_inner(leaves, updates, self.fields(state).inner)
        return emitted, self.state(inner)


@adam_tx.optimizer
def own(inner):
    return Own(inner)


@adam_tx.link(slots={"seen": adam_tx.Slot("gradient")})
def plain():
    """A link with no fact to hand on."""
    return adam_tx.Rule(lambda now, updates, seen: (updates, seen + updates))


COMPOSITES = {
    "Chain": {
        "chain": adam_tx.chain,
        "chain, behind another": lambda tx: adam_tx.chain(ONE, tx),
    },
    "Parallel": {"parallel": adam_tx.parallel},
    "WithGradient": {
        "with_gradient, a function": lambda tx: adam_tx.with_gradient(tx, lambda grad, updates: grad),
        "with_gradient, a link": lambda tx: adam_tx.with_gradient(tx, ONE),
    },
    "OnDecayedWeights": {"on_decayed_weights": lambda tx: adam_tx.on_decayed_weights(tx, 0.0)},
    "InBasis": {
        "in_basis": lambda tx: adam_tx.in_basis(tx, Unturned()),
        "in_eigenbasis": adam_tx.in_eigenbasis,
    },
    "Surprise": {"scale_by_surprise": lambda tx: adam_tx.scale_by_surprise(R(0.5, debias=True), tx)},
    "Guard": {
        "guard": adam_tx.guard,
        "guard, deviations": lambda tx: adam_tx.guard(tx, deviations=4.0),
        "guard, loss scale": lambda tx: adam_tx.guard(tx, loss_scale=adam_tx.LossScale(initial=1.0)),
        "guard, gradient": lambda tx: adam_tx.guard(tx, watch="gradient"),
    },
    "Monitor": {"monitor": adam_tx.monitor},
    "AverageWeights": {"average_weights": lambda tx: adam_tx.average_weights(tx, name="outer")},
    "Groups": {
        "groups": lambda tx: adam_tx.groups({}, tx),
        "groups, two alike": lambda tx: adam_tx.groups({"0": tx}, default=tx),
    },
    "Stacked": {"stacked": lambda tx: adam_tx.stacked(tx, "*")},
    "Wrapper": {"a user's wrapper": own},
    "Foreign": {
        "optax.chain": lambda tx: adam_tx.as_link(optax.chain(tx)),
        "optax.masked": lambda tx: adam_tx.as_link(optax.masked(tx, True)),
        "optax.flatten": lambda tx: adam_tx.as_link(optax.flatten(tx)),
        "optax.apply_if_finite": lambda tx: adam_tx.as_link(optax.apply_if_finite(tx, 3)),
        "optax.MultiSteps": lambda tx: adam_tx.as_link(optax.MultiSteps(tx, 1).gradient_transformation()),
    },
}
"""By the name of a class, how it is made around a link; all that it is made with changes no update where it can."""

LEAVES = {
    "Leafwise": "made from a rule, it holds no link",
    "ForeignChain": "it has the facts of Foreign, where optax.chain is tried",
}
MAKE = {name: make for of_class in COMPOSITES.values() for name, make in of_class.items()}
CLASS = {name: of_class for of_class, made in COMPOSITES.items() for name in made}
OURS = [name for name in MAKE if CLASS[name] != "Foreign"]
BEFORE_OTHERS = [name for name in OURS if CLASS[name] != "AverageWeights"]  # others may stand behind these in a chain
STRANGERS = [name for name in MAKE if CLASS[name] == "Foreign"]

PROBES = {
    "reads_grad": R(0.9),
    "changes_gradient": CLIP,
    "passes_gradient": CLIP,
    "averages": M(0.9),
    "corrects": adam_tx.bias_correction(0.9),
    "strangers": adam_tx.as_link(optax.scale_by_sign()),
    "elementwise": CLIP,
    "terminal": TERMINAL,
    "keeps_new_params": adam_tx.average_weights(ONE),
    "is_step": adam_tx.step_on_hyperball(0.1),
    "holds_back": adam_tx.guard(M(0.9)),
    "looks_ahead": M(0.9, dtype=adam_tx.storage.EightBit()),
    "branches": adam_tx.in_basis(M(0.9), Unturned()),
    "keeps": ONE,
}
"""For every fact a link of which it is otherwise than of `plain`."""

STATE = "what it keeps is in the state, be the link inside without one"
BETWEEN = "the RMS before it makes something else of the gradient"
UNKNOWN = "not known of a transformation of others"
ALWAYS = {
    ("Chain", "reads_grad"): (False, "it gives its links as the gradient what entered it"),
    ("WithGradient", "reads_grad"): (True, "it makes another gradient of it"),
    ("WithGradient", "keeps"): (True, STATE),
    ("OnDecayedWeights", "keeps"): (True, STATE),
    ("InBasis", "reads_grad"): (True, "the basis is that of the gradient"),
    ("InBasis", "elementwise"): (False, "it turns whole leaves"),
    ("InBasis", "holds_back"): (True, "the link inside counts for itself"),
    ("InBasis", "branches"): (True, "a new basis is found in a branch"),
    ("InBasis", "keeps"): (True, STATE),
    ("Surprise", "reads_grad"): (True, "it measures the gradient"),
    ("Surprise", "elementwise"): (False, "it measures whole leaves"),
    ("Surprise", "changes_gradient"): (False, BETWEEN),
    ("Surprise", "passes_gradient"): (False, BETWEEN),
    ("Surprise", "keeps"): (True, "its RMS keeps an average"),
    ("Guard", "elementwise"): (False, "it looks at all leaves"),
    ("Guard", "holds_back"): (True, "it may leave a step out"),
    **{
        (name, "looks_ahead"): (True, "it has to know whether all is finite")
        for name in ("guard", "guard, deviations", "guard, loss scale")
    },
    ("Guard", "keeps"): (True, STATE),
    ("guard, loss scale", "changes_gradient"): (True, "it divides it"),
    ("Monitor", "keeps"): (True, STATE),
    ("AverageWeights", "keeps"): (True, STATE),
    ("AverageWeights", "keeps_new_params"): (True, "it averages them"),
    ("Parallel", "keeps"): (True, STATE),
    ("Groups", "keeps"): (True, STATE),
    ("Wrapper", "branches"): (True, "it does not say that it runs the link inside in no branch"),
    ("Wrapper", "keeps"): (True, STATE),
    ("Foreign", "changes_gradient"): (True, "nobody has said what it does"),
    ("Foreign", "passes_gradient"): (True, "nobody has said what it does"),
    ("Foreign", "strangers"): (True, "it is one itself"),
    ("Foreign", "elementwise"): (False, UNKNOWN),
    ("Foreign", "holds_back"): (True, "it may leave a step out"),
    ("Foreign", "looks_ahead"): (False, "its links look ahead themselves"),
    ("Foreign", "branches"): (False, "its links look ahead themselves"),
    ("Foreign", "keeps"): (True, STATE),
}
"""By class or name, and fact, what it says of itself whatever is inside, and why."""

REFUSED = {
    ("Parallel", "terminal"): "nothing may change",
    ("Parallel", "keeps_new_params"): "nothing may change",
    ("Surprise", "keeps_new_params"): "nothing may change",
    ("InBasis", "keeps_new_params"): "reads the parameters",
    ("OnDecayedWeights", "terminal"): "cannot see decayed ones",
    ("InBasis", "terminal"): "reads the parameters",
    ("Surprise", "terminal"): "nothing may change",
    ("Parallel", "is_step"): "nothing may change",
    ("InBasis", "is_step"): "reads the parameters",
    ("Surprise", "is_step"): "nothing may change",
}
"""By class and fact, why it takes no link of which that is so."""

PAIRS = [(name, fact) for name in MAKE for fact in PROBES]
each_pair = pytest.mark.parametrize(("name", "fact"), PAIRS)
each_of_ours = pytest.mark.parametrize("name", OURS)
NEUTRAL = plain()


def found():
    """The classes of links in the package."""
    for module in pkgutil.walk_packages(adam_tx.__path__, "adam_tx."):
        importlib.import_module(module.name)
    waiting, classes = [AbstractLink], []
    while waiting:
        below = waiting.pop().__subclasses__()
        waiting += below
        classes += [of.__name__ for of in below if of.__module__.partition(".")[0] == "adam_tx"]
    return classes


def missing(wanted, known, advice):
    """What to do about those that are not known."""
    return [f"{name}: {advice}" for name in wanted if name not in known]


def unknown_composites(classes):
    advice = "add it to COMPOSITES, with a function that makes one around a given link, or to LEAVES if it holds none"
    return missing(classes, COMPOSITES | LEAVES, advice)


def unknown_facts(facts):
    return missing(facts, PROBES, "add a link that has it to PROBES; what does not hand it on goes to ALWAYS")


def test_every_composite_of_the_package_is_tried():
    assert not unknown_composites(found())
    assert not missing(COMPOSITES, found(), "there is no such class any more")


def test_every_fact_is_tried():
    names = [field.name for field in dataclasses.fields(Facts)]
    assert not unknown_facts(names)
    assert not missing(PROBES, names, "there is no such fact any more")
    for name, probe in PROBES.items():
        assert value(probe, name) != value(NEUTRAL, name) == getattr(Facts(), name)


def test_a_new_composite_and_a_new_fact_are_missed():
    assert "add it to COMPOSITES" in unknown_composites(["Chain", "Leafwise", "New"])[0]
    assert "add a link that has it to PROBES" in unknown_facts(["terminal", "new"])[0]


def value(tx, fact):
    return getattr(tx.implementation.facts, fact)


def always(name, fact):
    return ALWAYS.get((name, fact)) or ALWAYS.get((CLASS[name], fact))


def agrees(name, fact, composite, inside):
    """Whether a composite says of a fact what it should; of what is a tuple all must be there that is inside."""
    said = value(composite, fact)
    if always(name, fact) is not None:
        expected, _ = always(name, fact)
        return bool(said) == bool(expected)
    handed_on = value(inside, fact)
    if fact == "averages":
        alone = name != "optax.masked"  # what is masked out comes out as it came in
        said = tuple(average._replace(held_back="", alone=average.alone or not alone) for average in said)
    return set(map(repr, handed_on)) <= set(map(repr, said)) if isinstance(said, tuple) else said == handed_on


def check(name, fact):
    """That a composite says what it should of a fact, be it so inside or not."""
    make, probe = MAKE[name], PROBES[fact]
    why = REFUSED.get((CLASS[name], fact))
    if why is not None:
        with pytest.raises(ValueError, match=why):
            make(probe)
        return
    for inside in (probe, NEUTRAL):
        if CLASS[name] == "InBasis" and next(inside.implementation.basis_obstacles(), None):
            continue
        assert agrees(name, fact, make(inside), inside), (
            f"{name}: of {fact} it says {value(make(inside), fact)} around {inside!r}, of which it is "
            f"{value(inside, fact)}. Take the facts from `combined`; if it is meant, write down why in ALWAYS."
        )


@each_pair
def test_a_composite_hands_on_a_fact_or_says_why_not(name, fact):
    check(name, fact)


@pytest.mark.parametrize(("name", "fact"), [pair for pair in PAIRS if (CLASS[pair[0]], pair[1]) not in REFUSED])
def test_a_fact_that_a_composite_drops_is_noticed(name, fact, monkeypatch):
    """Each composite by itself says of the fact what it would say if it forgot it."""
    of_class = type(MAKE[name](NEUTRAL).implementation)
    expected, _ = always(name, fact) or (value(PROBES[fact], fact), "")
    default = getattr(Facts(), fact)
    forgotten = value(PROBES[fact], fact) if bool(expected) == bool(default) else default
    make = of_class.__init__

    def forgetful(self, *args, **kwargs):
        make(self, *args, **kwargs)
        if type(self) is of_class:
            self.facts = dataclasses.replace(self.facts, **{fact: forgotten})

    monkeypatch.setattr(of_class, "__init__", forgetful)
    with pytest.raises(AssertionError, match=f"{name}: of {fact}"):
        check(name, fact)


def hyperparams_of(tx, name="bias_correction"):
    return {key: value for key, value in tx.links[name].hyperparams.items() if value is not None}


def corrected(*links):
    """A chain with a correction at its end, and the warning if it counts what may not reach the average."""
    held_back = [average for tx in links for average in value(tx, "averages") if average.held_back]
    if not held_back:
        return adam_tx.chain(*links)
    with pytest.warns(UserWarning, match=r"may leave updates out, which the correction of b1 .* Put it inside"):
        return adam_tx.chain(*links)


def first_update(tx):
    return np.concatenate(tx.update(GRAD, tx.init(GRAD), GRAD)[0])


@pytest.mark.parametrize("name", BEFORE_OTHERS)
def test_a_correction_that_names_no_decays_corrects_both_moments_behind_every_composite(name):
    links = [R(0.999), MAKE[name](M(0.9))]
    tx = corrected(*links, adam_tx.bias_correction())
    assert hyperparams_of(tx) == {"b1": 0.9, "b2": 0.999}
    named = corrected(*links, adam_tx.bias_correction(0.9, 0.999))
    assert np.array_equal(first_update(tx), first_update(named))
    if name not in ("in_eigenbasis", "scale_by_surprise"):
        plain_chain = adam_tx.chain(R(0.999), M(0.9), adam_tx.bias_correction())
        assert np.array_equal(first_update(tx), first_update(plain_chain))
        np.testing.assert_allclose(first_update(tx), [1.0, -1.0], rtol=1e-6)  # epsilon 1e-8 and five roundings


@pytest.mark.parametrize("name", MAKE)
def test_no_average_is_corrected_twice_behind_or_inside_any_composite(name):
    make = MAKE[name]
    for links in (
        [make(M(0.9, debias=True)), adam_tx.bias_correction(0.9)],
        [make(adam_tx.chain(M(0.9), adam_tx.bias_correction())), adam_tx.bias_correction(0.9)],
        [M(0.9, debias=True), make(adam_tx.bias_correction(0.9))],
        [M(0.9), make(adam_tx.bias_correction(0.9)), adam_tx.bias_correction(0.9)],
    ):
        with pytest.raises(ValueError, match="b1 would correct the momentum of scale_by_momentum twice"):
            adam_tx.chain(*links)
    if name in OURS:
        with pytest.raises(ValueError, match="or it is corrected already"):
            adam_tx.chain(make(M(0.9, debias=True)), adam_tx.bias_correction())


@pytest.mark.parametrize("name", MAKE)
def test_no_average_is_corrected_by_another_decay_behind_or_inside_any_composite(name):
    make = MAKE[name]
    for links in ([make(M(0.9)), adam_tx.bias_correction(0.5)], [M(0.9), make(adam_tx.bias_correction(0.5))]):
        with pytest.raises(ValueError, match=r"b1 is 0\.5, but the momentum of scale_by_momentum .* decays by 0\.9"):
            adam_tx.chain(*links)


@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize("name", ["alone", *BEFORE_OTHERS])
def test_a_correction_that_names_no_decays_is_refused_behind_what_cannot_be_seen_into(name, stranger):
    unseen = MAKE[stranger](M(0.9))
    if CLASS.get(name) == "InBasis":
        with pytest.raises(ValueError, match="cannot follow a change of basis"):
            MAKE[name](unseen)
        return
    first = unseen if name == "alone" else MAKE[name](unseen)
    with pytest.raises(ValueError, match=f"what {unseen.name} averages is not known.*Name the decays"):
        adam_tx.chain(R(0.999), first, adam_tx.bias_correction())
    if stranger == "optax.masked":
        with pytest.raises(ValueError, match="in other groups of leaves. Give that link debias=True instead"):
            adam_tx.chain(R(0.999), first, adam_tx.bias_correction(0.9, 0.999))
        unseen = MAKE[stranger](M(0.9, debias=True))
        adam_tx.chain(R(0.999), unseen if name == "alone" else MAKE[name](unseen), adam_tx.bias_correction(b2=0.999))
        return
    corrected(R(0.999), first, adam_tx.bias_correction(0.9, 0.999))  # that is the way out


@pytest.mark.parametrize("name", [name for name in MAKE if CLASS[name] not in ("Surprise", "AverageWeights")])
def test_what_changes_the_gradient_is_refused_inside_every_composite_before_a_link_that_reads_it_raw(name):
    make = MAKE[name]
    chains = [[make(CLIP), M(0.9), R(0.999)], [adam_tx.chain(make(CLIP), M(0.9)), R(0.999)]]
    chains += [[ONE, make(CLIP), R(0.999)], [make(adam_tx.chain(CLIP, ONE)), R(0.999)]]
    for links in chains:
        with pytest.raises(ValueError, match="reads the gradient as it entered the chain"):
            adam_tx.chain(*links)


READERS = [name for name in MAKE if CLASS[name] != "Chain"]  # its links read what it is given


@pytest.mark.parametrize("name", READERS)
def test_a_link_that_reads_the_raw_gradient_inside_a_composite_is_known_to_do_so(name):
    with pytest.raises(ValueError, match="'clip_by_norm' stands first"):
        adam_tx.chain(CLIP, M(0.9), MAKE[name](R(0.999)))


W = adam_tx.groups  # of the leaves "w" and all others


@pytest.mark.parametrize(
    "links",
    [
        [W({"w": M(0.9)}, default=optax.identity())],
        [W({"w": M(0.9)}, default=M(0.5))],
        [W({"w": M(0.9)}, default=M(0.9, debias=True))],
        [W({"w": M(0.9)}, default=adam_tx.chain(M(0.9), adam_tx.bias_correction()))],
        [adam_tx.parallel(M(0.9), ONE)],
        [adam_tx.as_link(optax.masked(M(0.9), {"w": True, "b": False}))],
        [adam_tx.as_link(optax.partition({"w": M(0.9), "b": M(0.5)}, {"w": "w", "b": "b"}))],
    ],
    ids=repr,
)
def test_an_average_of_some_leaves_or_of_one_of_several_terms_is_not_corrected_with_all_else(links):
    with pytest.raises(ValueError, match="beside scale_by_momentum, in parallel or in other groups of leaves"):
        adam_tx.chain(*links, adam_tx.bias_correction(0.9))
    with pytest.raises(ValueError, match=r"which momentum to correct is not clear|averages is not known"):
        adam_tx.chain(*links, adam_tx.bias_correction())


def test_an_average_that_all_groups_have_is_corrected_once_for_all():
    tx = adam_tx.chain(W({"w": M(0.9)}, default=M(0.9)), adam_tx.bias_correction())
    updates, _ = tx.update(params := {"w": GRAD[0], "b": GRAD[1]}, tx.init(params))
    np.testing.assert_allclose(np.concatenate([updates["w"], updates["b"]]), [1.0, -2.0], rtol=1e-6)


@pytest.mark.parametrize(
    "unlike",
    [
        W({"w": adam_tx.bias_correction(0.9)}, default=optax.identity()),
        adam_tx.parallel(adam_tx.bias_correction(0.9), ONE),
    ],
    ids=repr,
)
def test_what_is_corrected_in_one_of_several_is_not_corrected_again(unlike):
    with pytest.raises(ValueError, match="b1 would correct the momentum of scale_by_momentum twice"):
        adam_tx.chain(M(0.9), unlike, adam_tx.bias_correction(0.9))


def test_a_decay_that_one_group_corrects_by_must_be_that_of_the_average():
    unlike = W({"w": adam_tx.bias_correction(0.5)}, default=optax.identity())
    with pytest.raises(ValueError, match=r"b1 is 0\.5, but the momentum of scale_by_momentum .* decays by 0\.9"):
        adam_tx.chain(M(0.9), unlike)


@pytest.mark.parametrize(
    "make", [adam_tx.parallel, adam_tx.guard, lambda tx: W({}, tx)], ids=["parallel", "guard", "groups"]
)
def test_a_correction_that_names_no_decays_and_finds_none_refuses_to_begin(make):
    with pytest.raises(ValueError, match=r"without decays takes them from the links before it"):
        adam_tx.chain(M(0.9), make(adam_tx.bias_correction())).init(GRAD)


@each_of_ours
def test_a_terminal_link_inside_a_composite_is_the_last_of_a_chain_or_refused(name):
    if (CLASS[name], "terminal") not in REFUSED:
        inside = MAKE[name](TERMINAL)
        adam_tx.chain(ONE, inside)
        with pytest.raises(ValueError, match="nothing may change it"):
            adam_tx.chain(inside, ONE)


@each_of_ours
def test_what_reads_the_parameters_inside_a_composite_is_refused_in_another_basis(name):
    if CLASS[name] == "InBasis":
        return  # it refuses it itself
    with pytest.raises(ValueError, match=r"reads the parameters|basis"):
        adam_tx.in_basis(MAKE[name](adam_tx.add_decayed_weights(0.1)), Unturned())


def chain(inner):
    """A wrapper that may leave updates out, as Optax's of this name does not."""

    def update(updates, state, params=None):
        finite = jnp.all(jnp.isfinite(updates))
        return lax.cond(finite, inner.update, lambda updates, state, params: (updates, state), updates, state, params)

    return optax.GradientTransformation(inner.init, update)


def test_a_wrapper_of_ones_own_is_not_taken_for_one_of_optax_by_its_name():
    for make, held_back in ((chain, "chain"), (optax.chain, "")):
        link = adam_tx.as_link(make(adam_tx.scale_by_momentum(0.9))).implementation
        assert [average.held_back for average in link.facts.averages] == [held_back]
