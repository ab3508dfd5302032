"""`kernel`: a tile's program as a function in LLVM IR, which steps some tiles of a leaf in place.

    for each tile                            from its first to its last
      its scales are read, and what concerns the tile as a whole is found out
      for each phase
        for elements, as many at once as the processor takes, and the rest one by one
          read → operations → kept for a later phase, or written
      its new scales are written, and what it is reduced to

It is `void kernel(ptr arrays, ptr scalars, i32 number, i64 row, i64 first, i64 end)`:

    arrays   addresses of the parameter, the gradient and what is kept; then of outputs, what is reduced, and the sample
    scalars  what the body reads of the state's numbers, each in four bytes
    number   that of the leaf in its tree
    row      how many elements follow one another before a new row of blocks begins
    first, end  which tiles
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from adam_tx.executors import jaxprs
from adam_tx.executors.cpu import operations
from adam_tx.executors.cpu.code import Code, Value, constant, in_memory
from adam_tx.executors.cpu.phases import Phase, loops
from adam_tx.executors.jaxprs import Equation
from adam_tx.executors.tile import TileProgram, Unsupported, is_of_elements

_SIGNATURE = "ptr %arrays, ptr %scalars, i32 %number, i64 %row, i64 %first, i64 %end"
_START = {("reduce_max", "float32"): -math.inf, ("reduce_max", "int32"): -(2**31), ("reduce_sum", "float32"): 0.0}
"""What a reduction of nothing is."""


class Kernel(NamedTuple):
    """A tile's program as LLVM IR.

    Attributes:
      name: that of the function, which tells it from every other.
      text: the function, and what it needs.
    """

    name: str
    text: str


def kernel(program: TileProgram, lanes: int) -> Kernel:
    """The function that steps tiles, several elements at once.

    Raises:
      Unsupported: what it does not compute.
    """
    body = "\n".join(_Tiles(program, lanes).written())
    name = f"adam_tx_{hashlib.sha256(body.encode()).hexdigest()[:16]}"
    declared = "\n".join(operations.intrinsics(lanes))
    return Kernel(name, f"{declared}\ndefine weak_odr void @{name}({_SIGNATURE}) {{\nentry:\n{body}\n}}\n")


class _Tiles:
    """The function as it is written.

    Attributes:
      code: its lines.
      known: the values of variables that hold for all of a tile.
    """

    def __init__(self, program: TileProgram, lanes: int) -> None:
        self.program = program
        self.size = program.recipe.block
        self.lanes = lanes
        self.code = Code()
        self.known: dict[Any, Value] = {}
        self.phases, self.after = loops(program)
        self.pointers: dict[Any, str] = {}
        self.scratch: dict[Any, str] = {}
        self.written_to: list[tuple[Any, str]] = []

    def written(self) -> list[str]:
        """Its lines, between its first block and its end."""
        self._enter()
        code = self.code
        code.do("br label %tiles")
        code.label("tiles")
        code.do("%tile = phi i64 [ %first, %entry ], [ %next, %done ]")
        code.do("%more = icmp slt i64 %tile, %end")
        code.do("br i1 %more, label %begin, label %return")
        code.label("begin")
        self._begin_tile()
        block = "begin"
        for number, phase in enumerate(self.phases):
            block = self._phase(number, phase, block)
        self._end_tile()
        for variable in self.program.sampled:
            self._sample(self.scratch[variable], block)
        code.do("br label %done")
        code.label("done")
        code.do("%next = add i64 %tile, 1")
        code.do("br label %tiles")
        code.label("return")
        code.do("ret void")
        return code.lines

    def _enter(self) -> None:
        """Addresses, and what is the same for all tiles."""
        code, program = self.code, self.program
        made = [*program.outputs, *program.reduced]
        count = len(program.arrays) + len(made) + len(program.sampled)
        addresses = [code.let(f"load ptr, ptr {code.address('ptr', '%arrays', str(k))}") for k in range(count)]
        self.pointers = dict(zip(program.arrays, addresses, strict=False))
        # a result lies where its operand does, so what is as it was is there already
        before = [program.arrays[0], *program.arrays[2:]] if program.outputs else []
        each = itertools.zip_longest(made, addresses[len(program.arrays) :], before)
        self.written_to = [(atom, address) for atom, address, was in each if atom is not None and atom is not was]
        self.sample = addresses[-1]
        for k, scalar in enumerate(program.scalars):
            self.known[scalar] = self._scalar(k, str(scalar.aval.dtype), scalar.aval.size)
        self.known[program.number] = Value("%number", "uint32")
        for variable in (*(variable for phase in self.phases for variable in phase.kept), *program.sampled):
            self.scratch[variable] = code.let(f"alloca [{self.size} x {in_memory(str(variable.aval.dtype))}], align 64")
        code.do(f"%ahead = add i64 %row, {self.size - 1}")
        code.do(f"%of_row = udiv i64 %ahead, {self.size}")

    def _scalar(self, k: int, dtype: str, size: int) -> Value:
        if size != 1 or dtype not in ("bool", "float32", "int32", "uint32"):
            raise Unsupported(f"its state has numbers that are {dtype}")
        word = self.code.load("%scalars", str(k), "int32", 0)
        if dtype == "bool":
            return self.code.value(f"trunc i32 {word.name} to i1", dtype, 0)
        if dtype == "float32":
            return self.code.value(f"bitcast i32 {word.name} to float", dtype, 0)
        return word._replace(dtype=dtype)

    def _begin_tile(self) -> None:
        """Where the tile begins, how many elements it has, and its scales."""
        code, program = self.code, self.program
        code.do("%row_number = udiv i64 %tile, %of_row")
        code.do("%before = mul i64 %row_number, %of_row")
        code.do("%in_row = sub i64 %tile, %before")
        code.do(f"%column = mul i64 %in_row, {self.size}")
        code.do("%row_start = mul i64 %row_number, %row")
        code.do("%start = add i64 %row_start, %column")
        code.do("%left = sub i64 %row, %column")
        code.do(f"%is_whole = icmp sgt i64 %left, {self.size}")
        code.do(f"%count = select i1 %is_whole, i64 {self.size}, i64 %left")
        code.do("%start32 = trunc i64 %start to i32")
        self.known[program.start] = Value("%start32", "uint32")
        for variable, pointer in self.pointers.items():
            if not is_of_elements(variable, self.size):
                dtype = str(variable.aval.dtype)
                self.known[variable] = self.code.load(pointer, "%tile", dtype, 0)

    def _end_tile(self) -> None:
        """The new scales are written, and what the tile is reduced to."""
        for equation in self.after:
            self.known[equation.outvars[0]] = self._number(equation)
        for atom, pointer in self.written_to:
            if not is_of_elements(atom, self.size):
                self.code.store(pointer, "%tile", self.known[atom])

    def _sample(self, values: str, before: str) -> None:
        """A loop over the elements of the tile that are sampled."""
        code, every = self.code, self.program.every
        code.do("%tile_end = add i64 %start, %count")
        code.do(f"%sample_ahead = add i64 %start, {every - 1}")
        code.do(f"%sample_first = udiv i64 %sample_ahead, {every}")
        code.do("br label %sample")
        code.label("sample")
        code.do(f"%sampled = phi i64 [ %sample_first, %{before} ], [ %sample_next, %sample.each ]")
        code.do(f"%sample_place = mul i64 %sampled, {every}")
        code.do("%sample_more = icmp slt i64 %sample_place, %tile_end")
        code.do("br i1 %sample_more, label %sample.each, label %sample.exit")
        code.label("sample.each")
        index = code.let("sub i64 %sample_place, %start")
        code.store(self.sample, "%sampled", code.load(values, index, "float32", 0))
        code.do("%sample_next = add i64 %sampled, 1")
        code.do("br label %sample")
        code.label("sample.exit")

    def _phase(self, number: int, phase: Phase, block: str) -> str:
        """A loop over several elements at once, one over the rest, and what the two end with."""
        for equation in phase.before:
            self.known[equation.outvars[0]] = self._number(equation)
        starts = [_start(equation) for equation in phase.reductions]
        many = _Loop(self, number, phase, self.lanes, block, "0")
        ended = many.written([constant(*start, self.lanes) for start in starts])
        halves = self._joined(phase, ended)
        after = f"rest{number}"
        self.code.do(f"br label %{after}")
        self.code.label(after)
        one = _Loop(self, number, phase, 1, after, many.index)
        ended = one.written([self.code.spread(value, 1) for value in halves])
        for equation, value in zip(phase.reductions, self._joined(phase, ended), strict=True):
            self.known[equation.outvars[0]] = value
        return one.exit

    def _joined(self, phase: Phase, ended: Sequence[Value]) -> list[Value]:
        """What the elements at once have come to, as a number each."""
        return [_as_number(self.code, eq, value) for eq, value in zip(phase.reductions, ended, strict=True)]

    def _number(self, equation: Equation) -> Value:
        if equation.primitive.name == "iota":
            return constant(0, str(equation.outvars[0].aval.dtype), 0)
        return operations.write(self.code, equation, self.known, 0)


class _Loop:
    """A phase's loop over elements, several at once or one by one.

    Attributes:
      index: the first element that it leaves out.
      exit: the block that follows it.
    """

    def __init__(self, tiles: _Tiles, number: int, phase: Phase, lanes: int, before: str, start: str) -> None:
        self._tiles = tiles
        self._phase = phase
        self._lanes = lanes
        self._before = before
        self._start = start
        self._label = f"p{number}x{lanes}" if lanes > 1 else f"p{number}rest"
        self._is_last = number == len(tiles.phases) - 1
        self.index = f"%i.{self._label}"
        self.exit = f"{self._label}.exit"

    def written(self, starts: Sequence[Value]) -> list[Value]:
        """What the reductions have come to, from what they start with."""
        code, label = self._tiles.code, self._label
        so_far = [start._replace(name=f"%so_far{k}.{label}") for k, start in enumerate(starts)]
        code.do(f"br label %{label}")
        code.label(label)
        code.do(f"{self.index} = phi i64 [ {self._start}, %{self._before} ], [ %next.{label}, %{label}.each ]")
        lines = [code.reserve() for _ in so_far]
        code.do(f"%next.{label} = add i64 {self.index}, {self._lanes}")
        code.do(f"%fits.{label} = icmp sle i64 %next.{label}, %count")
        code.do(f"br i1 %fits.{label}, label %{label}.each, label %{self.exit}")
        code.label(f"{label}.each")
        for line, start, value, after in zip(lines, starts, so_far, self._each(so_far), strict=True):
            came = f"[ {start.name}, %{self._before} ], [ {after.name}, %{label}.each ]"
            code.lines[line] = f"  {value.name} = phi {value.type} {came}"
        code.do(f"br label %{label}")
        code.label(self.exit)
        return so_far

    def _each(self, so_far: Sequence[Value]) -> list[Value]:
        """What is done for some elements, and what the reductions are then: all is read before anything is written."""
        tiles, code = self._tiles, self._tiles.code
        known = dict(tiles.known)
        place = code.let(f"add i64 %start, {self.index}")
        for variable in self._elements_read():
            dtype = str(variable.aval.dtype)
            if variable in tiles.pointers:
                known[variable] = code.load(tiles.pointers[variable], place, dtype, self._lanes)
            else:
                known[variable] = code.load(tiles.scratch[variable], self.index, dtype, self._lanes)
        for equation in self._phase.each:
            known[equation.outvars[0]] = self._made(equation, known)
        for variable in self._phase.kept:
            code.store(tiles.scratch[variable], self.index, known[variable])
        if self._is_last:
            for variable, pointer in tiles.written_to:
                if is_of_elements(variable, tiles.size):
                    code.store(pointer, place, known[variable])
            for variable in tiles.program.sampled:
                code.store(tiles.scratch[variable], self.index, known[variable])
        reduced = zip(self._phase.reductions, so_far, strict=True)
        return [_join(code, equation, value, known[equation.invars[0]]) for equation, value in reduced]

    def _elements_read(self) -> Iterable[Any]:
        """What the loop reads from memory: of the leaf, or kept by an earlier phase."""
        size = self._tiles.size
        equations = (*self._phase.each, *self._phase.reductions)
        read = [variable for equation in equations for variable in jaxprs.variables(equation)]
        program = self._tiles.program
        read += [*program.outputs, *program.sampled] if self._is_last else []
        made = {equation.outvars[0] for equation in self._phase.each}
        return dict.fromkeys(v for v in read if is_of_elements(v, size) and v not in made)

    def _made(self, equation: Equation, known: dict[Any, Value]) -> Value:
        if equation.primitive.name != "iota":
            return operations.write(self._tiles.code, equation, known, self._lanes)
        aval = equation.outvars[0].aval
        dtype = str(aval.dtype)
        if dtype not in ("int32", "uint32"):
            raise Unsupported(f"it counts elements in {dtype}")
        if aval.shape[equation.params["dimension"]] == 1:
            return constant(0, dtype, self._lanes)
        code = self._tiles.code
        first = code.spread(code.value(f"trunc i64 {self.index} to i32", dtype, 0), self._lanes)
        steps = f"<{', '.join(f'i32 {k}' for k in range(self._lanes))}>"
        return code.value(f"add {first.type} {first.name}, {steps}", dtype, self._lanes)


def _start(equation: Equation) -> tuple[float, str]:
    name = equation.primitive.name
    dtype = str(equation.outvars[0].aval.dtype)
    if (name, dtype) not in _START:
        raise Unsupported(f"it computes {name} of {dtype}")
    return _START[name, dtype], dtype


def _join(code: Code, equation: Equation, one: Value, other: Value) -> Value:
    """What two have come to together."""
    if equation.primitive.name == "reduce_max":
        return operations.extreme(code, one, other, "gt")
    return code.value(f"fadd {one.type} {one.name}, {other.name}", one.dtype, one.lanes)


def _as_number(code: Code, equation: Equation, value: Value) -> Value:
    """What some elements have come to, as a number: halves are joined until one is left."""
    while value.lanes > 1:
        half = value.lanes // 2
        parts: list[Value] = []
        for first in (0, half):
            places = ", ".join(f"i32 {k}" for k in range(first, first + half))
            shuffled = f"shufflevector {value.type} {value.name}, {value.type} poison, <{half} x i32> <{places}>"
            parts.append(code.value(shuffled, value.dtype, half))
        value = _join(code, equation, *parts)
    return code.value(f"extractelement {value.type} {value.name}, i32 0", value.dtype, 0)
