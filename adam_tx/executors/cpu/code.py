"""`Code`: LLVM IR as it is written, and `Value`, a number or several elements in it."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np

from adam_tx.executors.tile import Unsupported

TYPES = {
    "bool": "i1",
    "int8": "i8",
    "uint8": "i8",
    "int16": "i16",
    "uint16": "i16",
    "int32": "i32",
    "uint32": "i32",
    "bfloat16": "i16",
    "float32": "float",
}
"""LLVM's type of each dtype. Of bfloat16 LLVM sees the bits."""


class Value(NamedTuple):
    """A value in LLVM IR.

    Attributes:
      name: what it is called there.
      dtype: its dtype.
      lanes: how many elements it has; 0 for a number.
    """

    name: str
    dtype: str
    lanes: int = 0

    @property
    def type(self) -> str:
        """Its type in LLVM IR."""
        return type_of(self.dtype, self.lanes)


def type_of(dtype: str, lanes: int) -> str:
    """LLVM's type of a number, or of so many elements."""
    if dtype not in TYPES:
        raise Unsupported(f"it computes with {dtype}")
    return f"<{lanes} x {TYPES[dtype]}>" if lanes else TYPES[dtype]


class Code:
    """LLVM IR as it is written.

    Attributes:
      lines: its lines so far.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._names = 0

    def do(self, line: str) -> None:
        """An instruction without a result."""
        self.lines.append(f"  {line}")

    def let(self, expression: str) -> str:
        """An instruction's result, by its name."""
        self._names += 1
        name = f"%v{self._names}"
        self.do(f"{name} = {expression}")
        return name

    def label(self, name: str) -> None:
        """From here on a block of this name."""
        self.lines.append(f"{name}:")

    def value(self, expression: str, dtype: str, lanes: int) -> Value:
        """An instruction's result, of this dtype."""
        return Value(self.let(expression), dtype, lanes)

    def reserve(self) -> int:
        """The number of a line that is written later."""
        self.lines.append("")
        return len(self.lines) - 1

    def address(self, element: str, pointer: str, place: str) -> str:
        """Where in an array of such elements this one is."""
        return self.let(f"getelementptr {element}, ptr {pointer}, i64 {place}")

    def load(self, pointer: str, place: str, dtype: str, lanes: int) -> Value:
        """A number of an array, or several."""
        element = in_memory(dtype)
        of = f"<{lanes} x {element}>" if lanes else element
        name = self.let(f"load {of}, ptr {self.address(element, pointer, place)}, align {_alignment(element)}")
        if dtype == "bool":
            name = self.let(f"trunc {of} {name} to {type_of(dtype, lanes)}")
        return Value(name, dtype, lanes)

    def store(self, pointer: str, place: str, value: Value) -> None:
        """Write a number into an array, or several."""
        element = in_memory(value.dtype)
        of = f"<{value.lanes} x {element}>" if value.lanes else element
        name = self.let(f"zext {value.type} {value.name} to {of}") if value.dtype == "bool" else value.name
        self.do(f"store {of} {name}, ptr {self.address(element, pointer, place)}, align {_alignment(element)}")

    def spread(self, value: Value, lanes: int) -> Value:
        """A number in so many elements."""
        if value.lanes == lanes:
            return value
        of = type_of(value.dtype, lanes)
        first = self.let(f"insertelement {of} poison, {value.type} {value.name}, i32 0")
        zeros = f"<{lanes} x i32> zeroinitializer"
        return self.value(f"shufflevector {of} {first}, {of} poison, {zeros}", value.dtype, lanes)


def in_memory(dtype: str) -> str:
    """LLVM's type of a number in memory, where a boolean takes a byte."""
    return "i8" if dtype == "bool" else type_of(dtype, 0)


def _alignment(element: str) -> int:
    return {"i8": 1, "i16": 2}.get(element, 4)


def constant(number: Any, dtype: str, lanes: int) -> Value:
    """A literal."""
    text = _literal(np.asarray(number, dtype).reshape(()), dtype)
    if lanes:
        text = f"<{', '.join([f'{TYPES[dtype]} {text}'] * lanes)}>"
    return Value(text, dtype, lanes)


def _literal(number: np.ndarray, dtype: str) -> str:
    if dtype == "float32":
        return f"0x{struct.unpack('<Q', struct.pack('<d', float(number)))[0]:016X}"
    if dtype == "bfloat16":
        return str(number.view(np.int16))
    if dtype in ("uint8", "uint16", "uint32"):  # LLVM's integers have no sign
        return str(number.view(f"int{number.itemsize * 8}"))
    return str(int(number))
