"""`Facts`: what others need to know of a link, and the one place where members' facts become those of the whole.

A chain, a guard, a group: whatever holds links takes its facts from theirs with `combined`,
and then says by name where it differs. So no wrapper can forget one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from adam_tx._core.bias import Average, Correction, corrected
from adam_tx._core.same import same

T = TypeVar("T")


class Stranger(NamedTuple):
    """A transformation from elsewhere, of which no more is known.

    Attributes:
      name: what it is called.
      may_average: whether its state could hold an average; asked only where it matters.
    """

    name: str
    may_average: Callable[[], bool]


@dataclass(frozen=True)
class Facts:
    """What others need to know of a link.

    Attributes:
      reads_grad: whether the raw gradient must be there.
      changes_gradient: whether it is known to change the gradient itself, as clipping
        does, or nothing is known of what it does.
      passes_gradient: whether what it makes of the gradient is the gradient still: clipped,
        decayed, corrected, or multiplied by a constant.
      averages: what of its averages is in what it emits.
      corrects: the averages before it whose start from zero it undoes.
      strangers: what is in it of transformations from elsewhere.
      elementwise: whether the rule of an element depends on that element alone.
      terminal: whether what it emits has to be added to the parameters as it is: nothing
        may change it, not even a rounding to their dtype.
      keeps_new_params: the names of what it keeps of the parameters as its updates make them, so
        that nothing may change these.
      is_step: whether what it emits is the whole step from the parameters that it read: nothing may change it but a
        terminal link, which adds it.
      holds_back: whether there are links inside that may not see every update.
      looks_ahead: whether something has to be known before a step is made.
      branches: whether a link inside may run in a branch of the program, out of which nothing can be taken.
      keeps: whether it has a state inside a chain; a link that does not has no entry there.
    """

    reads_grad: bool = False
    changes_gradient: bool = False
    passes_gradient: bool = False
    averages: tuple[Average, ...] = ()
    corrects: tuple[Correction, ...] = ()
    strangers: tuple[Stranger, ...] = ()
    elementwise: bool = True
    terminal: bool = False
    keeps_new_params: tuple[str, ...] = ()
    is_step: bool = False
    holds_back: bool = False
    looks_ahead: bool = False
    branches: bool = False
    keeps: bool = True


def combined(members: Sequence[Facts], *, in_turn: bool = False) -> Facts:
    """The facts of what holds these: of links in turn, or of links side by side, of one as well as of many.

    Raises:
      ValueError: in turn, an average that is corrected twice, or by another decay than its own.
    """
    averages, corrects = _in_turn(members) if in_turn else _side_by_side(members)
    return Facts(
        reads_grad=any(member.reads_grad for member in members),
        changes_gradient=any(member.changes_gradient for member in (_of_gradient(members) if in_turn else members)),
        passes_gradient=all(member.passes_gradient for member in members),
        averages=averages,
        corrects=corrects,
        strangers=tuple(stranger for member in members for stranger in member.strangers),
        elementwise=all(member.elementwise for member in members),
        terminal=any(member.terminal for member in (members[-1:] if in_turn else members)),
        keeps_new_params=tuple(_each_once([name for member in members for name in member.keeps_new_params])),
        is_step=any(member.is_step for member in members),
        holds_back=any(member.holds_back for member in members),
        looks_ahead=any(member.looks_ahead for member in members),
        branches=any(member.branches for member in members),
        keeps=any(member.keeps for member in members),
    )


def held_back(facts: Facts, around: str) -> Facts:
    """The facts of a link around which something of that name may leave updates out."""
    averages = tuple(average._replace(held_back=around) for average in facts.averages)
    return dataclasses.replace(facts, holds_back=True, averages=averages)


def _of_gradient(members: Sequence[Facts]) -> Sequence[Facts]:
    """The members to which, one after the other, what comes in is the gradient still."""
    for k, member in enumerate(members):
        if not member.passes_gradient:
            return members[: k + 1]
    return members


def _in_turn(members: Sequence[Facts]) -> tuple[tuple[Average, ...], tuple[Correction, ...]]:
    averages: tuple[Average, ...] = ()
    corrects: tuple[Correction, ...] = ()
    for member in members:
        for correction in member.corrects:
            found = corrected(averages, correction)
            averages = averages if found is None else found
            corrects += (correction,) if found is None else ()
        averages += member.averages
    return averages, corrects


def _side_by_side(members: Sequence[Facts]) -> tuple[tuple[Average, ...], tuple[Correction, ...]]:
    """What any of them averages and corrects; an average that is not in what each emits is not alone."""
    averages = [
        average._replace(alone=average.alone and all(_is_in(average, member.averages) for member in members))
        for average in _each_once([average for member in members for average in member.averages])
    ]
    return tuple(averages), tuple(_each_once([correction for member in members for correction in member.corrects]))


def _each_once(facts: Sequence[T]) -> list[T]:
    """Without those that are there already."""
    once: list[T] = []
    for fact in facts:
        if not _is_in(fact, once):
            once.append(fact)
    return once


def _is_in(fact: object, facts: Sequence[object]) -> bool:
    return any(same(fact, other) for other in facts)


def check_gradient(what: str, members: Sequence[tuple[str, Facts]]) -> None:
    """Refuse, of links in turn, one that changes the gradient when a link behind it reads the raw one."""
    of_gradient = len(_of_gradient([facts for _, facts in members]))
    for k, (changer, facts) in enumerate(members[:of_gradient]):
        reader = next((name for name, other in members[k + 1 :] if other.reads_grad), None)
        if facts.changes_gradient and reader is not None:
            raise ValueError(
                f"{what}: {changer!r} stands {'in front' if k else 'first'}, but {reader!r} reads the gradient as it "
                f"entered the chain, so it would not see what {changer!r} does to it. Put that in front of the chain: "
                f"optax.chain(<{changer}>, adam_tx.chain(...)). If it is a part of the algorithm, say so: "
                "as_link(<it>, formula=...)."
            )
