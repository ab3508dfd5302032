"""What one optimizer step costs once compiled, read off the program instead of a clock.

The step is the one a training loop runs: `tx.update`, then `optax.apply_updates`,
jitted with the parameters and the state donated. It is compiled from abstract
arguments, so nothing is allocated and a tree of any size can be asked about; and
the answer (the two clock readings apart) is the same on every run.
"""

import math
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import optax
import targets
from jax.typing import DTypeLike

Tree = Any
Step = Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]
"""From gradients, state and parameters to new parameters and state."""

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*?\{\n(.*?)\n\}", re.MULTILINE | re.DOTALL)
_FUSION = re.compile(r"\s+(?:ROOT )?%?[\w.\-]+ = (.*?) fusion\(")
_CALL = re.compile(r" call\(.*to_apply=%?([\w.\-]+)")
_CONDITIONAL = re.compile(
    r" conditional\(.*(?:branch_computations=\{(.*?)\}|(true_computation=.*?false_computation=[^,]+))"
)
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(?:, |$)")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z\d]*)\[([\d,]*)\]")
_BITS = re.compile(r"\d+")
_NO_KERNEL = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
_NAME = re.compile(r"%([\w.\-]+)")
_ALIAS = re.compile(r"\{[\d, ]*\}: \((\d+), \{[\d, ]*\}, (?:may|must)-alias\)")
_NOT_A_SCALAR = re.compile(r"\[(?!(?:1,)*[12]\])\d")  # two numbers are a debiasing weight


@dataclass(frozen=True)
class Cost:
    """The cost of one compiled step.

    Attributes:
      leaves: leaves of the parameters.
      parameters: their elements, all leaves together.
      bytes_accessed: what the kernels read and write, as XLA counts it; caches are
        not considered. Adam in float32 cannot do with less than 28 bytes per
        parameter: it reads four arrays (params, grads, mu, nu) and writes three.
      fusions: kernels of several operations that the program launches.
      leaf_fusions: those whose result has more than two elements. The others compute
        numbers that a whole leaf, or the whole tree, shares.
      temp_bytes: memory the program needs beside its arguments and results.
      aliased_bytes: memory of arguments that results are written into.
      in_place: whether every leaf of parameters and state that is read is written in
        its place, so that a step allocates nothing for its results.
      equations: of the jaxpr; a call, such as a nested jit, counts as what it holds.
      trace_seconds: from Python to jaxpr, on the clock.
      compile_seconds: from jaxpr to executable, on the clock; meaningless where JAX's
        persistent compilation cache answers.
    """

    leaves: int
    parameters: int
    bytes_accessed: float
    fusions: int
    leaf_fusions: int
    temp_bytes: int
    aliased_bytes: int
    in_place: bool
    equations: int
    trace_seconds: float
    compile_seconds: float

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes accessed for each element of the parameters."""
        return self.bytes_accessed / self.parameters

    @property
    def temp_bytes_per_parameter(self) -> float:
        """Temporary memory for each element of the parameters."""
        return self.temp_bytes / self.parameters


@dataclass(frozen=True)
class PerLeaf:
    """What one more leaf adds to a step; what the step costs whatever the tree has dropped out.

    Attributes:
      equations: of the jaxpr.
      leaf_fusions: kernels; a fraction where the compiler puts several leaves into one.
      bytes_accessed: read and written for a leaf of the shape that was asked about.
    """

    equations: float
    leaf_fusions: float
    bytes_accessed: float


def jitted_step(tx: optax.GradientTransformation, step: Step | None = None) -> Any:
    """The step that is measured: `(params, state, grads) -> (params, state)`, the first two donated."""

    def run(params: Tree, state: Tree, grads: Tree) -> tuple[Tree, Tree]:
        if step is not None:
            return step(grads, state, params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(run, donate_argnums=(0, 1))


def compiled_cost(
    tx: optax.GradientTransformation,
    shapes: Tree,
    dtype: DTypeLike = jnp.float32,
    *,
    target: str | None = None,
    step: Step | None = None,
    options: Mapping[str, Any] | None = None,
) -> Cost:
    """Compile one step for parameters of these shapes and read off what it costs.

    Args:
      tx: the optimizer; its `update` takes updates, state and params.
      shapes: a tree of shapes, such as `[(3, 4), (4,)]` or `{"w": (3, 4), "b": (4,)}`.
      dtype: of parameters and gradients.
      target: a device of `targets`, which need not be there; None for JAX's default device.
      step: another step than that of `tx.update`, such as `adam_tx.step(tx)`.
      options: of the compiler.

    Returns:
      The `Cost` on that device.

    Raises:
      ValueError: the tree has no parameters to divide by.
      targets.MissingError: there is no compiler for the target.
    """
    params = jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, dtype), shapes, is_leaf=_is_shape)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    if not parameters:
        raise ValueError(
            f"shapes must hold at least one parameter, got {shapes!r}. Pass a tree such as [(3, 4), (4,)]."
        )
    state = targets.placed(jax.eval_shape(tx.init, params), target)
    params = targets.placed(params, target)

    traced, trace_seconds = _timed(lambda: jitted_step(tx, step).trace(params, state, params))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")  # told by in_place
        compiled, compile_seconds = _timed(lambda: traced.lower().compile(None if options is None else {**options}))

    hlo, memory = compiled.as_text(), compiled.memory_analysis()
    lines = list(_lines_run(hlo))
    launched = [fusion[1] for line in lines if (fusion := _FUSION.match(line))]
    return Cost(
        leaves=len(jax.tree.leaves(params)),
        parameters=parameters,
        bytes_accessed=(compiled.cost_analysis() or {}).get("bytes accessed") or sum(_bytes_of_kernels(lines)),
        fusions=len(launched),
        leaf_fusions=sum(_NOT_A_SCALAR.search(result) is not None for result in launched),
        temp_bytes=memory.temp_size_in_bytes,
        aliased_bytes=memory.alias_size_in_bytes,
        in_place=len(_aliased_arguments(hlo)) + len(jax.tree.leaves(params)) == _arguments(hlo),
        equations=count_equations(traced.jaxpr),
        trace_seconds=trace_seconds,
        compile_seconds=compile_seconds,
    )


def per_leaf(
    tx: optax.GradientTransformation,
    *,
    leaves: int = 8,
    shape: tuple[int, ...] = (4096,),
    dtype: DTypeLike = jnp.float32,
) -> PerLeaf:
    """What a leaf of this shape adds to a step: the increase from `leaves` of them to twice as many, shared out.

    Args:
      tx: the optimizer.
      leaves: of the smaller of the two trees.
      shape: of every leaf.
      dtype: of parameters and gradients.

    Returns:
      The increase for each leaf added.
    """
    fewer, more = (compiled_cost(tx, [shape] * count, dtype) for count in (leaves, 2 * leaves))
    names = [field.name for field in fields(PerLeaf)]
    return PerLeaf(*((getattr(more, name) - getattr(fewer, name)) / leaves for name in names))


def count_equations(jaxpr: Any) -> int:
    """The equations of a jaxpr; one that holds jaxprs (jit, custom_jvp, scan, cond) counts as theirs."""
    held = ([value for value in jax.tree.leaves(list(eqn.params.values())) if _is_jaxpr(value)] for eqn in jaxpr.eqns)
    return sum(sum(map(count_equations, jaxprs)) if jaxprs else 1 for jaxprs in held)


def _is_jaxpr(value: object) -> bool:
    return hasattr(value, "eqns")  # there is one class of them or two, as the version of JAX has it


def _is_shape(node: object) -> bool:
    return isinstance(node, tuple) and all(isinstance(size, int) for size in node)


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def _aliased_arguments(hlo: str) -> set[int]:
    """Numbers of the arguments whose memory a result takes over.

    Their sizes cannot be compared instead: XLA adds the table of a tuple, and on
    some devices padding, to the size of its results.
    """
    header = hlo.split("\n", 1)[0]
    return {int(argument) for argument in _ALIAS.findall(header)}


def _arguments(hlo: str) -> int:
    """How many arguments are read: JAX leaves out others, such as the last norm in a guard's state."""
    layout = hlo.split("entry_computation_layout={(", 1)[1].split(")->", 1)[0]
    return len(_ARRAY.findall(layout))


