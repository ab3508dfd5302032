"""Through how much Python an Adam goes: `python benchmarks/calls.py` prints it as JSON, of the adam_tx that it finds.

Counted are calls of functions that are defined in files of the library. A generator
counts once, when it starts. A list, dict or set comprehension counts as no call, as
Python makes none of it from 3.12 on. So the counts are the same on every Python; `frames`
has comprehensions and resumed generators too, and is larger on 3.11.
"""

import argparse
import inspect
import itertools
import json
import pathlib
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from smallest import add_smallest

COMPREHENSIONS = {"<listcomp>", "<dictcomp>", "<setcomp>"}


class Calls(NamedTuple):
    """How much was gone through.

    Attributes:
      calls: of functions of the library.
      functions: how many different ones.
      files: in how many files.
      file_changes: how often a call is of another file than the one before it.
      frames: how often Python entered a frame: calls, comprehensions on 3.11, and generators each time they go on.
    """

    calls: int
    functions: int
    files: int
    file_changes: int
    frames: int


@dataclass
class Tracer:
    """A profile function that notes the calls of what is defined below a folder, in turn."""

    folder: str
    seen: list[CodeType] = field(default_factory=list[CodeType])
    generators: set[FrameType] = field(default_factory=set[FrameType])
    frames: int = 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """Note a call; going on with a generator is none."""
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(self.folder):
            return
        self.frames += 1
        if code.co_name in COMPREHENSIONS:
            return
        if code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE):
            if frame in self.generators:
                return
            self.generators.add(frame)
        self.seen.append(code)

    def result(self) -> Calls:
        """What was noted."""
        files = [code.co_filename for code in self.seen]
        changes = sum(one != other for one, other in itertools.pairwise(files))
        return Calls(len(files), len(set(self.seen)), len(set(files)), changes, self.frames)


def calls(work: Callable[[], Any], folder: pathlib.Path) -> Calls:
    """The calls of what is defined below a folder, while this works for the second time, when caches are filled."""
    work()
    tracer = Tracer(f"{folder}/")
    sys.setprofile(tracer)
    try:
        work()
    finally:
        sys.setprofile(None)
    return tracer.result()


def folder_of(module: Any) -> pathlib.Path:
    """Where a package lies."""
    return pathlib.Path(module.__file__).parent


def of_adam(make: Callable[[], optax.GradientTransformation]) -> dict[str, Callable[[], Any]]:
    """What is done with an Adam, eagerly, of one float32 leaf."""
    tx = make()
    params = jnp.ones(4)
    state = tx.init(params)
    return {
        "construction": make,
        "init": lambda: tx.init(params),
        "update": lambda: tx.update(params, state, params),
    }


def of_ours() -> dict[str, Callable[[], Any]]:
    """The same of adam_tx, and its state exported and imported."""
    import adam_tx

    tx = adam_tx.adam(1e-3)
    params = jnp.ones(4)
    state = tx.update(params, tx.init(params), params)[1]
    exported = adam_tx.export_state(state, params, tx)
    return of_adam(lambda: adam_tx.adam(1e-3)) | {
        "export_state": lambda: adam_tx.export_state(state, params, tx),
        "import_state": lambda: adam_tx.import_state(tx, params, exported, report=None),
    }


def measure() -> dict[str, Any]:
    """Of both libraries, and where adam_tx came from."""
    import adam_tx

    ours = {name: calls(work, folder_of(adam_tx))._asdict() for name, work in of_ours().items()}
    theirs = of_adam(lambda: optax.adam(1e-3)).items()
    return {
        "from": str(folder_of(adam_tx)),
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "optax": optax.__version__},
        "adam_tx": ours,
        "optax": {name: calls(work, folder_of(optax))._asdict() for name, work in theirs},
    }


def main() -> None:
    """Print what is counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_smallest(parser)
    parser.parse_args()
    print(json.dumps(measure()))


if __name__ == "__main__":
    main()
