"""`ImportPolicy`: what of a state may start fresh, and what of a dict may be left over."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from adam_tx._core.paths import Pattern
from adam_tx.state.roles import Key


@dataclasses.dataclass(frozen=True)
class ImportPolicy:
    """What may start fresh, and what may be dropped.

    Attributes:
      fresh: a pattern of what starts as `init` starts it, whatever came.
      drop: a pattern of what may be left over.
      recipe: whether the recipe is another. Then what is missing starts fresh, and what is left over is dropped; only
        what looks alike and is another quantity has to be named.
    """

    fresh: str = ""
    drop: str = ""
    recipe: bool = False

    def starts(self, key: Key) -> bool:
        """Whether this starts fresh, whatever came."""
        return names(self.fresh, key)

    def drops(self, key: Key) -> bool:
        """Whether this may be left over."""
        return self.recipe or names(self.drop, key)

    def idle(self, new: Collection[Key], came: Collection[Key]) -> list[str]:
        """What to say of parts of the patterns that mean no key: of the new state to start, of what came to drop."""
        return [
            f"note: {argument}: {part!r} matches none of the keys, such as {', '.join(map(str, list(keys)[:3]))}; give "
            "a role or a whole key with the role in front, as in '*/embed/*'."
            for argument, pattern, keys in (("fresh", self.fresh, new), ("drop", self.drop, came))
            for part in (pattern.split("|") if pattern else ())
            if not any(names(part.removeprefix("!"), key) for key in keys)
        ]


def names(pattern: str, key: Key) -> bool:
    """Whether a pattern means this key, or its role."""
    matches = Pattern(pattern or "!*").matches
    return matches(str(key), ()) or matches(str(key.shared), ())
