"""Keras: the optimizer's variables in `.keras` and `.weights.h5` files."""

from __future__ import annotations

import json
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from adam_tx._core.files import replacing
from adam_tx.interop import _hdf5
from adam_tx.interop._config import is_settings, keras_class
from adam_tx.interop._hdf5 import FilePath

if TYPE_CHECKING:  # it is no dependency
    import h5py

_CONFIG = "config.json"
_WEIGHTS = "model.weights.h5"
_VARIABLES = "optimizer/vars"
_INNER = "optimizer/inner_optimizer/vars"
_OUTER = 4  # variables of a LossScaleOptimizer, before those of the one inside, which are saved twice


def read_file(path: FilePath) -> tuple[Mapping[str, object] | None, list[np.ndarray]]:
    """The optimizer of a saved Keras model: its configuration and its variables. It needs h5py.

    A file may come from a stranger: docs/security.md says what is looked at.

    Args:
      path: of a file that `model.save` (`.keras`) or `model.save_weights` (`.weights.h5`) wrote.

    Returns:
      `(config, variables)` for `from_config` and `from_variables`. A `.weights.h5` file has no
      configuration, so that is None. bfloat16 becomes float32. A model that was compiled under
      `mixed_float16` has a LossScaleOptimizer, which Keras leaves out of the configuration in
      the file and puts around the optimizer with its defaults when it loads; so does this.

    Raises:
      ValueError: no such file; one that is damaged, points to other files, or would be read as
        more than ten times its size; a model that was saved without its optimizer.

    From a file to a state, where `names` are the paths of our parameters in the order of
    `model.trainable_variables`::

        keras = adam_tx.interop.keras
        config, variables = keras.read_file("model.keras")
        tx = keras.from_config(config)
        exported = keras.from_variables(variables, config, params, names)
        state = adam_tx.import_state(tx, params, exported)
    """
    members = _members(path)
    config = _config(members, path)
    with _hdf5.opened(members[_WEIGHTS], path) as file:
        datasets = _datasets(file, path)
        return config and _around(config, wrapped=_INNER in file), [_hdf5.value(dataset) for dataset in datasets]


def write_file(path: FilePath, variables: Sequence[np.ndarray], *, like: FilePath) -> None:
    """A saved Keras model with other values of its optimizer's variables. It needs h5py.

    Mind that the *weights* of the model are those of `like`. Where they have moved since, the
    file has an optimizer of one step with the weights of another; so load it in Keras and set
    the weights, too: `model.set_weights(...)`.

    Args:
      path: of the file that is written. It may be `like` itself: the file is written beside it,
        and takes its place once it is whole.
      variables: what `to_variables` gave.
      like: the path of a saved model of the same kind, of which all else is taken over.

    Raises:
      ValueError: a file that is damaged or has no optimizer; other variables than it has.

    From a state back into a file::

        exported = adam_tx.export_state(state, params, tx)
        variables = adam_tx.interop.keras.to_variables(exported, config, params, names)
        adam_tx.interop.keras.write_file("trained.keras", variables, like="model.keras")
        model = keras.models.load_model("trained.keras")  # with the weights of model.keras
    """
    members = _members(like)
    written = bytearray(members[_WEIGHTS])
    with _hdf5.opened(members[_WEIGHTS], like) as file:
        datasets = _datasets(file, like)
        shapes = [dataset.shape for dataset in datasets]
        given = [np.shape(value) for value in variables]
        if shapes != given:
            raise _hdf5.FileError(
                f"{like}: its optimizer has variables of the shapes {shapes}, but {given} came; give what to_variables "
                "made for the same model and configuration."
            )
        again = _hdf5.numbered(file, _INNER, like) if _INNER in file else []
        copies = zip(again, variables[_OUTER:] if again else (), strict=True)
        for dataset, value in [*zip(datasets, variables, strict=True), *copies]:
            _hdf5.put(dataset, value, written, like)
    members[_WEIGHTS] = bytes(written)
    with replacing(path) as target:
        if len(members) == 1:
            target.write(written)
            return
        with zipfile.ZipFile(target, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)


def _members(path: FilePath) -> dict[str, bytes]:
    """The contents of the file by name. A file of weights counts as an archive with one member."""
    if not pathlib.Path(path).is_file():
        raise ValueError(f"{path}: there is no such file; give the path of one that Keras saved.")
    if str(path).endswith(".weights.h5"):
        return {_WEIGHTS: pathlib.Path(path).read_bytes()}
    if not str(path).endswith(".keras"):
        raise ValueError(f"{path}: its name must end with .keras or .weights.h5; save the model anew in that format.")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(archive, path)
            members = {name: archive.read(name) for name in archive.namelist()}
    except _hdf5.FileError:
        raise
    except Exception as error:  # whatever zipfile and its decompressors make of a damaged file
        raise _hdf5.damaged(path, error) from None
    if missing := {_CONFIG, _WEIGHTS} - members.keys():
        raise _hdf5.damaged(path, f"it has no {sorted(missing)[0]}")
    return members


def _config(members: Mapping[str, bytes], path: FilePath) -> Mapping[str, object] | None:
    """The configuration of the optimizer; None for a file of weights."""
    if _CONFIG not in members:
        return None
    try:
        compiled = json.loads(members[_CONFIG]).get("compile_config") or {}
        optimizer = compiled.get("optimizer")
    except Exception as error:  # whatever json makes of a damaged file, and of lists or numbers in the place of dicts
        raise _hdf5.damaged(path, f"{_CONFIG} has no settings: {error}") from None
    if not is_settings(optimizer):
        raise _without(path)
    return optimizer


def _check_sizes(archive: zipfile.ZipFile, path: FilePath) -> None:
    """Refuse an archive that would grow far beyond its file. Keras does not compress; `read` stops at these sizes."""
    unpacked = sum(info.file_size for info in archive.infolist())
    stored = pathlib.Path(path).stat().st_size
    if unpacked > _hdf5.LARGEST * stored:
        raise _hdf5.damaged(path, f"it would be unpacked to {unpacked} bytes, but the file has {stored}")


def _datasets(file: h5py.File, path: FilePath) -> list[h5py.Dataset]:
    if _VARIABLES not in file:
        raise _without(path)
    return _hdf5.numbered(file, _VARIABLES, path)


def _without(path: FilePath) -> _hdf5.FileError:
    return _hdf5.FileError(
        f"{path}: the model was saved without its optimizer; save it anew after compile and fit, or call init."
    )


def _around(config: Mapping[str, object], *, wrapped: bool) -> Mapping[str, object]:
    """The configuration with the LossScaleOptimizer around it that Keras leaves out, which has its defaults."""
    if not wrapped or keras_class(config.get("class_name")) == "lossscaleoptimizer":
        return config
    settings = {"inner_optimizer": config, "initial_scale": 2.0**15, "dynamic_growth_steps": 2000}
    return {"class_name": "LossScaleOptimizer", "config": settings}
