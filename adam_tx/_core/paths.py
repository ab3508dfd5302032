"""Paths of parameters as text, such as `encoder/layer_0/kernel`, and patterns that match them."""

import difflib
import fnmatch
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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

    def __call__(self, path: str, shape: tuple[int, ...]) -> bool:
        """Whether this leaf is meant: a pattern is a function, too."""
        return self.matches(path, shape)

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

    def may_meet(self, other: "Pattern") -> bool:
        """Whether there could be a leaf that both match; what either takes away does not matter."""
        if self._meant or other._meant:
            return True
        return any(_meet(one, another) for one in self._globs() for another in other._globs())

    def _globs(self) -> Iterator[str]:
        """All that is given, where `*/` at the beginning must not stand for nothing."""
        for glob in [a for a in self._alternatives if not a.startswith("!")] or ["*"]:
            yield glob
            if glob.startswith("*/"):
                yield glob[2:]

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
                f"{what}: the pattern {self.text!r} matches no leaf; {examples(self.text, names)}. Mend it or take it "
                "away."
            )
        for alternative in self._alternatives:
            glob = alternative.removeprefix("!")
            if not any(_compiled(glob).fullmatch(name) for name in names):
                warn(
                    f"{what}: {alternative!r} in the pattern {self.text!r} matches no leaf; {examples(glob, names)}. "
                    "Mend it or take it away."
                )


def meeting(patterns: Sequence[Pattern], most: int) -> list[tuple[int, ...]]:
    """The numbers of patterns that could match one leaf together: first each by itself, then two, and so on.

    Args:
      patterns: the patterns.
      most: how many to find; there may be exponentially many, so the last are left out.
    """
    meets = [[one.may_meet(other) for other in patterns] for one in patterns]
    found = [(k,) for k in range(len(patterns))]
    for numbers in found:  # which grows meanwhile
        if len(found) >= most:
            break
        found += [(*numbers, k) for k in range(numbers[-1] + 1, len(patterns)) if all(meets[j][k] for j in numbers)]
    return found


def _meet(one: str, other: str) -> bool:
    """Whether there is a text that both globs match, one in brackets taken for any character."""
    one, other = (re.sub(r"\[!?\]?[^\]]*\]", "?", glob) for glob in (one, other))
    reached: set[tuple[int, int]] = set()
    following = [(0, 0)]  # how much of each matches one text
    while following:
        i, j = place = following.pop()
        if place in reached:
            continue
        reached.add(place)
        a, b = one[i : i + 1], other[j : j + 1]
        if not a and not b:
            return True
        if a == "*":
            following += [(i + 1, j), (i, j + 1)] if b else [(i + 1, j)]
        elif b == "*":
            following += [(i, j + 1), (i + 1, j)] if a else [(i, j + 1)]
        elif a and b and (a == b or "?" in (a, b)):
            following.append((i + 1, j + 1))
    return False


def numbered(pattern: str, paths: Sequence[str]) -> list[str]:
    """The pattern for each number that stands in these paths where it has `{n}`, in their order.

    There may be several names in braces; the first counts most. Without one it is the pattern itself.
    """
    names = list(dict.fromkeys(re.findall(r"\{(\w+)\}", pattern)))
    if not names:
        return [pattern]
    found: set[tuple[str, ...]] = set()
    for glob in pattern.split("|"):
        regex = _compiled(glob).pattern
        for name in names:
            regex = regex.replace(rf"\{{{name}\}}", rf"(?P<{name}>\d+)", 1).replace(rf"\{{{name}\}}", f"(?P={name})")
        matches = filter(None, (re.fullmatch(regex, path) for path in paths))
        found |= {tuple(match[name] for name in names) for match in matches if set(names) == set(match.groupdict())}
    in_order = sorted(found, key=lambda numbers: [int(number) for number in numbers])
    return [_filled(pattern, dict(zip(names, numbers, strict=True))) for numbers in in_order]


def _filled(pattern: str, numbers: Mapping[str, str]) -> str:
    for name, number in numbers.items():
        pattern = pattern.replace(f"{{{name}}}", number)
    return pattern


def examples(pattern: str, names: Sequence[str]) -> str:
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
