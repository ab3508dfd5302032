"""Which dialect an optimizer is: those that its anatomy allows are fitted to it, then compared step by step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from adam_tx.probes import dialect as decays
from adam_tx.probes import dialects
from adam_tx.probes.anatomy import LARGE, Anatomy
from adam_tx.probes.dialect import Dialect
from adam_tx.probes.subject import Subject, Trees, arithmetic, steps_held

Array = NDArray[np.float64]
STEPS = 60
SHAPES = {"matrix": (3, 4), "vector": (5,)}
SAME = 1e-10
MOST = 8
"""Dialects that are fitted at most; twice as many where signs are not summed, for little tells these apart."""


class Problem(NamedTuple):
    """Random gradients, a start, and the updates that the subject made of them.

    Attributes:
      grads, params, updates: `[step, ...]` of each leaf. The parameters move by the updates.
      leafwise: whether a leaf's updates are the same whatever the other leaf's gradients are.
      elementwise: whether an element's are, whatever its neighbours'.
    """

    grads: Trees
    params: Trees
    updates: Trees
    leafwise: bool
    elementwise: bool


class Match(NamedTuple):
    """How near a dialect comes.

    Attributes:
      dialect, decay, numbers: the optimizer, and its hyperparameters, fitted.
      differences: the largest of each step, as a share of the step's largest update.
      factors: what all updates of a step are multiplied by, beside that: all 1, or a schedule.
    """

    dialect: Dialect
    decay: str
    numbers: Mapping[str, float]
    differences: Array
    factors: Array

    @property
    def largest(self) -> float:
        """The largest difference of all steps."""
        return float(np.max(self.differences))

    @property
    def same(self) -> bool:
        """Whether it is the subject, as far as can be seen."""
        return self.largest <= SAME

    @property
    def scheduled(self) -> bool:
        """Whether only up to a factor of each step."""
        return bool(np.any(self.factors != 1.0))

    @property
    def names(self) -> tuple[str, ...]:
        """What it is called elsewhere."""
        return self.dialect.names(self.decay)


def problem_of(subject: Subject, scale: float = 1.0) -> Problem:
    """Let the subject make steps from random gradients, whose elements have all magnitudes from 1e-9 to 10, or less."""
    rng = np.random.default_rng(20)
    size = sum(int(np.prod(shape)) for shape in SHAPES.values())
    scales = iter(rng.permutation(np.logspace(-9, 1, size)))
    grads: dict[str, Array] = {}
    start: dict[str, Array] = {}
    for name, shape in SHAPES.items():
        sizes = np.array([next(scales) for _ in range(int(np.prod(shape)))]).reshape(shape)
        grads[name] = scale * sizes * (rng.standard_normal((STEPS, *shape)) + 0.3)
        start[name] = rng.standard_normal(shape)
    experiments = [grads, {**grads, "vector": 3.0 * grads["vector"]}, {**grads, "matrix": grads["matrix"].copy()}]
    experiments[2]["matrix"][:, 0, 0] = scale * (1.0 + np.arange(STEPS) % 3)
    many = {name: np.stack([one[name] for one in experiments]) for name in SHAPES}
    starts = {name: np.stack([value] * len(experiments)) for name, value in start.items()}
    with np.errstate(all="ignore"):
        made = subject.followed(many, starts, "float64")
    plain, other_leaf, other_element = ({name: made[name][i] for name in SHAPES} for i in range(len(experiments)))
    rest = np.ones(SHAPES["matrix"], bool)
    rest[0, 0] = False
    moved = {name: start[name] + np.cumsum(plain[name], 0) - plain[name] for name in SHAPES}
    return Problem(
        grads,
        moved,
        plain,
        leafwise=_near(plain["matrix"], other_leaf["matrix"]),
        elementwise=_near(plain["matrix"][:, rest], other_element["matrix"][:, rest]),
    )


def _near(one: Array, other: Array) -> bool:
    return bool(np.allclose(one, other, rtol=1e-9, atol=0.0))


def nearest(problem: Problem, anatomy: Anatomy) -> Match | None:
    """The dialect that the subject is, or the nearest of those that its anatomy allows; None if it moves nothing."""
    if not any(np.any(u) for u in problem.updates.values()) or not _finite(problem.updates):
        return None
    if anatomy.uphill:
        problem = problem._replace(updates={name: -updates for name, updates in problem.updates.items()})
    ranked = candidates(anatomy, problem)
    unexplained = np.isnan(anatomy.first_correction) or anatomy.degree == 1.0
    best: Match | None = None
    for scheduled in (False, True) if unexplained else (False,):
        for dialect in ranked:
            for decay, start in starts(anatomy, dialect):
                match = fitted(problem, dialect, decay, start, scheduled=scheduled)
                if match.same:
                    return match
                if not scheduled and (best is None or match.largest < best.largest):
                    best = match
    return best


def compared_with(problem: Problem, anatomy: Anatomy, dialect: Dialect, decay: str) -> Match:
    """How near one dialect comes."""
    return min(
        (fitted(problem, dialect, decay, start) for _, start in starts(anatomy, dialect, decay)),
        key=lambda match: match.largest,
    )


def _finite(trees: Trees) -> bool:
    return all(bool(np.all(np.isfinite(value))) for value in trees.values())


def seen(anatomy: Anatomy, problem: Problem) -> dict[str, object]:
    """What is compared with what a dialect says of itself."""
    epsilon = anatomy.epsilon
    steps = np.abs(anatomy.plain)
    return {
        "degree": anatomy.degree,
        "linear": anatomy.linear,
        "second": anatomy.second,
        "order": anatomy.order,
        "ahead": anatomy.ahead > 0.0,
        "fades": bool(np.isfinite(anatomy.b1)),
        "place": epsilon and epsilon.place,
        "corrected": epsilon and epsilon.corrected,
        "first_correction": anatomy.first_correction,
        "second_correction": anatomy.second_correction,
        "rises": bool(steps[0] > 1e6 * steps[-1]),
        "sign": anatomy.second == "sign",
        "keeps": anatomy.b1 != 0.0,
        "elementwise": problem.elementwise,
    }


def candidates(anatomy: Anatomy, problem: Problem) -> list[Dialect]:
    """The dialects that come first by how many of their facts are seen."""
    facts = seen(anatomy, problem)

    def strange(dialect: Dialect) -> float:
        said = {
            "elementwise": True,
            "first_correction": None,
            "rises": False,
            "sign": False,
            "fades": anatomy.linear or None,
            **dialect.seen,
        }
        if anatomy.epsilon is None:  # too small to be seen; none that has one at all may still be without
            said = {key: value for key, value in said.items() if key != "corrected" and (key, value) not in _PLACES}
        off = sum(facts[key] != value for key, value in said.items() if value is not None or key == "place")
        off += not said["elementwise"] and problem.elementwise
        return off + (not dialect.whole and anatomy.decay not in dialect.aliases)

    return sorted(dialects.DIALECTS, key=strange)[: MOST if anatomy.linear else 2 * MOST]


_PLACES = [("place", place) for place in ("outside", "inside", "floor")]


class Start(NamedTuple):
    """Hyperparameters to begin with, and which of them are measured."""

    numbers: Mapping[str, float]
    measured: frozenset[str]


def starts(anatomy: Anatomy, dialect: Dialect, decay: str | None = None) -> list[tuple[str, Start]]:
    """A dialect's decay and hyperparameters, as far as the anatomy has them; a hidden decay as none and as some."""
    found = _measured(anatomy, dialect)
    numbers = {**({} if dialect.whole else {"learning_rate": anatomy.learning_rate}), **dialect.numbers, **found}
    decay = anatomy.decay if decay is None or dialect.whole else decay
    if dialect.whole and "weight_decay" not in numbers:
        return [(decay, Start(numbers, frozenset(found)))]
    if decay == decays.NONE:
        numbers |= {"weight_decay": 0.0} if dialect.whole else {}
        return [(decay, Start(numbers, frozenset({*found, "weight_decay"})))]
    if decay == decays.OWN:
        shares = [0.0, 1e-4, 1e-2, 1e-1]
    else:
        share = anatomy.weight_decay if anatomy.decay == decay else 1e-2 * numbers["learning_rate"]
        shares = [share * (1.0 if decay == decays.L2 else 1.0 / numbers["learning_rate"])]
    return [(decay, Start({**numbers, "weight_decay": share}, frozenset(found))) for share in shares]


