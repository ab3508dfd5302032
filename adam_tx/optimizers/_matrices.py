"""`for_matrices`: one optimizer for the matrices of a model, another for what is none; what is not clear is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import optax

from adam_tx._core.matrices import Axes
from adam_tx._core.paths import PathPattern, Pattern, shape_of, some
from adam_tx.optimizers._compose import Link
from adam_tx.training._groups import groups

AxesByPattern = Mapping[str, tuple[Axes, Axes] | None]
"""From a pattern to the axes of the rows and of the columns; None for leaves that are no matrices."""

_NOT_HIDDEN = re.compile(
    r"embed|emb\b|vocab|\bw[tp]e\b|logits?\b|classifier|(?<!multi)(?<!multi_)head(?![a-z])|norm|\bln(?![a-z])"
    r"|bias\b|scale\b"
)
"""Names of what is an embedding, a head, or a vector that `lax.scan` has stacked."""
_LONGEST = 16
"""How many times longer one side of a hidden matrix may be; an embedding's or a head's is a vocabulary."""


def for_matrices(
    optimizer: str,
    of_matrices: Any,
    others: optax.GradientTransformation,
    matrices: PathPattern | None,
    axes: AxesByPattern | None,
    axes_name: str = "axes",
) -> Link:
    """Groups: of the leaves that are matrices, and of the others.

    Args:
      optimizer: who asks, for errors.
      of_matrices: from axes, as `matrix_of` takes them, to the link for matrices with these.
      others: the optimizer of all other leaves.
      matrices: which leaves of two axes are matrices; None for those that nothing speaks against.
      axes: what else is one, and along which axes.
      axes_name: what that is called where the user gives it.
    """
    said = dict(axes or {})
    rest = ("others", others)
    pairs: list[Any] = [(of, rest if pair is None else ("matrices", of_matrices(pair))) for of, pair in said.items()]
    pattern = Matrices(optimizer, matrices, [Pattern(of) for of in said], axes_name)
    return groups([*pairs, (pattern, ("matrices", of_matrices(None)))], rest)


class Matrices(Pattern):
    """The leaves of two axes that are matrices.

    Args:
      optimizer: whose they are, for errors.
      named: a pattern that names them; None for all that nothing speaks against.
      apart: patterns of leaves that are settled otherwise, by their axes.
      axes: the argument that settles them.
    """

    def __init__(self, optimizer: str, named: PathPattern | None, apart: Sequence[Pattern], axes: str) -> None:
        super().__init__("*" if named is None else named)
        self.text = "matrices"
        self._optimizer = optimizer
        self._is_named = named is not None
        self._apart = apart
        self._axes = axes

    def matches(self, path: str, shape: tuple[int, ...]) -> bool:
        """Whether this leaf is one. A vector never is."""
        apart = any(pattern.matches(path, shape) for pattern in self._apart)
        return len(shape) > 1 and not apart and super().matches(path, shape)

    def check(self, what: str, leaves: Sequence[tuple[str, Any]], *, of_updates: bool = False) -> None:
        """Refuse leaves that may be matrices, or not. There need be none."""
        del what, of_updates
        shapes = [(path, shape_of(leaf)) for path, leaf in leaves]
        doubts = {path: self._doubt(path, shape) for path, shape in shapes if self.matches(path, shape)}
        doubtful = {path: doubt for path, doubt in doubts.items() if doubt}
        if doubtful:
            listed = some([f"{path} {dict(shapes)[path]} {doubt}" for path, doubt in doubtful.items()])
            without = "|".join(f"!{path}" for path in doubtful)
            raise ValueError(
                f"{self._optimizer}: these leaves may be hidden matrices or not: {listed}. Say which are, by a pattern "
                f"of paths: matrices={without!r} leaves these to the optimizer of the others, 'blocks/*' takes all of "
                f"two axes in there. What has more axes is one only by {self._axes}={{'<pattern>': (rows, columns)}}."
            )

    def _doubt(self, path: str, shape: tuple[int, ...]) -> str:
        """What speaks against a hidden matrix."""
        if len(shape) > 2:
            return f"has {len(shape)} axes"
        if self._is_named:
            return ""
        if _NOT_HIDDEN.search(path.lower()):
            return "is called as an embedding, a head or a vector is"
        return f"has a side over {_LONGEST} times the other" if max(shape) > _LONGEST * min(shape) else ""
