"""Run the tests as on processors with fewer instructions.

    python tests/instruction_sets.py [arguments of pytest]

XLA compiles kernels for the instructions that a processor has, and what is rounded once or twice depends on them:
SSE4.2 cannot multiply and add at once, AVX2 can, and AVX-512 chooses otherwise. What is asserted has to hold with each.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

SETS = {"SSE4_2": "sse4_2", "AVX2": "avx2", "AVX512": "avx512f"}
"""Values of XLA's flag, and what Linux calls the least that they need."""
ROOT = Path(__file__).parents[1]


def flags() -> set[str]:
    """What this processor has, by Linux's names."""
    return set(Path("/proc/cpuinfo").read_text().split())


def outcomes(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """What pytest says with each set of instructions that is there: what failed, and in the last line how much."""
    for name in (name for name, flag in SETS.items() if flag in flags()):
        environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_max_isa={name}"}
        command = [sys.executable, "-m", "pytest", "-q", *arguments]
        done = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        *lines, last = done.stdout.strip().splitlines() or [f"exit status {done.returncode}"]
        yield name, [*(line for line in lines if line.startswith(("FAILED", "ERROR"))), last]


def main(arguments: Sequence[str]) -> bool:
    """Print a line for each set, and one for each test that failed; whether there was one."""
    bad = False
    for name, (*failed, last) in outcomes(arguments):
        print(f"{name:8}{last}", *failed, sep="\n        ", flush=True)
        bad |= bool(failed) or "passed" not in last
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