def _measured(anatomy: Anatomy, dialect: Dialect) -> dict[str, float]:
    """The hyperparameters that the anatomy has."""
    epsilon = anatomy.epsilon
    values: dict[str, float] = {}
    if anatomy.degree == 1.0:
        values["learning_rate"] = float(abs(anatomy.plain[0])) / LARGE
    elif anatomy.first_correction == 0.0 or not (dialect.whole or np.isnan(anatomy.first_correction)):
        values["learning_rate"] = anatomy.learning_rate
    if anatomy.linear or anatomy.second == "sign":
        if anatomy.b1 < 1.0 - 1e-9:  # else nothing fades, and that is no decay of an average
            values |= {"b1": anatomy.b1, "momentum": anatomy.b1}
        values |= {"b2": anatomy.b2} if anatomy.second in ("average", "sign") else {}
        shown = anatomy.second == "average" or np.isfinite(anatomy.first_correction)  # else it may be an initial value
        values |= {"eps": epsilon.value if epsilon else 0.0} if shown else {}
    known = (*dialect.numbers, *(() if dialect.whole else ("learning_rate",)))
    return {name: value for name, value in values.items() if name in known and np.isfinite(value)}


def fitted(problem: Problem, dialect: Dialect, decay: str, start: Start, *, scheduled: bool = False) -> Match:
    """A dialect with the hyperparameters that come nearest: first those that are not measured, then all of them."""
    model = _Model(problem, dialect, decay, tuple(start.numbers), scheduled)
    numbers = _tidied(model, start.numbers)
    stages = [[name for name in numbers if name not in start.measured], list(numbers)]
    for free in stages[: 1 if scheduled else 2]:
        if free and model.distance(numbers) > SAME:
            numbers = _tidied(model, _refined(model, numbers, free))
    differences, factors = model.compared(numbers)
    return Match(dialect, decay, numbers, differences, factors)


