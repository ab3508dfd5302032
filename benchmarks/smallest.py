"""`--smallest`: a benchmark in seconds, to see whether it runs at all."""

import argparse
from collections.abc import Sequence
from typing import Any


def add_smallest(parser: argparse.ArgumentParser, **values: Any) -> None:
    """Give a command line the option `--smallest`, which sets others.

    Args:
      parser: the command line.
      values: of its other options, with which the benchmark takes seconds and writes nothing.
    """
    told = "whether it runs at all, in seconds; the numbers mean nothing"
    parser.add_argument("--smallest", action=_Smallest, nargs=0, const=values, default=False, help=told)


class _Smallest(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        del parser, values, option_string
        vars(namespace).update(self.const)
