"""Roles and keys are objects inside, and text to the outside: one is the other, for all that a state can hold."""

import ast
import inspect
import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import OPTIMIZERS

import adam_tx
from adam_tx import export_state, import_state, migrate
from adam_tx.state.optax_states import FIELDS
from adam_tx.state.roles import COUNTS, MU, NU, RECIPES, ROLES, SUM_OF_SQUARES, WEIGHT_MU_READ, Key, Role

PARAMS = {"kernel": jnp.ones((4, 2)), "b": {"x": jnp.ones(4)}}
PACKAGE = pathlib.Path(inspect.getfile(adam_tx)).parent


def exported(tx):
    return export_state(tx.init(PARAMS), PARAMS, tx)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_what_an_optimizer_exports_is_read_as_what_it_is_and_written_back(name):
    paths = {"", "kernel", "b/x"}
    for text in exported(OPTIMIZERS[name]()):
        key = Key.parse(text)
        assert str(key) == text
        assert key.path in paths
        assert Role.parse(str(key.role)) == key.role


@pytest.mark.parametrize(
    "role", [*ROLES, *COUNTS, *RECIPES.values(), *(f.role for m in FIELDS.values() for f in m.values())], ids=str
)
def test_every_role_in_a_table_is_that_of_its_text(role):
    assert Role.parse(str(role)) == role
    for changed in (role.numbered(2), role.marked(["scaled", "steps"]), role.numbered(3).marked(["basis"])):
        assert Role.parse(str(changed)) == changed


@hypothesis.given(st.text(alphabet="ab_2o f./@codesrt\n", max_size=24))
def test_any_text_is_a_key_and_a_role_that_are_written_as_it_is(text):
    assert str(Key.parse(text)) == text
    assert str(Role.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("mu/a/b", Key(MU, "a/b")),
        ("count", Key(Role("count"))),
        ("mu_2_of_scaled_steps.rate", Key(Role("mu", "scaled_steps", 2), about="rate")),
        ("nu.decay/a", Key(NU, "a", "decay")),
        ("nu/a@codes_by_128", Key(NU, "a", stored="codes_by_128")),
        ("nu@scales", Key(NU, stored="scales")),
        ("sum_of_squares/a", Key(SUM_OF_SQUARES, "a")),
        ("guard.skipped_in_a_row", Key(Role("guard.skipped_in_a_row"))),
        ("inject_hyperparams.hyperparams.decay", Key(Role("inject_hyperparams.hyperparams.decay"))),
    ],
)
def test_a_key_says_what_it_is_of_and_about(text, key):
    assert Key.parse(text) == key


def test_a_role_with_a_learning_rate_inside_knows_what_it_were_without():
    assert Role.parse("trace_of_scaled_steps").without_steps == Role.parse("trace_of_scaled")
    assert Role.parse("trace_of_steps").without_steps == Role.parse("trace")
    assert Role.parse("steps").without_steps == Role.parse("steps")


def test_what_several_links_or_frameworks_have_in_common_is_in_the_docs():
    told = export_state.__doc__
    missing = [str(role) for role in ROLES if not role.has_owner and str(role) not in told]
    assert not missing, f"export_state should say what {missing} are"


def test_what_a_look_ahead_is_debiased_by_is_what_other_frameworks_look_for():
    look_ahead = adam_tx.scale_by_momentum(nesterov=True, read=0.5, debias=True)
    assert str(WEIGHT_MU_READ) in exported(adam_tx.chain(look_ahead))


def test_what_a_weight_is_does_not_hang_on_the_name_of_its_decay():
    def behind(now, updates, grad, mu):
        mu = mu + now.decay.step * (updates - mu)
        return mu / now.read.weight, mu

    def mine(decay: adam_tx.Decay, read: adam_tx.Decay):
        return adam_tx.Rule(behind, debias=["read"])

    link = adam_tx.link(slots={"mu": adam_tx.Slot("gradient", decay="decay")}, debiases=("decay", "read"))(mine)
    keys = exported(adam_tx.chain(link(0.9, 0.5)))
    assert str(WEIGHT_MU_READ) not in keys
    assert "mine.weight_read" in keys


