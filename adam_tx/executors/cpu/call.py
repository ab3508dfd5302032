"""`run_leaves`: the step of many leaves of one recipe, or their survey, in one call of XLA's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from adam_tx.executors.cpu import engine
from adam_tx.executors.cpu.kernel import kernel
from adam_tx.executors.made import Passed
from adam_tx.executors.tile import TileProgram, is_of_elements

_DTYPES = {
    "bool": 1,
    "int8": 2,
    "int16": 3,
    "int32": 4,
    "uint8": 6,
    "uint16": 7,
    "uint32": 8,
    "float32": 11,
    "bfloat16": 16,
}
"""What XLA calls them: XLA_FFI_DataType."""
_HOWS = {"sum": 0, "largest": 1}
"""What `handler.c` calls the ways in which numbers of tiles become one of a leaf."""


_PREFIX = "adam_tx_kernel_of_this_process_use_executor_xla_to_export_a_step"
"""How names of kernels begin: `jax.export`, which cannot write them down, shows one, and nothing else, to its user."""


def compiled(program: TileProgram) -> str:
    """The name under which XLA calls a program's kernel.

    Raises:
      Unsupported: what the kernel does not compute, or no compiler.
    """
    compiler = engine.engine()
    of = kernel(program, compiler.instructions.lanes)
    text = f"{of.text}{_description(program, of.name)}"
    target = f"{_PREFIX}_{hashlib.sha256(text.encode()).hexdigest()[:16]}_{compiler.instructions.name}"
    compiler.tell_xla(target, f"{text}{_CALL.format(target=target)}")
    return target


_CALL = """
declare ptr @adam_tx_call(ptr, ptr)
define ptr @{target}(ptr %frame) {{
  %error = call ptr @adam_tx_call(ptr %frame, ptr @program)
  ret ptr %error
}}
"""


def _description(program: TileProgram, kernel: str) -> str:
    """What `handler.c` calls a Program, as LLVM IR."""
    variables = [*program.arrays, *program.outputs]
    kinds = [int(not is_of_elements(variable, program.recipe.block)) for variable in variables]
    dtypes = [_DTYPES[str(variable.aval.dtype)] for variable in variables]
    counts = [*map(len, (program.arrays, program.outputs, program.reduced)), program.every]
    counts += [len(program.scalars), program.recipe.block, int(program.recipe.is_blocks)]
    numbers = ", ".join(f"i64 {number}" for number in counts)
    layout = f"{{ ptr, {'i64, ' * len(counts)}ptr, ptr, ptr }}"
    return f"""
@kinds = private constant {_bytes(kinds)}
@dtypes = private constant {_bytes(dtypes)}
@hows = private constant {_bytes([_HOWS[how] for how in program.outline.hows])}
@program = private constant {layout} {{ ptr @{kernel}, {numbers}, ptr @kinds, ptr @dtypes, ptr @hows }}
"""


def _bytes(numbers: Sequence[int]) -> str:
    return f"[{len(numbers)} x i8] [{', '.join(f'i8 {number}' for number in numbers)}]"


def run_leaves(
    target: str,
    program: TileProgram,
    scalars: Sequence[jax.Array],
    numbers: Sequence[int],
    leaves: Sequence[Sequence[Any]],
) -> Passed:
    """What is made of leaves, all but what is reduced and sampled in their place.

    Args:
      target: the name that `compiled` gives.
      program: what it was given.
      scalars: what the program reads of the state's numbers.
      numbers: those of the leaves in their tree.
      leaves: of each leaf the parameter, the gradient, and what is kept.
    """
    operands = [array for leaf in leaves for array in leaf]
    each = len(program.outputs)  # all but the gradients, in their place
    written = [k for k in range(len(operands)) if each and k % (each + 1) != 1]
    results = [jax.ShapeDtypeStruct(operands[k].shape, operands[k].dtype) for k in written]
    if program.reduced:
        results.append(jax.ShapeDtypeStruct((len(program.reduced), len(leaves)), jnp.float32))
    sampled = [-(-leaf[0].size // program.every) for leaf in leaves] if program.every else []
    if sampled:
        results.append(jax.ShapeDtypeStruct((sum(sampled),), jnp.float32))
    call = jax.ffi.ffi_call(target, results, input_output_aliases={2 + k: r for r, k in enumerate(written)})
    made = call(_words(scalars), np.asarray(numbers, np.uint32), *operands)
    passed = Passed.of_arrays([list(made[k * each : (k + 1) * each]) for k in range(len(leaves))])
    if program.reduced:
        passed = passed._replace(reduced=made[len(leaves) * each])
    if sampled:
        passed = passed._replace(samples=[[sample] for sample in lax.split(made[-1], sampled)])
    return passed


def _words(scalars: Sequence[jax.Array]) -> jax.Array:
    """Numbers as words of four bytes."""
    words = [
        scalar.astype(jnp.uint32) if scalar.dtype == jnp.bool_ else lax.bitcast_convert_type(scalar, jnp.uint32)
        for scalar in scalars
    ]
    return jnp.stack([word.reshape(()) for word in words]) if words else jnp.zeros(0, jnp.uint32)