def _tidied(model: _Model, numbers: Mapping[str, float]) -> dict[str, float]:
    """The hyperparameters in as few digits as come as near: people write round numbers."""
    rounded = [{name: _round(name, value, digits) for name, value in numbers.items()} for digits in range(2, 10)]
    distances = [model.distance(row) for row in (*rounded, dict(numbers))]
    near = max(SAME, min(distances) * 1.001)
    return next(row for row, distance in zip((*rounded, dict(numbers)), distances, strict=True) if distance <= near)


def _round(name: str, value: float, digits: int) -> float:
    """So many digits; of a decay so many of its distance from 1."""
    if name not in _DECAYS or not 0.0 < value < 1.0:
        return float(f"{value:.{digits}g}")
    return float(f"{1.0 - float(f'{1.0 - value:.{digits}g}'):.15g}")


@dataclasses.dataclass(frozen=True)
class _Model:
    """A dialect that makes the problem's steps, with as many sets of hyperparameters at once as it has of them."""

    problem: Problem
    dialect: Dialect
    decay: str
    names: tuple[str, ...]
    scheduled: bool

    def updates(self, rows: Sequence[Mapping[str, float]]) -> Trees:
        """`[set, step, ...]`; there is one set more than hyperparameters, so that one program does all."""
        full = [*rows, *[rows[-1]] * (len(self.names) + 1 - len(rows))]
        numbers = {name: np.array([row[name] for row in full]) for name in self.names}
        run = _program(self.dialect.name, self.decay)
        with arithmetic("float64"):
            made = run(jax.tree.map(jnp.asarray, numbers), dict(self.problem.grads), dict(self.problem.params))
        return {name: np.asarray(value)[: len(rows)] for name, value in made.items()}

    def residuals(self, rows: Sequence[Mapping[str, float]]) -> Array:
        """What is missing to the subject's updates, `[set, step, element]`, as shares of the largest one."""
        return self._residuals(rows)[0]

    def _residuals(self, rows: Sequence[Mapping[str, float]]) -> tuple[Array, Array]:
        made, wanted = self.updates(rows), self.problem.updates
        parts: list[Array] = []
        flat = {name: made[name].reshape(len(rows), STEPS, -1) for name in SHAPES}
        aims = {name: wanted[name].reshape(STEPS, -1) for name in SHAPES}
        factors = np.ones((len(rows), STEPS))
        if self.scheduled:
            overlap = sum(np.einsum("rte,te->rt", flat[name], aims[name]) for name in SHAPES)
            factors = overlap / np.maximum(sum(np.sum(flat[name] ** 2, -1) for name in SHAPES), 1e-300)
        for name in SHAPES:
            scale = np.max(np.abs(aims[name]), -1)
            scale[scale == 0.0] = max(float(np.max(np.abs(aim))) for aim in aims.values())
            parts.append((factors[..., None] * flat[name] - aims[name]) / scale[:, None])
        return np.nan_to_num(np.concatenate(parts, -1), nan=1e3, posinf=1e3, neginf=1e3), factors

    def compared(self, numbers: Mapping[str, float]) -> tuple[Array, Array]:
        """The largest difference of each step, and its factor."""
        residuals, factors = self._residuals([numbers])
        return np.max(np.abs(residuals[0]), -1), factors[0]

    def distance(self, numbers: Mapping[str, float]) -> float:
        """The largest difference."""
        return float(np.max(np.abs(self.residuals([numbers]))))