def _bytes_of_kernels(lines: Sequence[str]) -> Iterator[int]:
    """What every kernel reads and writes; XLA says it itself of programs for a CPU or a TPU."""
    sizes: dict[str, int] = {}
    for line in lines:
        if instruction := _INSTRUCTION.match(line):
            name, result, operation, operands = instruction.groups()
            sizes[name] = sum(_bytes_of(*array) for array in _ARRAY.findall(result))
            if operation not in _NO_KERNEL:
                yield sizes[name] + sum(sizes.get(operand, 0) for operand in _NAME.findall(operands))


def _bytes_of(dtype: str, shape: str) -> int:
    bits = 8 if dtype == "pred" else int(_BITS.findall(dtype)[0])
    return math.prod(map(int, filter(None, shape.split(",")))) * bits // 8


def _lines_run(hlo: str) -> Iterator[str]:
    """The lines of the program's entry computation, and of those called there. Of a conditional the longest branch."""
    found = _COMPUTATION.findall(hlo)
    bodies = {name: body for _, name, body in found}
    entry = next(name for is_entry, name, _ in found if is_entry)
    return _lines_of(entry, bodies)


def _lines_of(name: str, bodies: Mapping[str, str]) -> Iterator[str]:
    for line in bodies[name].splitlines():
        if call := _CALL.search(line):
            yield from _lines_of(call[1], bodies)
        elif branches := _CONDITIONAL.search(line):
            names = _NAME.findall(branches[1] or branches[2])
            yield from max((list(_lines_of(branch, bodies)) for branch in names), key=_fusions_in)
        else:
            yield line


def _fusions_in(lines: Sequence[str]) -> int:
    return sum(_FUSION.match(line) is not None for line in lines)
