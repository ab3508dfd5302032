"""What comes from a stranger is data: it reads, writes and runs nothing else, and what is wrong with it is said."""

import functools
import importlib
import io
import json
import pathlib
import re
import sys
import zipfile

import catalogue
import h5py
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rebuild import through_json, unknown

import adam_tx
from adam_tx.interop.keras import read_file, write_file

ADAM = {"class_name": "Adam", "config": {"name": "adam"}}
VALUES = [np.int64(3), np.float32(0.1), *[np.full((4, 3), k, np.float32) for k in range(4)]]


def hdf5(change=lambda variables: None, values=VALUES):
    """A file of weights like Keras's, with something changed in the group of the optimizer's variables."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        variables = file.create_group("optimizer/vars")
        for i, value in enumerate(values):
            variables[str(i)] = value
        change(variables)
    return content.getvalue()


def archive(weights, config, compression=zipfile.ZIP_STORED):
    """A `.keras` file of these members."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as made:
        made.writestr("metadata.json", "{}")
        made.writestr("config.json", config)
        made.writestr("model.weights.h5", weights)
    return content.getvalue()


def described(optimizer):
    return json.dumps({"compile_config": {"optimizer": optimizer}})


def instead(name, put):
    """A change that puts something in the place of a variable."""

    def change(variables):
        del variables[name]
        put(variables, name)

    return change


def external(secret):
    def put(variables, name):
        variables.create_dataset(name, (4, 3), np.float32, external=[(str(secret), 0, 48)])

    return instead("2", put)


def virtual(secret):
    def put(variables, name):
        layout = h5py.VirtualLayout((4, 3), np.float32)
        layout[...] = h5py.VirtualSource(str(secret), "there", (4, 3))
        variables.create_virtual_dataset(name, layout)

    return instead("2", put)


def linked(link):
    return instead("2", lambda variables, name: variables.__setitem__(name, link))


@pytest.mark.parametrize("suffix", ["weights.h5", "keras"])
@pytest.mark.parametrize("kind", [external, virtual])
def test_values_that_stand_in_another_file_are_neither_read_nor_written(kind, suffix, tmp_path):
    secret = tmp_path / "secret"
    with h5py.File(secret, "w") as file:
        file["there"] = np.ones((4, 3), np.float32)
    before, evil = secret.read_bytes(), tmp_path / f"evil.{suffix}"
    evil.write_bytes(hdf5(kind(secret)) if suffix == "weights.h5" else archive(hdf5(kind(secret)), described(ADAM)))
    with pytest.raises(ValueError, match=f"{evil}: the values of optimizer/vars/2 stand in another file"):
        read_file(evil)
    with pytest.raises(ValueError, match="stand in another file"):
        write_file(tmp_path / f"made.{suffix}", VALUES, like=evil)
    assert secret.read_bytes() == before
    assert not (tmp_path / f"made.{suffix}").exists()


@pytest.mark.parametrize("kind", [external, virtual])
def test_copies_of_the_variables_of_an_inner_optimizer_are_looked_at_before_they_are_written(kind, tmp_path):
    def change(variables):
        inner = variables.file.create_group("optimizer/inner_optimizer/vars")
        for i in range(2):
            inner[str(i)] = VALUES[i + 4]
        inner["2"] = 0.0
        kind(tmp_path / "secret")(inner)

    evil = tmp_path / "evil.weights.h5"
    evil.write_bytes(hdf5(change))
    (tmp_path / "secret").write_bytes(b"A" * 48)
    with pytest.raises(ValueError, match="inner_optimizer/vars/2 stand in another file"):
        write_file(tmp_path / "made.weights.h5", VALUES, like=evil)
    assert (tmp_path / "secret").read_bytes() == b"A" * 48


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (linked(h5py.SoftLink("/optimizer/vars/3")), "2 is a SoftLink to elsewhere"),
        (linked(h5py.ExternalLink("secret", "there")), "2 is"),
        (
            lambda v: v.file.move("optimizer", "other") or v.file.__setitem__("optimizer", h5py.SoftLink("other")),
            "Soft",
        ),
        (instead("2", lambda v, n: v.create_group(n)), "vars/2 is no array"),
        (instead("2", lambda v, n: v.create_dataset(n, data=h5py.Empty("f4"))), "vars/2 is no array"),
        (instead("2", lambda v, n: v.create_dataset(n, data="text")), "vars/2 has no numbers, but object"),
        (instead("2", lambda v, n: v.create_dataset(n, data=np.zeros(3, "V2"))), "vars/2 has no numbers"),
        (instead("2", lambda v, n: v.create_dataset(n, data=np.zeros(3, [("a", "f4")]))), "vars/2 has no numbers"),
        (lambda v: v.create_group("x"), "of the optimizer's variables it has"),
        (lambda v: v.create_group("-1"), "of the optimizer's variables it has"),
        (instead("2", lambda v, n: None), "of the optimizer's variables it has"),
        (lambda v: v.file.move("optimizer/vars", "a") or v.file.__setitem__("optimizer/vars", 1), "vars is no group"),
    ],
)
def test_what_is_no_plain_array_in_the_file_is_refused(change, problem, tmp_path):
    (tmp_path / "a.weights.h5").write_bytes(hdf5(change))
    with pytest.raises(ValueError, match=f"a.weights.h5: .*{problem}"):
        read_file(tmp_path / "a.weights.h5")


