"""Keras: the optimizer's variables in `.keras` and `.weights.h5` files."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

_WEIGHTS = "model.weights.h5"
_OUTER = 4  # variables of a LossScaleOptimizer, before those of the one inside, which are saved twice


def read_file(path: str | PathLike[str]) -> tuple[Mapping[str, Any] | None, list[np.ndarray[Any, Any]]]:
    """The optimizer of a saved Keras model: its configuration and its variables. It needs h5py.

    Args:
      path: of a file that `model.save` (`.keras`) or `model.save_weights` (`.weights.h5`) wrote.

    Returns:
      `(config, variables)` for `from_config` and `from_variables`. A `.weights.h5` file has no
      configuration, so that is None. bfloat16 becomes float32.

    Raises:
      ValueError: no such file, one that is damaged, or a model that was saved without its optimizer.
    """
    config, weights = _opened(path)
    with _h5(weights, path) as file:
        return config, [_value(dataset) for dataset in _datasets(file, path)]


def write_file(
    path: str | PathLike[str], variables: Sequence[np.ndarray[Any, Any]], *, like: str | PathLike[str]
) -> None:
    """A saved Keras model with other values of its optimizer's variables. It needs h5py.

    Args:
      path: of the file that is written.
      variables: what `to_variables` gave.
      like: the path of a saved model of the same kind, of which all else is taken over.

    Raises:
      ValueError: a file that is damaged or has no optimizer; other variables than it has.
    """
    _, weights = _opened(like)
    buffer = io.BytesIO(weights.getvalue())
    with _h5(buffer, like, "r+") as file:
        datasets = _datasets(file, like)
        shapes, given = [d.shape for d in datasets], [np.shape(value) for value in variables]
        if shapes != given:
            raise ValueError(
                f"{like}: its optimizer has variables of the shapes {shapes}, but {given} came; give what to_variables "
                "made for the same model and configuration."
            )
        inner = "optimizer/inner_optimizer"
        again = _datasets(file, like, f"{inner}/vars") if inner in file else []
        for copies, values in ((datasets, variables), (again, variables[_OUTER:] if again else ())):
            for dataset, value in zip(copies, values, strict=True):
                dataset[...] = _as_stored(value, dataset)
    if zipfile.is_zipfile(like):
        with zipfile.ZipFile(like) as source, zipfile.ZipFile(path, "w") as target:
            for name in source.namelist():
                target.writestr(name, buffer.getvalue() if name == _WEIGHTS else source.read(name))
    else:
        Path(path).write_bytes(buffer.getvalue())


def _opened(path: str | PathLike[str]) -> tuple[Mapping[str, Any] | None, io.BytesIO]:
    """The configuration of the optimizer, and the file of weights."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such file; give the path of one that Keras saved.")
    if str(path).endswith(".weights.h5"):
        return None, io.BytesIO(Path(path).read_bytes())
    if not str(path).endswith(".keras"):
        raise ValueError(f"{path}: its name must end with .keras or .weights.h5; save the model anew in that format.")
    try:
        with zipfile.ZipFile(path) as archive:
            described = json.loads(archive.read("config.json"))
            weights = io.BytesIO(archive.read(_WEIGHTS))
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: it is damaged, or no file that Keras saved: {error}") from None
    compiled = described.get("compile_config") or {}
    if not isinstance(compiled.get("optimizer"), Mapping):
        raise ValueError(
            f"{path}: the model was saved without its optimizer; save it anew after compile and fit, or call init."
        )
    return compiled["optimizer"], weights


def _h5(weights: io.BytesIO, path: Any, mode: str = "r") -> Any:
    try:
        import h5py
    except ImportError:
        raise ImportError("h5py: it is needed to read what Keras saved, and not installed; pip install h5py.") from None
    try:
        return h5py.File(weights, mode)
    except OSError as error:
        raise ValueError(f"{path}: it is damaged, or no file that Keras saved: {error}") from None


def _datasets(file: Any, path: Any, place: str = "optimizer/vars") -> list[Any]:
    """The variables in their order: their names are numbers, which the file has in the order of text."""
    group = file.get(place)
    if group is None or not len(group):
        raise ValueError(
            f"{path}: the model was saved without its optimizer; save it anew after compile and fit, or call init."
        )
    if sorted(group, key=int) != [str(i) for i in range(len(group))]:
        raise ValueError(
            f"{path}: it is damaged: of the optimizer's variables it has {sorted(group, key=int)}; take another copy."
        )
    return [group[str(i)] for i in range(len(group))]


def _value(dataset: Any) -> np.ndarray[Any, Any]:
    value = np.asarray(dataset)
    return value.view(jnp.bfloat16).astype(np.float32) if dataset.attrs.get("dtype") == "bfloat16" else value


def _as_stored(value: Any, dataset: Any) -> np.ndarray[Any, Any]:
    if dataset.attrs.get("dtype") == "bfloat16":
        return np.asarray(value).astype(jnp.bfloat16).view(dataset.dtype)
    return np.asarray(value, dataset.dtype)
