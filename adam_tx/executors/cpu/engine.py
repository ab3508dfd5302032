"""`Engine`: LLVM IR compiled to machine code, by llvmlite. A kernel is compiled once in a process, and stays."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import pathlib
import platform
import threading
from typing import Any, NamedTuple

import jax

from adam_tx.executors.tile import Unsupported

_HANDLER = pathlib.Path(__file__).with_name("handler.ll")
# Told apart from threads that work, a thread that waits leaves them more of the core, where two share one.
_WAIT = {"x86_64": "call void @llvm.x86.sse2.pause()", "aarch64": "call void @llvm.aarch64.hint(i32 1)"}
_LOCK = threading.RLock()  # whoever compiles
_ALIASES = {"amd64": "x86_64", "arm64": "aarch64"}


class Instructions(NamedTuple):
    """A set of instructions that kernels are made for.

    Attributes:
      name: as XLA calls it.
      needs: features that it takes, by LLVM's names.
      processor: one that has these and no more, by LLVM's name; empty for that which it runs on.
      lanes: how many elements are stepped at once: two registers full, so that one is computed while the other waits.
    """

    name: str
    needs: tuple[str, ...]
    processor: str
    lanes: int


SETS = (
    Instructions("AVX512", ("avx512bw", "avx512dq", "avx512vl"), "", 32),
    Instructions("AVX2", ("avx2", "bmi2", "f16c", "fma", "movbe"), "x86-64-v3", 16),
    Instructions("SSE4_2", ("cx16", "popcnt", "sse4.2"), "x86-64-v2", 8),
)
"""Those of x86, the best first."""
USUAL = Instructions("usual", (), "", 8)
"""Those of another processor."""


def obstacle() -> str | None:
    """Why no kernel can be compiled here; None if one can."""
    if importlib.util.find_spec("llvmlite") is None:
        return "llvmlite is not installed: pip install 'adam_tx[cpu]'"
    if _processor() not in _WAIT:
        return f"the processor is {platform.machine()}, for which nobody has tried it"
    return None


def _processor() -> str:
    machine = platform.machine().lower()
    return _ALIASES.get(machine, machine)


@functools.cache
def instruction_sets() -> tuple[Instructions, ...]:
    """Those that this processor has, the best first."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    return tuple(each for each in SETS if all(map(features.get, each.needs))) or (USUAL,)


class Engine:
    """A compiler for a set of instructions.

    Attributes:
      instructions: those that it uses.
    """

    def __init__(self, instructions: Instructions) -> None:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self.instructions = instructions
        self._told: set[str] = set()
        self._machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=instructions.processor or llvm.get_host_cpu_name(),
            features="" if instructions.processor else llvm.get_host_cpu_features().flatten(),
            opt=3,
        )
        self._compiler = llvm.create_mcjit_compiler(self._module(handler(_processor())), self._machine)
        self._compiler.finalize_object()

    def _module(self, text: str) -> Any:
        import llvmlite.binding as llvm

        module = llvm.parse_assembly(text)
        module.triple = self._machine.triple
        module.data_layout = str(self._machine.target_data)
        module.verify()
        options = llvm.create_pipeline_tuning_options(speed_level=2)
        options.loop_vectorization = False  # what is written is vectors already
        options.slp_vectorization = False
        passes = llvm.create_pass_builder(self._machine, options)
        passes.getModulePassManager().run(module, passes)
        return module

    def tell_xla(self, name: str, text: str) -> None:
        """Compile a function that XLA calls by its name, unless that was done before.

        Args:
          name: what it is called in the text; of one name there is one text.
          text: LLVM IR.
        """
        with _LOCK:
            if name in self._told:
                return
            self._compiler.add_module(self._module(text))
            self._compiler.finalize_object()
            address = self._compiler.get_function_address(name)
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(ctypes.c_void_p(address)), platform="cpu")
            self._told.add(name)

    def address(self, name: str) -> int:
        """Where a function is, for tests that call it themselves."""
        return self._compiler.get_function_address(name)

    def assembly(self, text: str) -> str:
        """The machine code of LLVM IR, to read."""
        return self._machine.emit_assembly(self._module(text))


def handler(processor: str) -> str:
    """What XLA calls, as LLVM IR: that of handler.c, and how this processor waits."""
    call = _WAIT[processor]
    declared = call.replace("call", "declare").replace("i32 1", "i32")
    return f"{_HANDLER.read_text()}\n{declared}\ndefine void @adam_tx_wait() {{\n  {call}\n  ret void\n}}\n"


def engine() -> Engine:
    """The compiler for the best instructions that this processor has.

    Raises:
      Unsupported: where there is none.
    """
    if (why := obstacle()) is not None:
        raise Unsupported(why)
    return engine_for(instruction_sets()[0])


def engine_for(instructions: Instructions) -> Engine:
    """The compiler for these, one in a process: of a second one, XLA would be told the same names."""
    with _LOCK:
        return _engine_for(instructions)


@functools.cache  # which by itself makes two where two threads ask at once
def _engine_for(instructions: Instructions) -> Engine:
    return Engine(instructions)
