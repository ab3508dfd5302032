"""Make handler.ll of handler.c: `pip install ziglang`, then `python adam_tx/executors/cpu/make_handler.py`.

Zig brings the compiler, Clang. What is of one processor is left out, so that LLVM
compiles the result for any that has addresses of 64 bits.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

import jax

HERE = pathlib.Path(__file__).parent
_NOT_DONE = ("sanitize=all", "vectorize", "slp-vectorize")
_QUIET = "-Wno-unused-command-line-argument"
_LEFT_OUT = (
    r"^(target|source_filename|; |attributes|!).*\n",  # of one processor, or of one compiler
    r"^declare void @adam_tx_wait.*\n",  # which the engine defines
    r"^.*@llvm\.(lifetime|assume|experimental).*\n",  # hints, which versions of LLVM write differently
    r"( #\d+|, !\S+ !\d+| dso_local| range\([^)]*\)| captures\(none\)| +; preds = .*)",
)


def main() -> None:
    """Write handler.ll."""
    options = ["-Oz", "-S", "-emit-llvm", "-g0", *(f"-fno-{name}" for name in _NOT_DONE), _QUIET]
    with tempfile.TemporaryDirectory() as folder:
        made = pathlib.Path(folder, "handler.ll")
        command = [sys.executable, "-m", "ziglang", "cc", *options, f"-I{jax.ffi.include_dir()}", "-o", str(made)]
        subprocess.run([*command, "handler.c"], cwd=HERE, check=True)
        text = made.read_text()
    for pattern in _LEFT_OUT:
        text = re.sub(pattern, "", text, flags=re.MULTILINE)
    (HERE / "handler.ll").write_text(re.sub(r"\n\n+", "\n\n", text).strip() + "\n")


if __name__ == "__main__":
    main()
