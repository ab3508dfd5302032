"""Programs for an H100 and for a TPU v5e, compiled on a machine that has neither.

XLA's compilers for both are in wheels that run anywhere: what they make of a step is
final, kernels, buffers and all; only the clock is missing. Install them beside
JAX, without what they would pull in:

    pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12   # of the version of jaxlib
    pip install --no-deps libtpu

and see that `ptxas` is found; the third wheel has it under `nvidia/cuda_nvcc/bin`.
"""

import functools
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_H100 = Path(__file__).parent / "h100.txtpb"


_USED = re.compile(r"Used (\d+) registers")
_SPILLED = re.compile(r"(\d+) bytes spill (?:stores|loads)")


class MissingError(Exception):
    """A compiler is not there; the message says what to install."""


class Registers(NamedTuple):
    """What the kernels of a program for a GPU need.

    Attributes:
      most: registers of a thread, of the kernel that needs most. With more than 32, fewer threads than there could be
        fit on a multiprocessor.
      spilled: bytes of a thread that did not fit, of all kernels.
    """

    most: int
    spilled: int


def placed(tree: Any, target: str | None) -> Any:
    """Abstract arrays on a device of this kind; on JAX's default device where it is None.

    Args:
      tree: of `jax.ShapeDtypeStruct`.
      target: "h100", "v5e" or None.

    Raises:
      MissingError: its compiler is not there.
    """
    if target is None:
        return tree
    sharding = _sharding(target)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def kernels_in(folder: str) -> Mapping[str, Any]:
    """Options of a compiler for a GPU, with which it writes the kernels into a folder, where `registers` finds them."""
    return {"xla_dump_to": folder, "xla_dump_emitter_re": ".*"}


def registers(folder: str) -> Registers:
    """What ptxas says of the kernels in a folder, compiled as XLA does."""
    command = ["ptxas", "-v", "-arch=sm_90a", "-o", os.devnull]
    runs = [
        subprocess.run([*command, path], capture_output=True, text=True, check=True)
        for path in Path(folder).glob("*.ptx")
    ]
    told = "".join(run.stderr for run in runs)
    return Registers(max(map(int, _USED.findall(told))), sum(map(int, _SPILLED.findall(told))))


@functools.cache
def devices(target: str) -> Sequence[Any]:
    """Devices of this kind, which need not be there."""
    return _TOPOLOGY[target]().devices


@functools.cache
def _sharding(target: str) -> NamedSharding:
    return NamedSharding(Mesh(devices(target)[:1], ("x",)), PartitionSpec())


def _h100() -> Any:
    _need("jax_cuda12_plugin", "jax-cuda12-plugin", "jax-cuda12-pjrt")
    nvcc = importlib.util.find_spec("nvidia")
    wheel = [Path(at) / "cuda_nvcc" / "bin" for at in (nvcc.submodule_search_locations or [])] if nvcc else []
    os.environ["PATH"] = os.pathsep.join([*map(str, wheel), os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    if shutil.which("ptxas") is None:
        raise MissingError("ptxas is not there: pip install --no-deps nvidia-cuda-nvcc-cu12")
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # no cuDNN and the like, which no step calls
    return topologies.get_topology_desc(
        platform="cuda", topology_name="H100:1", target_config=_H100.read_text(), topology="1x1x1"
    )


def _v5e() -> Any:
    _need("libtpu", "libtpu")
    os.environ |= {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # a device is for one process, a compiler is for all
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")


_TOPOLOGY: Mapping[str, Callable[[], Any]] = {"h100": _h100, "v5e": _v5e}


def _need(module: str, *packages: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise MissingError(f"the compiler is not there: pip install --no-deps {' '.join(packages)}")
    theirs, ours = map(importlib.metadata.version, (packages[0], "jaxlib"))
    if module.startswith("jax") and theirs != ours:
        raise MissingError(f"{packages[0]} is of version {theirs}, jaxlib of {ours}; they have to be alike")
