"""An equation as LLVM IR: of one number, or of several elements at once.

Each operation gives the bits that XLA gives when it runs the operation alone. NaN goes
through `max` and `min`, as in XLA. bfloat16 is computed with as float32, and rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from adam_tx.executors import jaxprs
from adam_tx.executors.cpu.code import TYPES, Code, Value, constant, type_of
from adam_tx.executors.jaxprs import Equation
from adam_tx.executors.tile import Unsupported

Operation = Callable[[Code, "Given"], Value]
OPERATIONS: dict[str, Operation] = {}
"""By the name of JAX's primitive."""


class Given(NamedTuple):
    """What an operation is given.

    Attributes:
      values: its operands, each of as many elements as the result.
      parameters: those of the equation.
      dtype: that of the result.
      lanes: how many elements the result has; 0 for a number.
    """

    values: list[Value]
    parameters: dict[str, Any]
    dtype: str
    lanes: int

    @property
    def type(self) -> str:
        """The result's type in LLVM IR."""
        return type_of(self.dtype, self.lanes)

    def constant(self, number: Any, dtype: str) -> Value:
        """A literal in as many elements."""
        return constant(number, dtype, self.lanes)


def write(code: Code, equation: Equation, known: dict[Any, Value], lanes: int) -> Value:
    """The result of an equation, in so many elements.

    Args:
      code: to which it is added.
      equation: the equation.
      known: the values of variables.
      lanes: how many elements the result has; 0 for a number.
    """
    name = equation.primitive.name
    if name not in OPERATIONS:
        raise Unsupported(f"it computes {name}")
    values = [
        code.spread(known[atom], lanes) if jaxprs.is_variable(atom) else constant(atom.val, str(atom.aval.dtype), lanes)
        for atom in equation.invars
    ]
    return OPERATIONS[name](code, Given(values, equation.params, str(equation.outvars[0].aval.dtype), lanes))


def _operation(*names: str) -> Callable[[Operation], Operation]:
    def register(operation: Operation) -> Operation:
        OPERATIONS.update(dict.fromkeys(names, operation))
        return operation

    return register


def _in_float32(operation: Operation) -> Operation:
    """The same for bfloat16: computed with as float32, and rounded."""

    def run(code: Code, given: Given) -> Value:
        if given.values[0].dtype != "bfloat16":
            return operation(code, given)
        values = [converted(code, value, "float32") for value in given.values]
        dtype = "float32" if given.dtype == "bfloat16" else given.dtype
        return converted(code, operation(code, given._replace(values=values, dtype=dtype)), given.dtype)

    return run


def _arithmetic(name: str, of_floats: str, of_integers: str | None) -> None:
    def run(code: Code, given: Given) -> Value:
        one, other = given.values
        instruction = of_floats if given.dtype == "float32" else of_integers
        if instruction is None:
            raise Unsupported(f"it computes {name} of {given.dtype}")
        return code.value(f"{instruction} {given.type} {one.name}, {other.name}", given.dtype, given.lanes)

    OPERATIONS[name] = _in_float32(run)


_arithmetic("add", "fadd", "add")
_arithmetic("sub", "fsub", "sub")
_arithmetic("mul", "fmul", "mul")
_arithmetic("div", "fdiv", None)
_arithmetic("and", "", "and")
_arithmetic("or", "", "or")
_arithmetic("xor", "", "xor")


def _comparison(name: str, of_floats: str, of_integers: str) -> None:
    def run(code: Code, given: Given) -> Value:
        one, other = given.values
        if one.dtype == "float32":
            comparison = f"fcmp {of_floats}"
        elif of_integers in ("eq", "ne"):
            comparison = f"icmp {of_integers}"
        else:
            comparison = f"icmp {'s' if one.dtype.startswith('int') else 'u'}{of_integers}"
        return code.value(f"{comparison} {one.type} {one.name}, {other.name}", "bool", given.lanes)

    OPERATIONS[name] = _in_float32(run)


for _name in ("eq", "lt", "le", "gt", "ge"):
    _comparison(_name, f"o{_name}", _name)
_comparison("ne", "une", "ne")


def chosen(code: Code, condition: Value, one: Value, other: Value) -> Value:
    """One where the condition holds, elsewhere the other."""
    operands = f"{condition.type} {condition.name}, {one.type} {one.name}, {other.type} {other.name}"
    return code.value(f"select {operands}", one.dtype, one.lanes)


