"""Memory that a compiled step needs beside its arguments and results, read off its program; nothing is allocated."""

import functools
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

SAVING = {  # of XLA's compiler for CPUs, neither of them its default
    "xla_cpu_copy_insertion_use_region_analysis": True,
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
}
EQUAL_LEAF, EQUAL_LEAVES = (1024, 1024), (1, 4)

_RESULT = re.compile(r"^  (?:ROOT )?%?([\w.\-]+) = (\w+)\[([\d,]*)\]\S* ([\w\-]+)\(", re.MULTILINE)
_ROOT = re.compile(r"^  ROOT .* tuple\((.*?)\)", re.MULTILINE)
_ELSEWHERE = re.compile(r"(?:to_apply|calls)=%?command_buffer")  # a GPU's graph: its kernels are not in ENTRY
_NO_BUFFER = {"parameter", "constant", "bitcast"}


@dataclass(frozen=True)
class Contender:
    """An optimizer in JAX: `init(params)`, a step `(params, state, grads) -> (params, state)`, the dtype of weights."""

    init: Callable[[Any], Any]
    step: Any
    dtype: Any


@dataclass(frozen=True)
class Needs:
    """Bytes that a compiled step needs, all leaves together.

    Attributes:
      temp: beside its arguments and results.
      aliased: of arguments that results are written into.
      copied: by copies of whole arrays, such as those of donated arguments that are still read
        after their buffer is written; None where the program's text does not tell.
      between: of results of a kernel that another kernel reads and that are no results of the step;
        None likewise.
    """

    temp: int
    aliased: int
    copied: int | None
    between: int | None


@functools.cache
def ways() -> dict[str, dict[str, Any]]:
    """Options to compile with, where the compiler knows them."""
    return {"default": {}} | ({"saving": SAVING} if jax.default_backend() == "cpu" and knows(SAVING) else {})


def knows(options: Mapping[str, Any]) -> bool:
    """Whether this version of XLA has all of these options."""
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options=dict(options))
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True


def lower_step(contender: Contender, shapes: Sequence[tuple[int, ...]]) -> Any:
    """The step for parameters of these shapes, traced but not compiled."""
    params = [jax.ShapeDtypeStruct(shape, contender.dtype) for shape in shapes]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")  # told by aliased bytes
        return contender.step.lower(params, jax.eval_shape(contender.init, params), params)


def compile_in_each_way(lowered: Any) -> dict[str, Any]:
    """The programs, by the way of compiling; threads may compile several steps at once."""
    return {way: lowered.compile(compiler_options=options) for way, options in ways().items()}


def needs(compiled: Any) -> Needs:
    """What a compiled step needs, as its memory analysis and its program say."""
    memory = compiled.memory_analysis()
    copied, between = copied_and_between(compiled.as_text() or "")
    return Needs(memory.temp_size_in_bytes, memory.alias_size_in_bytes, copied, between)


def copied_and_between(hlo: str) -> tuple[int, int] | tuple[None, None]:
    """Bytes that kernels copy and leave to each other, by the text of an optimized program; None where it is unclear.

    It is clear where the kernels stand in the entry computation and its root is a tuple of
    their results. A kernel with several results is read by the elements taken from it.
    """
    _, found, entry = hlo.partition("\nENTRY ")
    root = _ROOT.search(entry)
    if not found or root is None or _ELSEWHERE.search(entry):
        return None, None
    results, copied, between = set(re.findall(r"%([\w.\-]+)", root[1])), 0, 0
    for name, dtype, sizes, operation in _RESULT.findall(entry):
        bits = re.search(r"\d+", dtype)
        size = math.prod(map(int, sizes.split(","))) if sizes else 1
        bytes_ = size * (int(bits[0]) // 8 if bits else 1)
        if operation == "copy":
            copied += bytes_
        elif name not in results and operation not in _NO_BUFFER:
            between += bytes_
    return copied, between


def added_by_a_leaf(contender: Contender) -> dict[str, dict[str, float]]:
    """Temporary bytes of one leaf, and what each further leaf of its size adds, in bytes an element."""
    fewer, more = (compile_in_each_way(lower_step(contender, [EQUAL_LEAF] * count)) for count in EQUAL_LEAVES)
    elements, further = math.prod(EQUAL_LEAF), EQUAL_LEAVES[1] - EQUAL_LEAVES[0]

    def temp(compiled: Any) -> float:
        return compiled.memory_analysis().temp_size_in_bytes / elements

    return {
        way: {"one leaf": temp(fewer[way]), "each further": (temp(more[way]) - temp(fewer[way])) / further}
        for way in ways()
    }


def within_training(contender: Contender) -> dict[str, dict[str, float]]:
    """Temporary bytes a parameter of a network's gradient, and of one program with the step behind it."""

    def loss(params: Any, x: jax.Array) -> jax.Array:
        for weights in params:
            x = jax.nn.relu(x @ weights)
        return jnp.mean(x.astype(jnp.float32) ** 2)

    def train(params: Any, state: Any, x: jax.Array) -> Any:
        return contender.step(params, state, jax.grad(loss)(params, x))

    count = EQUAL_LEAVES[1]
    params = [jax.ShapeDtypeStruct(EQUAL_LEAF, contender.dtype)] * count
    state, x = jax.eval_shape(contender.init, params), jax.ShapeDtypeStruct((64, EQUAL_LEAF[0]), contender.dtype)
    lowered = {
        "gradient": jax.jit(jax.grad(loss)).lower(params, x),
        "gradient and step": jax.jit(train, donate_argnums=(0, 1)).lower(params, state, x),
    }

    def temp(program: Any, options: dict[str, Any]) -> float:
        memory = program.compile(compiler_options=options).memory_analysis()
        return memory.temp_size_in_bytes / (math.prod(EQUAL_LEAF) * count)

    return {way: {name: temp(low, options) for name, low in lowered.items()} for way, options in ways().items()}