@pytest.mark.parametrize(
    "make",
    [
        lambda v, n: v.create_dataset(n, (2**40,), np.float32),  # never written: not there at all
        lambda v, n: v.create_dataset(n, (4, 3), np.float32),
        lambda v, n: v.create_dataset(n, data=np.zeros(2**20, np.float32), compression="gzip"),
        lambda v, n: v.create_dataset(n, data=[0.0], maxshape=(None,), chunks=(2**20,), compression="gzip"),
    ],
)
def test_more_than_a_file_can_hold_is_not_allocated(make, tmp_path):
    (tmp_path / "a.weights.h5").write_bytes(hdf5(instead("2", make)))
    with pytest.raises(ValueError, match=r"variables would take \d+ bytes, but the file has \d+"):
        read_file(tmp_path / "a.weights.h5")


def test_one_array_under_many_names_counts_each_time(tmp_path):
    def change(variables):
        for i in range(6, 200):
            variables[str(i)] = variables["5"]

    (tmp_path / "a.weights.h5").write_bytes(hdf5(change, [*VALUES[:5], np.ones(10_000, np.float32)]))
    with pytest.raises(ValueError, match="variables would take"):
        read_file(tmp_path / "a.weights.h5")


@pytest.mark.parametrize("at", ["config", "weights"])
def test_an_archive_is_not_unpacked_to_far_more_than_its_size(at, tmp_path):
    weights, config = hdf5(), described(ADAM)
    weights = weights + bytes(2**21) if at == "weights" else weights
    config = config + " " * 2**21 if at == "config" else config
    (tmp_path / "a.keras").write_bytes(archive(weights, config, zipfile.ZIP_DEFLATED))
    with pytest.raises(ValueError, match=r"a.keras: .* unpacked to \d+ bytes, but the file has \d+"):
        read_file(tmp_path / "a.keras")


def test_arrays_that_are_compressed_a_little_are_read(tmp_path):
    rng = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    make = instead("5", lambda v, n: v.create_dataset(n, data=rng, compression="gzip"))
    (tmp_path / "a.weights.h5").write_bytes(hdf5(make))
    np.testing.assert_array_equal(read_file(tmp_path / "a.weights.h5")[1][5], rng)
    with pytest.raises(ValueError, match="vars/5 does not stand in one piece"):
        write_file(tmp_path / "b.weights.h5", [*VALUES[:5], rng], like=tmp_path / "a.weights.h5")


@pytest.mark.parametrize(
    "config",
    [
        "[]",
        "null",
        "5",
        '"text"',
        "{",
        "",
        "\xff",
        "[" * 100_000,
        '{"compile_config": 5}',
        described(None),
        described(5),
    ],
    ids=lambda config: config[:30],
)
def test_a_damaged_configuration_is_a_value_error_with_the_path(config, tmp_path):
    (tmp_path / "a.keras").write_bytes(archive(hdf5(), config))
    with pytest.raises(ValueError, match="a.keras: "):
        read_file(tmp_path / "a.keras")


