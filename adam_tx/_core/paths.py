"""Paths of parameters as text, such as `encoder/layer_0/kernel`, and patterns that match them."""

import difflib
import fnmatch
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from adam_tx._core.warn import warn

PathPattern = str | Callable[[str, tuple[int, ...]], bool]
"""A pattern, or a function from the path and shape of a leaf to whether it is meant."""


def path_str(path: Any) -> str:
    """A leaf's path as Python would index it, such as `['dense']['kernel']`."""
    return jax.tree_util.keystr(path) or "(the tree itself)"


def some(paths: Sequence[str], most: int = 5) -> str:
    """The first of some paths, and how many more there are."""
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(paths[:most]) + more


def slashed(path: Sequence[Any]) -> str:
    """The path's parts, joined by slashes."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def shape_of(leaf: Any) -> tuple[int, ...]:
    """The shape of a leaf; that of a number for what has none."""
    return tuple(getattr(leaf, "shape", ()))


class Pattern:
    """Alternatives between `|`, in each of which `*` stands for any text, also with slashes in it.

    `*/` at the beginning may stand for nothing too. An alternative after `!` takes away
    what it matches; where there are no others, from everything.
    """

    def __init__(self, of: PathPattern) -> None:
        self.text = of if isinstance(of, str) else getattr(of, "__name__", type(of).__name__)
        self._meant = None if isinstance(of, str) else of
        self._alternatives = of.split("|") if isinstance(of, str) else []
        self._taken = [_compiled(a[1:]) for a in self._alternatives if a.startswith("!")]
        self._given = [_compiled(a) for a in self._alternatives if not a.startswith("!")]

    def matches(self, path: str, shape: tuple[int, ...]) -> bool:
        """Whether this leaf is meant."""
        if self._meant is not None:
            return bool(self._meant(path, shape))
        given = not self._given or any(regex.fullmatch(path) for regex in self._given)
        return given and not any(regex.fullmatch(path) for regex in self._taken)

    def names(self, path: str, shape: tuple[int, ...]) -> bool:
        """Whether an alternative names this leaf, be it to take it away where nothing else is said."""
        if self._meant is not None or self._given:
            return self.matches(path, shape)
        return any(regex.fullmatch(path) for regex in self._taken)

    def check(self, what: str, leaves: Sequence[tuple[str, Any]], *, of_updates: bool = False) -> None:
        """Refuse a pattern that names none of the leaves, and warn of an alternative in it that matches none.

        Where Optax has masked a whole part of the tree, a pattern may mean what is in there. A function may mean a leaf
        of which no update came: its shape is not known.

        Args:
          what: whose pattern it is, for the message.
          leaves: every leaf, with its path.
          of_updates: whether these are updates, where `None` may stand for a parameter that is there.
        """
        if not leaves:
            return
        if self._meant and of_updates and any(leaf is None for _, leaf in leaves):
            return
        names = [path for path, _ in leaves]
        masked = [path for path, leaf in leaves if isinstance(leaf, optax.MaskedNode)]
        if masked and (self._meant or any(_reaches(a.removeprefix("!"), masked) for a in self._alternatives)):
            return
        if not any(self.names(path, shape_of(leaf)) for path, leaf in leaves):
            raise ValueError(
                f"{what}: the pattern {self.text!r} matches no leaf; {_examples(self.text, names)}. Mend it or take it "
                "away."
            )
        for alternative in self._alternatives:
            glob = alternative.removeprefix("!")
            if not any(_compiled(glob).fullmatch(name) for name in names):
                warn(
                    f"{what}: {alternative!r} in the pattern {self.text!r} matches no leaf; {_examples(glob, names)}. "
                    "Mend it or take it away."
                )


def _examples(pattern: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
    odd = any("|" in name or name.startswith("!") for name in close)
    means = (
        " (a path with | in it, or ! in front, can only be named by a function (path, shape) -> bool)" if odd else ""
    )
    return f"there are, for example, {', '.join(close)}{means}"


def _reaches(glob: str, masked: Sequence[str]) -> bool:
    """Whether it may match something below one of these paths, as its beginning does."""
    begins = [_compiled(glob[:k]) for k in range(1, len(glob) + 1)]
    return any(begin.fullmatch(f"{path}/") for begin in begins for path in masked)


@functools.cache
def _compiled(glob: str) -> re.Pattern[str]:
    front, rest = ("(?:.*/)?", glob[2:]) if glob.startswith("*/") else ("", glob)
    return re.compile(front + fnmatch.translate(rest))
