"""The role of what a link keeps: from its declaration, and from what was done to the gradient before."""

from __future__ import annotations

from adam_tx._core.leafwise import Leafwise
from adam_tx._core.provenance import Provenance
from adam_tx.state.roles import AVERAGES, Averaged, Role, weight_of

_MARKS = ("changed", "basis", "scaled", "steps")
"""The words for what links are known to do, in their order in a role."""


def role_after(updates: Provenance, declared: Role) -> Role:
    """The role of what is kept of updates, from the role that is declared."""
    others = sorted(updates.words.difference(_MARKS))
    return declared.marked([*others, *(word for word in _MARKS if word in updates.words)])


def slot_role(link: Leafwise, name: str, updates: Provenance, grad: Provenance) -> Role:
    """The role of a slot by its declaration: the one that is given there, or that of an average of its kind.

    A link may read the gradient and updates that are something else. Then it is not known which of them a signed slot
    averages, and its role is the link's own.
    """
    slots = link.declaration.slots
    slot = slots[name]
    declared = link.rule.roles.get(name, slot.role)
    if declared is not None:
        return Role.parse(declared)
    alike = [other for other in slots.values() if other.role is None and other[:1] == slot[:1] and other.decay]
    unclear = slot.kind == "gradient" and link.facts.reads_grad and grad != updates
    role = AVERAGES[slot.kind] if alike == [slot] and not unclear else Role.parse(link.name).part(name)
    return role.marked(["blocks"]) if name in link.rule.shape else role


def weight_role(link: Leafwise, decay: str) -> tuple[Averaged, Role]:
    """The kind of the averages that the weight of a decay debiases, and the role of the weight."""
    averages = [slot for slot in link.declaration.slots.values() if slot.decay is not None]
    kinds = {slot.kind for slot in averages if slot.decay == decay}
    if link.rule.corrects:
        kinds = {kind for kind, argument in link.rule.corrects.items() if argument == decay}
    kind = "square" if "square" in kinds else "gradient" if kinds or not averages else averages[0].kind
    name = link.declaration.weights[decay]
    if name in link.rule.roles:
        return kind, Role.parse(link.rule.roles[name])
    if kinds and len([slot for slot in averages if slot.kind == kind]) <= 1:
        return kind, weight_of(AVERAGES[kind])
    return kind if averages else "", Role.parse(link.name).part(name)