@functools.cache
def _program(name: str, decay: str) -> Any:
    """The steps of a dialect, compiled once, with its hyperparameters as arguments."""
    dialect = next(dialect for dialect in dialects.DIALECTS if dialect.name == name)

    def run(numbers: Any, grads: Any, params: Any) -> Any:
        return steps_held(dialect.make(decay, numbers), grads, params)

    return jax.jit(jax.vmap(run, in_axes=(0, None, None)))


def _refined(model: _Model, numbers: Mapping[str, float], free: list[str]) -> dict[str, float]:
    """The hyperparameters with the least sum of squares, by Gauss's and Newton's steps."""
    current = dict(numbers)
    free = [name for name in free if current[name] > 0.0]
    if not free:
        return current
    for _ in range(12):
        rows = [_moved(current, {name: 1e-6}) for name in free]
        residuals = model.residuals([current, *rows]).reshape(len(rows) + 1, -1)
        slopes = (residuals[1:] - residuals[0]).T / 1e-6
        step, *_ = np.linalg.lstsq(slopes, -residuals[0], rcond=None)
        step *= min(1.0, 2.0 / max(float(np.max(np.abs(step))), 1e-300))
        shares = [0.5**k for k in range(len(model.names) + 1)]
        moved = [_moved(current, dict(zip(free, share * step, strict=True))) for share in shares]
        squares = np.sum(model.residuals(moved).reshape(len(moved), -1) ** 2, -1)
        best = int(np.argmin(squares))
        if not squares[best] < 0.99 * np.sum(residuals[0] ** 2):
            break
        current = moved[best]
    return current


def _moved(numbers: Mapping[str, float], by: Mapping[str, float]) -> dict[str, float]:
    """Hyperparameters times `exp(by)`; what is below 1 as a decay is keeps so, by its distance from 1."""
    moved = dict(numbers)
    for name, change in by.items():
        decays = name in _DECAYS
        moved[name] = 1.0 - (1.0 - moved[name]) * np.exp(change) if decays else moved[name] * np.exp(change)
        if decays:
            moved[name] = float(np.clip(moved[name], 0.0, 1.0 - 1e-12))
    return moved


_DECAYS = ("b1", "b2", "b3", "momentum", "dampening", "rho")
