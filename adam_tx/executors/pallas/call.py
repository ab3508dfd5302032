"""`step_leaf`: the step of a leaf in one call of a kernel, in the leaf's own layout.

Parameters and what is kept are written in their place.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adam_tx._core import manual
from adam_tx.executors.pallas.body import Body
from adam_tx.executors.pallas.kernel import kernel
from adam_tx.executors.pallas.late import pallas, pallas_tpu
from adam_tx.executors.pallas.layout import Layout


def step_leaf(
    of: Body, layout: Layout, scalars: Sequence[jax.Array], arrays: Sequence[jax.Array], *, interpret: Any
) -> list[jax.Array]:
    """The new parameter of a leaf, and what is then kept of it.

    Args:
      of: what is computed of each tile.
      layout: the leaf's.
      scalars: what is read of numbers.
      arrays: the parameter, the gradient, and what is kept.
      interpret: whether JAX runs the kernel operation by operation, on any device, or how.
    """
    pl = pallas()
    pltpu = pallas_tpu()
    numbers = [_number(scalar) for scalar in scalars]
    is_scale = [False, False, *(is_scale for _, is_scale in of.program.recipe.kept)]
    orders = [_order(layout, scale) for scale in is_scale]
    alike = [functools.reduce(manual.like, arrays, array) for array in arrays]
    given = [array.transpose(order) for array, order in zip(alike, orders, strict=True)]
    specs = [_spec(array, layout, scale) for array, scale in zip(given, is_scale, strict=True)]
    words = pltpu.VMEM(layout.words, jnp.float32)
    call = pl.pallas_call(
        functools.partial(kernel, of, layout, is_scale),
        grid=layout.grid,
        in_specs=[*[pl.BlockSpec(memory_space=pltpu.SMEM)] * len(numbers), *specs],
        out_specs=_written(specs),
        out_shape=jax.eval_shape(list, _written(given)),
        scratch_shapes=[words] * sum(is_scale),
        input_output_aliases={len(numbers) + k: r for r, k in enumerate(_written(range(len(given))))},
        # two cores may share all but the blocks that have scales in common
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) * (len(layout.grid) - 1) + ("arbitrary",)
        ),
        cost_estimate=_cost(of, given),
        interpret=interpret,
    )
    with jax.enable_x64(False):  # a TPU's kernels have no 64 bits, not even in what counts rows
        made = call(*numbers, *given)
    return [x.transpose(_inverse(order)) for x, order in zip(made, _written(orders), strict=True)]


def _written(each: Sequence[Any]) -> list[Any]:
    """Without that of the gradient."""
    return [each[0], *each[2:]]


def _cost(of: Body, arrays: Sequence[jax.Array]) -> Any:
    """What XLA cannot see of a kernel, and reckons with as it orders what runs beside it."""
    moved = sum(x.nbytes for x in (*arrays, *_written(arrays)))
    return pallas().CostEstimate(flops=len(of.each) * arrays[0].size, transcendentals=0, bytes_accessed=moved)


def _number(scalar: jax.Array) -> jax.Array:
    """As a core's memory for numbers takes it."""
    return (scalar.astype(jnp.int32) if scalar.dtype == jnp.bool_ else scalar).reshape(1)


def _order(layout: Layout, is_scale: bool) -> tuple[int, ...]:
    """The axes as a kernel sees them: of scales those of a block's numbers come before those across it."""
    *lead, rows, columns = layout.order
    return (*lead, columns, rows) if is_scale and layout.along else layout.order


def _inverse(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def _spec(array: jax.Array, layout: Layout, is_scale: bool) -> Any:
    """Which block a step of the grid is given; of scales all that belong to its rows, or columns."""
    lead = [None] * (array.ndim - 2)
    block = (array.shape[-2], layout.block[1 - layout.along]) if is_scale else layout.block

    def place(*at: Any) -> tuple[Any, ...]:
        *before, across, along = at
        if is_scale:
            return *before, 0, across
        return (*before, across, along) if layout.along else (*before, along, across)

    return pallas().BlockSpec((*lead, *block), place)