def extreme(code: Code, one: Value, other: Value, order: str) -> Value:
    """The larger of two if the order is "gt", the smaller if it is "lt"; NaN if one is NaN."""
    if one.dtype != "float32":
        sign = "s" if one.dtype.startswith("int") else "u"
        first = code.value(f"icmp {sign}{order} {one.type} {one.name}, {other.name}", "bool", one.lanes)
        return chosen(code, first, one, other)
    first = code.value(f"fcmp u{order} {one.type} {one.name}, {other.name}", "bool", one.lanes)
    is_nan = code.value(f"fcmp uno {one.type} {other.name}, {other.name}", "bool", one.lanes)
    return chosen(code, is_nan, other, chosen(code, first, one, other))


@_operation("max")
@_in_float32
def _max(code: Code, given: Given) -> Value:
    one, other = given.values
    return extreme(code, one, other, "gt")


@_operation("min")
@_in_float32
def _min(code: Code, given: Given) -> Value:
    one, other = given.values
    return extreme(code, one, other, "lt")


@_operation("select_n")
def _select(code: Code, given: Given) -> Value:
    condition, *cases = given.values
    if condition.dtype != "bool" or len(cases) != 2:
        raise Unsupported("it chooses from more than two")
    return chosen(code, condition, cases[1], cases[0])


@_operation("not")
def _not(code: Code, given: Given) -> Value:
    ones = given.constant(-1, given.dtype) if given.dtype != "bool" else given.constant(1, "bool")
    return code.value(f"xor {given.type} {given.values[0].name}, {ones.name}", given.dtype, given.lanes)


@_operation("neg")
@_in_float32
def _neg(code: Code, given: Given) -> Value:
    (x,) = given.values
    if x.dtype == "float32":
        return code.value(f"fneg {x.type} {x.name}", x.dtype, x.lanes)
    return code.value(f"sub {x.type} {given.constant(0, x.dtype).name}, {x.name}", x.dtype, x.lanes)


def _intrinsic(code: Code, name: str, x: Value) -> Value:
    """A function that LLVM has for float32."""
    suffix = f"v{x.lanes}f32" if x.lanes else "f32"
    return code.value(f"call {x.type} @llvm.{name}.{suffix}({x.type} {x.name})", x.dtype, x.lanes)


def intrinsics(lanes: int) -> list[str]:
    """What has to be declared for them."""
    names = ("sqrt", "fabs")
    vectors = [f"declare <{n} x float> @llvm.{name}.v{n}f32(<{n} x float>)" for name in names for n in {1, lanes}]
    return [*(f"declare float @llvm.{name}.f32(float)" for name in names), *vectors]


@_operation("sqrt")
@_in_float32
def _sqrt(code: Code, given: Given) -> Value:
    return _intrinsic(code, "sqrt", given.values[0])


@_operation("abs")
@_in_float32
def _abs(code: Code, given: Given) -> Value:
    (x,) = given.values
    if x.dtype == "float32":
        return _intrinsic(code, "fabs", x)
    negative = code.value(f"icmp slt {x.type} {x.name}, {given.constant(0, x.dtype).name}", "bool", x.lanes)
    return chosen(code, negative, _neg(code, given), x)


@_operation("is_finite")
@_in_float32
def _is_finite(code: Code, given: Given) -> Value:
    size = _intrinsic(code, "fabs", given.values[0])
    infinity = given.constant(math.inf, "float32")
    return code.value(f"fcmp olt {size.type} {size.name}, {infinity.name}", "bool", size.lanes)


@_operation("sign")
@_in_float32
def _sign(code: Code, given: Given) -> Value:
    """Of a float; zero and NaN stay as they are."""
    (x,) = given.values
    if x.dtype != "float32":
        raise Unsupported(f"it computes sign of {x.dtype}")
    bits = _as(code, x, "int32")
    sign = code.let(f"and {bits.type} {bits.name}, {given.constant(-(2**31), 'int32').name}")
    one = code.value(f"or {bits.type} {sign}, {given.constant(0x3F800000, 'int32').name}", "int32", x.lanes)
    nonzero = code.value(f"fcmp one {x.type} {x.name}, {given.constant(0.0, 'float32').name}", "bool", x.lanes)
    return chosen(code, nonzero, _as(code, one, "float32"), x)


def _shift(name: str, instruction: str) -> None:
    """By more bits than there are nothing is left, which LLVM does not say by itself."""

    def run(code: Code, given: Given) -> Value:
        x, by = given.values
        if instruction == "ashr":
            raise_to = given.constant(_bits(x.dtype) - 1, by.dtype)
            by = extreme(code, by._replace(dtype=_unsigned(by.dtype)), raise_to, "lt")
            return code.value(f"ashr {x.type} {x.name}, {by.name}", x.dtype, x.lanes)
        shifted = code.value(f"{instruction} {x.type} {x.name}, {by.name}", x.dtype, x.lanes)
        within = code.value(
            f"icmp ult {by.type} {by.name}, {given.constant(_bits(x.dtype), by.dtype).name}", "bool", x.lanes
        )
        return chosen(code, within, shifted, given.constant(0, x.dtype))

    OPERATIONS[name] = run


