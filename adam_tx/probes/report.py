"""What an audit found, as data, as a table, and as an assertion."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping

import numpy as np

from adam_tx.describe.summary import aligned
from adam_tx.probes import dialects
from adam_tx.probes.anatomy import Anatomy
from adam_tx.probes.dialect import Dialect
from adam_tx.probes.identify import SAME, STEPS, Match, Problem, compared_with
from adam_tx.probes.promises import Promise

NEAR = 0.1
"""Farther away than this share of a step no dialect is called the nearest."""
_DECAYS = {
    "decoupled": " with decoupled weight decay",
    "in the gradient": " with weight decay in the gradient",
    "cautious": " with cautious weight decay",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Audit:
    """What `audit` found of an optimizer; printed, it is a table.

    Attributes:
      subject: what was probed.
      dialect: which optimizer it is, as "adam with decoupled weight decay"; None if it is none that is known.
      names: what that is called elsewhere, as "torch.optim.AdamW".
      nearest: where `dialect` is None, the nearest one; None if none is within a tenth of a step.
      small: whether only for small gradients, as larger ones are clipped.
      scheduled: whether it is the dialect but for a factor that all updates of a step share.
      difference: the largest difference from the dialect, or from the nearest, in shares of a step.
      first_step: the first step that differs by more than 1e-10, from 1; None if none does.
      measured: the hyperparameters, by name.
      anatomy: the parts, as the answers show them.
      findings: sentences about mistakes.
      promises: what was tried beside that, with the numbers.
    """

    subject: str
    dialect: str | None
    names: tuple[str, ...]
    nearest: str | None
    small: bool
    scheduled: bool
    difference: float
    first_step: int | None
    measured: Mapping[str, float]
    anatomy: Anatomy
    findings: tuple[str, ...]
    promises: tuple[Promise, ...]
    problem: Problem = dataclasses.field(repr=False)

    @property
    def broken(self) -> tuple[Promise, ...]:
        """The promises that are not kept."""
        return tuple(promise for promise in self.promises if promise.kept is False)

    def assert_is(self, name: str, **hyperparams: float) -> Audit:
        """Raise unless this is the optimizer of a name, with these hyperparameters.

        Args:
          name: of a dialect, "adam with decoupled weight decay", or of a library, "torch.optim.AdamW".
          **hyperparams: what must have been measured, within 1e-6 of it: `learning_rate=1e-3`.

        Returns:
          This audit.

        Raises:
          AssertionError: it is another, or goes the other way; the message says what it is, which mistakes are
            seen, and from which step on and by how much the two differ.
          ValueError: the name is not known.
        """
        options = dialects.by_alias(name)
        if not options and name != self.dialect:
            near = difflib.get_close_matches(name, dialects.known_names(), 3)
            raise ValueError(f"assert_is: name must be one of {near or dialects.known_names()}, got {name!r}.")
        backwards = self.anatomy.uphill or self.measured.get("weight_decay", 0.0) < 0.0
        if backwards or name not in (*self.names, self.dialect):
            raise AssertionError("\n".join([f"{self.subject} is not {name}: {self.verdict}.", *self._unlike(options)]))
        for key, wanted in hyperparams.items():
            found = self.measured.get(key, float("nan"))
            if not abs(found - wanted) <= 1e-6 * abs(wanted):
                raise AssertionError(f"{self.subject} is {name}, but its {key} is {found:.9g}, not {wanted:.9g}.")
        return self

    def _unlike(self, options: list[tuple[Dialect, str]]) -> Iterator[str]:
        """How this differs from what was expected."""
        yield from (f"- {finding}" for finding in self.findings)
        for dialect, decay in options[:1]:
            match = compared_with(self.problem, self.anatomy, dialect, decay)
            if not match.same:
                yield (
                    f"- From {dialect.name}{_DECAYS.get(match.decay, '')}, fitted, it differs from step "
                    f"{first_step(match)} on, at most by {match.largest:.1e} of a step."
                )

    @property
    def verdict(self) -> str:
        """Which optimizer it is, in a line."""
        if self.dialect is not None:
            factor = ", times a factor of each step, such as a schedule" if self.scheduled else ""
            also = f", which is {', '.join(self.names)}" if self.names else ""
            below = ", for small gradients, of which larger ones are clipped" if self.small else ""
            return f"it is {self.dialect}{factor}{also}{below}"
        if self.nearest is not None:
            return (
                f"it is no known optimizer; nearest is {self.nearest}, from which it differs from step "
                f"{self.first_step} on, at most by {self.difference:.1e} of a step"
            )
        return "it is no known optimizer, nor near one"

    def __str__(self) -> str:
        return "\n".join([f"{self.subject}: {self.verdict}.", *self._lines()])

    def _lines(self) -> Iterator[str]:
        if self.dialect is not None:
            yield f"Largest difference in {STEPS} steps of float64: {self.difference:.1e} of a step."
        yield from (f"! {finding}" for finding in self.findings)
        parts = [("part", "found"), *parts_of(self.anatomy, self.problem)]
        parts += [(name, f"{value:.9g}") for name, value in self.measured.items()]
        rows = [("promise", "kept", "shown")]
        rows += [(p.name, {True: "yes", False: "NO", None: "-"}[p.kept], p.shown) for p in self.promises]
        for table in (parts, rows):
            head, *lines = aligned(table, texts=len(table[0]))
            rule = "-" * max(map(len, [head, *lines]))
            yield from ("", head, rule, *lines)


def parts_of(anatomy: Anatomy, problem: Problem) -> Iterator[tuple[str, str]]:
    """The anatomy in words."""
    epsilon = anatomy.epsilon
    yield "step grows as", f"gradient^{anatomy.degree:g}"
    if anatomy.second not in ("nothing", "unknown") and anatomy.linear:
        yield "divided by", f"{'root of the ' if anatomy.root else ''}{anatomy.second}"
        yield "order", anatomy.order or "no momentum"
        corrected = [_corrected(anatomy.first_correction, 1.0), _corrected(anatomy.second_correction, -0.5)]
        yield "start from zero", f"first moment {corrected[0]}, second {corrected[1]}"
    if anatomy.linear:
        yield "look-ahead", "none" if anatomy.ahead == 0.0 else f"{anatomy.ahead:+.4g} of the newest gradient's weight"
    if anatomy.degree == 0.0 and anatomy.linear:
        place = {"outside": "outside the root", "inside": "inside the root", "floor": "the least denominator"}
        where = (
            f"{place[epsilon.place]}, {'after' if epsilon.corrected else 'before'} its correction" if epsilon else ""
        )
        yield "epsilon", f"{epsilon.value:.6g} {where}" if epsilon else "none"
    yield "weight decay", anatomy.decay
    yield "reads", "its own element" if problem.elementwise else "its leaf" if problem.leafwise else "all leaves"


def _corrected(power: float, without: float) -> str:
    return "?" if np.isnan(power) else {0.0: "corrected", without: "not corrected"}.get(power, "wrongly corrected")


def first_step(match: Match) -> int | None:
    """The first step that differs, from 1."""
    off = np.flatnonzero(match.differences > SAME)
    return int(off[0]) + 1 if off.size else None


def audit_of(
    subject: str,
    anatomy: Anatomy,
    problem: Problem,
    match: Match | None,
    findings: tuple[str, ...],
    promises: tuple[Promise, ...],
    *,
    small: bool,
) -> Audit:
    """All of it together."""
    known = match is not None and match.same
    title = f"{match.dialect.name}{'' if match.dialect.whole else _DECAYS.get(match.decay, '')}" if match else None
    near = match is not None and match.largest <= NEAR
    return Audit(
        subject=subject,
        dialect=title if known else None,
        names=match.names if match is not None and known else (),
        nearest=title if near and not known else None,
        small=small,
        scheduled=match is not None and known and match.scheduled,
        difference=match.largest if match is not None else float("nan"),
        first_step=first_step(match) if match is not None else None,
        measured=dict(match.numbers) if match is not None and (known or near) else _plain(anatomy),
        anatomy=anatomy,
        findings=findings,
        promises=promises,
        problem=problem,
    )


def _plain(anatomy: Anatomy) -> dict[str, float]:
    """What the anatomy alone measured."""
    values = {name: getattr(anatomy, name) for name in ("learning_rate", "b1", "b2")}
    values |= {"eps": anatomy.epsilon.value} if anatomy.epsilon else {}
    return {name: value for name, value in values.items() if np.isfinite(value)}
