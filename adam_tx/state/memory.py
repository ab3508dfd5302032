"""`memory_kinds`: in which memory of a device, or of its host, what is kept of parameters lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jax.sharding import AbstractMesh, Mesh

from adam_tx.state.entries import LeafEntry, arrays_of
from adam_tx.state.placement import MeshPlacement
from adam_tx.state.policy import names
from adam_tx.state.roles import Key

DEVICE = "device"


def memory_kinds(
    asked: str | Mapping[str, str], entries: Sequence[LeafEntry], placement: MeshPlacement
) -> dict[int, str]:
    """The kind of memory of arrays of a state, by number; those that are not named lie on the device.

    Args:
      asked: a kind for all of them, or kinds by patterns.
      entries: what is kept of parameters.
      placement: where these lie.
    """
    by_pattern = {"*": asked} if isinstance(asked, str) else asked
    for kind in by_pattern.values():
        _check(kind, placement.mesh)
    found: dict[int, str] = {}
    unused = dict(by_pattern)
    for entry in entries:
        key = Key(entry.role, placement.leaves.paths[entry.leaf])
        meant = {pattern: kind for pattern, kind in by_pattern.items() if names(pattern, key)}
        if len(set(meant.values())) > 1:
            raise ValueError(
                f"memory_kind: {key} is meant by {list(meant)}, which name different memories. Let one mean it: "
                "'nu/*|!*/b' is nu of all but b."
            )
        for pattern, kind in meant.items():
            unused.pop(pattern, None)
            found |= dict.fromkeys(arrays_of(entry), kind)
    if unused:
        keys = dict.fromkeys(str(entry.role) for entry in entries)
        raise ValueError(
            f"memory_kind: {next(iter(unused))!r} means nothing that is kept of parameters, of which there is "
            f"{', '.join(keys) or 'nothing'}. Give a role, or a whole key with the role in front, as in '*/embed/*'."
        )
    return found


def _check(kind: str, mesh: Mesh | AbstractMesh) -> None:
    """Refuse a memory that the devices are known not to have."""
    device = next(iter(mesh.local_devices), None) if isinstance(mesh, Mesh) else None
    kinds = [] if device is None else [memory.kind for memory in device.addressable_memories()]
    if kinds and kind not in kinds:
        raise ValueError(
            f"memory_kind: {kind!r} is no memory of {device}, which has {', '.join(kinds)}. Give one of them, or none."
        )