class Remembers(adam_tx.Wrapper):
    """A wrapper that is no change of basis, with a field called like a part of one."""

    def __init__(self, inner):
        super().__init__(inner, name="remembers", keeps=("memory",))

    def init_own(self, leaves):
        return {"memory": leaves.tree([jnp.zeros_like(leaf) for leaf in leaves.initial])}

    def update_leaves(self, leaves, updates, state):
        fields = self.fields(state)
        emitted, inner = self.run_inner(leaves, updates, fields.inner)
        return emitted, self.state(inner, memory=fields.memory)


@adam_tx.optimizer
def remembers(inner):
    return Remembers(inner)


def test_what_is_called_like_a_part_of_a_basis_lies_as_its_parameter_does():
    mesh = jax.sharding.AbstractMesh((2,), ("data",))
    kernel = jax.ShapeDtypeStruct((4, 4), "float32")
    spec = jax.sharding.PartitionSpec("data")
    places = adam_tx.state_sharding(remembers(adam_tx.sgd(0.1)), kernel, specs=spec, mesh=mesh)
    assert places.memory.spec == spec


def test_only_one_file_takes_roles_apart():
    """Text of roles and keys is for people and files; what the package does hangs on the objects."""
    splits = {"partition", "rpartition", "removesuffix", "fullmatch"}
    for path in [*(PACKAGE / "state").glob("*.py"), *(PACKAGE / "interop").glob("_*state.py")]:
        tree = ast.parse(path.read_text())
        called = {
            node.func.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        if path.name != "roles.py":
            assert "re" not in imported, path
            assert not called & splits - ({"partition"} if path.name == "numbered.py" else set()), path


# nothing hangs on a name: not on an argument's, and not on a slot's


def test_a_hyperparameter_of_the_recipe_may_be_called_decay():
    tx = optax.inject_hyperparams(optax.rmsprop)(0.1, decay=0.9)
    state = tx.init(PARAMS)
    told = []
    back = import_state(tx, PARAMS, exported(tx), report=told.append)
    assert not told
    assert back.hyperparams["decay"] == state.hyperparams["decay"]


@pytest.mark.parametrize("name", ["rate", "decay", "codes"])
def test_a_slot_may_be_called_like_what_is_said_about_others(name):
    slots = {name: adam_tx.Slot("gradient")}

    def odd():
        apply = {
            "rate": lambda now, updates, rate: (rate, updates + rate),
            "decay": lambda now, updates, decay: (decay, updates + decay),
            "codes": lambda now, updates, codes: (codes, updates + codes),
        }
        return adam_tx.Rule(apply[name])

    tx = adam_tx.link(slots=slots)(odd)()
    _, state = tx.update(PARAMS, tx.init(PARAMS))
    back = import_state(tx, PARAMS, export_state(state, PARAMS, tx))
    np.testing.assert_array_equal(getattr(back, name)["kernel"], PARAMS["kernel"])


def nu_walk():
    """A transformation of a user, whose name begins like the role of squares."""

    def init(params):
        return {"last": params}

    def update(updates, state, params=None):
        return updates, {"last": updates}

    return optax.GradientTransformation(init, update)


def test_what_a_transformation_keeps_is_of_squares_only_if_that_is_known():
    tx = nu_walk()
    down = {"kernel": -PARAMS["kernel"], "b": {"x": -PARAMS["b"]["x"]}}
    _, state = tx.update(down, tx.init(PARAMS))
    back = import_state(tx, PARAMS, export_state(state, PARAMS, tx))
    np.testing.assert_array_equal(back["last"]["kernel"], down["kernel"])


def test_a_sum_of_squares_of_scaled_gradients_follows_exactly():
    scaled = optax.chain(optax.scale(2.0), optax.scale_by_rss())
    plain = optax.scale_by_rss()
    _, state = plain.update(PARAMS, plain.init(PARAMS))
    moved = migrate(state, plain, scaled, PARAMS, report=None)
    _, wanted = scaled.update(PARAMS, scaled.init(PARAMS))
    start = 0.1  # what both begin with is not of gradients
    squares = wanted[1].sum_of_squares["kernel"] - start
    np.testing.assert_allclose(moved[1].sum_of_squares["kernel"] - 4 * start, squares, rtol=1e-6)