@settings(deadline=None, derandomize=True, max_examples=100)
@given(data=st.data())
def test_a_damaged_archive_is_a_value_error_or_read_as_before(tmp_path_factory, data):
    whole = bytearray(archive(hdf5(), described(ADAM), zipfile.ZIP_DEFLATED))
    place = tmp_path_factory.getbasetemp() / "damaged.keras"
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    place.write_bytes(whole[: data.draw(st.sampled_from([len(whole), len(whole) // 2, len(whole) - 5]))])
    try:
        found = read_file(place)[1]
    except ValueError:
        return
    assert [value.shape for value in found] == [np.shape(value) for value in VALUES]


@pytest.mark.parametrize("suffix", ["weights.h5", "keras"])
def test_a_file_may_be_written_onto_the_one_that_it_is_like(suffix, tmp_path):
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(hdf5() if suffix == "weights.h5" else archive(hdf5(), described(ADAM)))
    path.chmod(0o640)
    link = tmp_path / f"link.{suffix}"
    link.symlink_to(path)
    config, variables = read_file(path)
    write_file(link, [value + 1 for value in variables], like=path)
    again = read_file(path)
    assert again[0] == config
    for mine, theirs in zip(again[1], variables, strict=True):
        np.testing.assert_array_equal(mine, theirs + 1)
    assert path.stat().st_mode & 0o777 == 0o640
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, link.name}
    assert link.is_symlink()


def test_a_crash_half_way_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "model.keras"
    path.write_bytes(whole := archive(hdf5(), described(ADAM)))

    def crash(self, name, content):
        self.fp.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(zipfile.ZipFile, "writestr", crash)
    with pytest.raises(KeyboardInterrupt):
        write_file(path, VALUES, like=path)
    assert path.read_bytes() == whole
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.keras"]


REACHES = [
    "os:system",
    "subprocess:run",
    "builtins:eval",
    "builtins:exec",
    "importlib:import_module",
    "functools:reduce",
    "collections:Counter",
    "operator:methodcaller",
    "numpy:load",
    "numpy:float32.__class__",
    "jax:jit",
    "jax.numpy:load",
    "adam_tx:from_config",
    "adam_tx.describe.config:from_config",
    "adam_tx.describe.config:inspect.os.system",
    "adam_tx.describe.closures:imported",
    "adam_tx.describe.closures:importlib.import_module",
    "adam_tx.describe.source:render",
    "adam_tx._core.files:replacing",
    "adam_tx.interop.keras:read_file",
    "adam_tx.interop.keras:write_file",
    "adam_tx.interop.keras:_keras_files.write_file",
    "adam_tx._link:closures.imported",
    "adam_tx.links.rms:jnp.load",
    "adam_tx:adam.__globals__",
    "adam_tx:adam.__class__",
    "adam_tx:adam.__wrapped__",
    "adam_tx:Link.__class__.__subclasses__",
    "optax._src.base:jnp.load",
    "optax:tree.__loader__",
    "optax:MultiSteps.__init__.__globals__",
    "optax:jax.jit",
    "adam_tx_evil:make",
    "optaxevil:make",
    "",
    ":",
    "os:",
    ":system",
    "...",
]
SHORT = [name.replace(":", ".").removeprefix("adam_tx.") for name in REACHES if name.startswith(("adam_tx", "optax"))]


@pytest.mark.parametrize("name", [*REACHES, *SHORT])
def test_a_name_in_a_config_reaches_nothing_but_parts_of_optimizers(name, monkeypatch):
    """Wherever a name may stand; nothing is imported, and nothing called."""
    imported = []
    find = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda module: imported.append(module) or find(module))
    inside = {"name": "adam", "learning_rate": {"name": name, "command": "x"}}
    for config in (
        {"name": name, "command": "x"},
        inside,
        {"name": "chain", "links": [{"name": name}]},
        {"name": "adam", "learning_rate": {"function": name}},
        {"name": "adam", "learning_rate": {"tuple": [{"name": name}]}},
        {"name": {"name": name, "command": "x"}},
        {"name": {"function": name}, "command": "x"},
        {"name": "functools:partial", "func": {"function": name}},
    ):
        with pytest.raises(ValueError, match=r"^config"):
            adam_tx.from_config(config)
    assert all(module.split(".")[0] in ("adam_tx", "optax", "functools", "numpy") for module in imported), imported


def test_a_config_in_a_config_cannot_allow_more():
    config = {"dict": {"name": "os:getcwd"}}
    for name in ("from_config", "adam_tx:from_config", "adam_tx.describe.config:from_config"):
        with pytest.raises(ValueError, match="is no part of an optimizer"):
            adam_tx.from_config({"name": name, "config": config, "allow": ["os"]})


def test_what_is_allowed_is_a_module_with_what_is_defined_in_it_alone(monkeypatch, tmp_path):
    (tmp_path / "mine_to_allow.py").write_text("import os, optax\ndef make(rate):\n    return optax.sgd(rate)\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = {"name": "mine_to_allow:make", "rate": 0.1}
    with pytest.raises(ValueError, match=r"config\['name'\]: 'mine_to_allow:make' .*allow=\['mine_to_allow'\]"):
        adam_tx.from_config(config)
    assert "mine_to_allow" not in sys.modules
    assert adam_tx.from_config(config, allow=["mine_to_allow"]).init(0.0) is not None
    for name in ("mine_to_allow:os.system", "mine_to_allow:os", "mine_to_allow_not:make"):
        with pytest.raises(ValueError, match=r"^config\['name'\]: "):
            adam_tx.from_config(config | {"name": name}, allow=["mine_to_allow"])
    with pytest.raises(TypeError, match=r"allow must be a list of modules, such as \['mine_to_allow'\], got a str"):
        adam_tx.from_config(config, allow="mine_to_allow")


def test_what_get_config_writes_of_adam_tx_and_optax_needs_nothing_to_be_allowed():
    for name, make in (catalogue.OPTIMIZERS | catalogue.PER_TENSOR | catalogue.SMALL_STATE).items():
        config = through_json(make())
        if not list(unknown(config)):
            assert adam_tx.get_config(adam_tx.from_config(config)) == config, name


def test_a_config_that_is_nested_without_end_is_refused():
    deep = functools.reduce(lambda config, _: {"name": "chain", "links": [config]}, range(10_000), {})
    with pytest.raises(ValueError, match="dicts in dicts without end"):
        adam_tx.from_config(deep)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["adam", "os:system", "x", "optax.sgd"]),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "links", "key", "function", "array", "dtype", "tuple", "dict", "items", "float", "x"]
            ),
            inside,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(config=st.dictionaries(st.sampled_from(["name", "links", "learning_rate", "dict", "b1"]), JSON, max_size=4))
def test_any_json_is_an_optimizer_or_an_error_of_value_or_type(config):
    try:
        made = adam_tx.from_config({"name": "adam", **config})
    except (TypeError, ValueError):
        return
    assert callable(made.update)


@pytest.mark.parametrize(
    ("make", "key", "value", "problem"),
    [
        (optax.adam, "nu/w", -1.0, "nu/w has negative numbers, but is of squares"),
        (adam_tx.adam, "nu/w", -1.0, "nu/w has negative numbers, but is of squares"),
        (adam_tx.adam, "weight_mu", 5.0, r"weight_mu is 5.*must be from 0 to 1"),
        (adam_tx.adam, "weight_nu", np.nan, r"weight_nu is nan.*must be from 0 to 1"),
        (adam_tx.adam, "weight_nu", -0.1, r"weight_nu is -0.1.*must be from 0 to 1"),
    ],
)
def test_squares_below_zero_and_weights_beyond_zero_and_one_are_refused(make, key, value, problem):
    params, tx = {"w": jnp.ones(3)}, make(1e-3)
    exported = adam_tx.export_state(tx.init(params), params, tx)
    given = np.array([value, 0.0]) if key.startswith("weight") else np.array([1.0, value, 1.0])
    with pytest.raises(ValueError, match=problem):
        adam_tx.import_state(tx, params, exported | {key: given})


def test_the_page_on_security_shows_what_happens(capsys):
    page = pathlib.Path(__file__).parents[1].joinpath("docs", "security.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, {})
    assert "'os:system' is not made, because what is made is run" in capsys.readouterr().out
