"""All dialects, and which of them has a name."""

from __future__ import annotations

from adam_tx.probes.adams import ADAMS
from adam_tx.probes.dialect import Dialect
from adam_tx.probes.others import OTHERS

DIALECTS = (*ADAMS, *OTHERS)


def by_alias(name: str) -> list[tuple[Dialect, str]]:
    """What has a name, with which decay."""
    return [
        (dialect, decay)
        for dialect in DIALECTS
        for decay, names in dialect.aliases.items()
        if name in names or name == dialect.name
    ]


def known_names() -> list[str]:
    """All names."""
    called = {name for dialect in DIALECTS for names in dialect.aliases.values() for name in names}
    return sorted({*called, *(dialect.name for dialect in DIALECTS)})
