"""HDF5 files that may come from strangers: nothing outside of the file is read, and no size is believed."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Generator, Sequence
from os import PathLike
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:  # it is no dependency
    import h5py

FilePath = str | PathLike[str]

LARGEST = 10
"""What is read from a file may be this many times as large as the file."""


class FileError(ValueError):
    """An error that names the file already."""


def damaged(path: FilePath, problem: object) -> FileError:
    """The error for a file that is not as Keras writes it."""
    return FileError(f"{path}: it is damaged, or no file that Keras saved: {problem}; take another copy.")


@contextlib.contextmanager
def opened(content: bytes, path: FilePath) -> Generator[h5py.File]:
    """The file with this content; what goes wrong while it is open is a ValueError that names the path."""
    try:
        import h5py
    except ImportError:
        raise ImportError("h5py: it is needed to read what Keras saved, and not installed; pip install h5py.") from None
    try:
        with h5py.File(io.BytesIO(content)) as file:
            yield file
    except FileError:
        raise
    except Exception as error:  # whatever h5py makes of a damaged file
        raise damaged(path, error) from None


def numbered(file: h5py.File, place: str, path: FilePath) -> list[h5py.Dataset]:
    """The datasets of a group, in the order of the numbers that are their names.

    Raises:
      ValueError: a number that is missing; values that stand in another file; a size that the file cannot have.
    """
    import h5py

    group = _at(file, place, path)
    if not isinstance(group, h5py.Group):
        raise damaged(path, f"{place} is no group")
    names = [str(i) for i in range(len(group))]
    if sorted(group) != sorted(names):
        raise damaged(path, f"of the optimizer's variables it has {sorted(group)[:20]}")
    datasets = [_plain(_at(group, name, path), f"{place}/{name}", path) for name in names]
    _check_sizes(datasets, file, path)
    return datasets


def _at(node: object, place: str, path: FilePath) -> object:
    """The node at this place. Only links inside of the file's own tree may lead there."""
    import h5py

    for name in place.split("/"):
        link: object = node.get(name, getlink=True) if isinstance(node, h5py.Group) else None
        if not isinstance(node, h5py.Group) or link is None:
            raise damaged(path, f"{place} is missing")
        if not isinstance(link, h5py.HardLink):
            raise FileError(
                f"{path}: {place} is a {type(link).__name__} to elsewhere. Keras writes none, and it may point to any "
                "file of this machine, so it is not followed; take another copy."
            )
        node = node[name]
    return node


def _plain(node: object, place: str, path: FilePath) -> h5py.Dataset:
    """The node, if it is a plain array of numbers that stands in the file itself."""
    import h5py

    if not isinstance(node, h5py.Dataset) or node.shape is None:
        raise damaged(path, f"{place} is no array")
    if node.external or node.is_virtual:
        raise FileError(
            f"{path}: the values of {place} stand in another file. Keras writes no such thing, and it may be any file "
            "of this machine, so it is neither read nor written; take another copy."
        )
    if node.dtype.kind not in "biuf" and not (is_bfloat16(node) and node.dtype == np.dtype("V2")):
        raise damaged(path, f"{place} has no numbers, but {node.dtype}")
    return node


def _check_sizes(datasets: Sequence[h5py.Dataset], file: h5py.File, path: FilePath) -> None:
    """Refuse to read more than the file can hold. HDF5 reads whole chunks, however small a part is asked for."""
    stored = file.id.get_filesize()
    sizes = [max(math.prod(d.shape), math.prod(d.chunks or ())) * d.dtype.itemsize for d in datasets]
    never_written = any(d.size and not d.id.get_storage_size() for d in datasets)
    if never_written or sum(sizes) > LARGEST * stored:
        raise damaged(path, f"its optimizer's variables would take {sum(sizes)} bytes, but the file has {stored}")


def is_bfloat16(dataset: h5py.Dataset) -> bool:
    """Whether Keras has marked the numbers as bfloat16, which HDF5 does not know."""
    mark = dataset.attrs.get("dtype")
    return isinstance(mark, str) and mark == "bfloat16"


def value(dataset: h5py.Dataset) -> np.ndarray:
    """The numbers; bfloat16 as float32."""
    found = np.asarray(dataset)
    return found.view(jnp.bfloat16).astype(np.float32) if is_bfloat16(dataset) else found


def put(dataset: h5py.Dataset, given: np.ndarray, content: bytearray, path: FilePath) -> None:
    """Put numbers in their place in the content of the file. HDF5 itself cannot be trusted to write a damaged file."""
    place = dataset.id.get_offset()
    if place is None or place + dataset.size * dataset.dtype.itemsize > len(content):
        raise FileError(f"{path}: {dataset.name} does not stand in one piece, as Keras writes it; take another copy.")
    given = np.asarray(given)
    stored = given.astype(jnp.bfloat16).view(dataset.dtype) if is_bfloat16(dataset) else given.astype(dataset.dtype)
    content[place : place + stored.nbytes] = stored.tobytes()