_shift("shift_left", "shl")
_shift("shift_right_logical", "lshr")
_shift("shift_right_arithmetic", "ashr")


def _bits(dtype: str) -> int:
    return {"bool": 1, "float32": 32, "bfloat16": 16}.get(dtype) or np.dtype(dtype).itemsize * 8


def _unsigned(dtype: str) -> str:
    return dtype if dtype.startswith("u") else f"u{dtype}"


def _as(code: Code, x: Value, dtype: str) -> Value:
    """The same bits as another dtype."""
    if TYPES[x.dtype] == type_of(dtype, 0):
        return x._replace(dtype=dtype)
    return code.value(f"bitcast {x.type} {x.name} to {type_of(dtype, x.lanes)}", dtype, x.lanes)


@_operation("bitcast_convert_type")
def _bitcast(code: Code, given: Given) -> Value:
    return _as(code, given.values[0], given.dtype)


@_operation("convert_element_type")
def _convert(code: Code, given: Given) -> Value:
    return converted(code, given.values[0], given.dtype)


def converted(code: Code, x: Value, dtype: str) -> Value:
    """A value in another dtype."""
    if x.dtype == dtype:
        return x
    if dtype == "bfloat16":
        return _rounded(code, converted(code, x, "float32"))
    if x.dtype == "bfloat16":
        return converted(code, _widened(code, x), dtype)
    if dtype == "bool" or x.dtype == "float32":
        raise Unsupported(f"it converts {x.dtype} to {dtype}")
    signed = x.dtype.startswith("int")
    if dtype == "float32":
        instruction = "sitofp" if signed else "uitofp"
    elif _bits(x.dtype) == _bits(dtype):
        return x._replace(dtype=dtype)
    elif _bits(x.dtype) > _bits(dtype):
        instruction = "trunc"
    else:
        instruction = "sext" if signed else "zext"
    return code.value(f"{instruction} {x.type} {x.name} to {type_of(dtype, x.lanes)}", dtype, x.lanes)


def _widened(code: Code, x: Value) -> Value:
    """The float32 of a bfloat16."""
    bits = converted(code, x._replace(dtype="uint16"), "uint32")
    upper = code.value(f"shl {bits.type} {bits.name}, {constant(16, 'uint32', x.lanes).name}", "uint32", x.lanes)
    return _as(code, upper, "float32")


def _rounded(code: Code, x: Value) -> Value:
    """The bfloat16 nearest to a float32, of two the even one; NaN stays NaN."""
    bits = _as(code, x, "uint32")

    def step(instruction: str, one: str, other: int | str) -> str:
        right = constant(other, "uint32", x.lanes).name if isinstance(other, int) else other
        return code.let(f"{instruction} {bits.type} {one}, {right}")

    upper = step("lshr", bits.name, 16)
    half = step("add", step("and", upper, 1), 0x7FFF)
    nearest = Value(step("lshr", step("add", half, bits.name), 16), "uint32", x.lanes)
    quiet = Value(step("or", upper, 0x40), "uint32", x.lanes)
    is_nan = code.value(f"fcmp uno {x.type} {x.name}, {x.name}", "bool", x.lanes)
    return converted(code, chosen(code, is_nan, quiet, nearest), "uint16")._replace(dtype="bfloat16")


@_operation("broadcast_in_dim", "copy", "expand_dims", "reduce_max", "reduce_sum", "reshape", "squeeze")
def _same(code: Code, given: Given) -> Value:
    """Shapes are not known here: there are elements of a tile, or one number of it, which is its own sum."""
    del code
    return given.values[0]


@_operation("reduce_precision")
def _reduced_precision(code: Code, given: Given) -> Value:
    """As precise as a float32 is, or a bfloat16."""
    bits = given.parameters["exponent_bits"], given.parameters["mantissa_bits"]
    if given.dtype != "float32" or bits not in ((8, 23), (8, 7)):
        raise Unsupported(f"it reduces {given.dtype} to {bits} bits")
    (x,) = given.values
    return x if bits == (8, 23) else _widened(code, _rounded(code, x))


@_operation("integer_pow")
@_in_float32
def _power(code: Code, given: Given) -> Value:
    (x,) = given.values
    if given.parameters["y"] != 2 or x.dtype != "float32":
        raise Unsupported(f"it computes a power of {given.parameters['y']}")
    return code.value(f"fmul {x.type} {x.name}, {x.name}", x.dtype, x.lanes)


@_operation("square")
@_in_float32
def _square(code: Code, given: Given) -> Value:
    return OPERATIONS["mul"](code, given._replace(values=given.values * 2))
