"""`audit`: which Adam a transformation is, and which promises it keeps."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import optax

from adam_tx._core.call import is_optax, maker_name
from adam_tx.describe import closures
from adam_tx.probes.anatomy import anatomy_of
from adam_tx.probes.findings import findings
from adam_tx.probes.identify import nearest, problem_of
from adam_tx.probes.promises import Promise, of_answers
from adam_tx.probes.rates import RATE, effects_of_rates
from adam_tx.probes.report import Audit, audit_of
from adam_tx.probes.subject import Subject, Transformation, arithmetic
from adam_tx.probes.training import of_transformation, stuck_counts

BELOW = 1e-3
"""Of gradients that are not clipped, if larger ones make an optimizer another one."""


def audit(
    tx: optax.GradientTransformation | Callable[..., optax.GradientTransformation],
    *,
    promises: bool = True,
    name: str | None = None,
) -> Audit:
    """Say which optimizer a transformation is, from what it does, and which promises it keeps.

    The transformation is a black box: its code is not read. It gets gradients that were
    designed to tell its parts from each other, in float64: signs that turn, one large
    gradient, sizes down to 1e-24, parameters that are not zero. What it answers says where
    epsilon stands, which averages are corrected, their order and decays, what weight decay
    multiplies. Then the dialects with these parts are fitted to it. It is called one of them
    only if 60 random steps, of the same gradients and parameters, differ by less than 1e-10
    of a step.

    The limits of that:

    - What cannot be told from updates is not told: a momentum that sums, with a learning
      rate, from one that averages, with a larger rate; decay before the step from decay
      after it. Whether decay is multiplied by the learning rate shows only where `tx` is a
      function of it.
    - A schedule is told from a correction by the powers of `1 - b1^t` and `1 - b2^t` that
      the steps follow, so a schedule that follows these is taken for a mistake.
    - Gradients here are as large as 1e10. What clips by a norm is named by what it does to
      gradients below 1e-3, and the report says so; what clips these too is not named.
    - A state in fewer bits than the parameters' is not its dialect in float64. It is "nearest".
    - What happens after 60 steps, or to leaves that are neither matrix nor vector, is not
      seen. Nor are the groups of a tree whose leaves are told apart by their names.
    - `update` must need no more than gradients, state and parameters, and run within
      `jax.jit` and `jax.vmap`.

    Args:
      tx: any Optax transformation; or a function that makes one of `learning_rate`, such as
        `optax.adam`, of which also the effect of a schedule is tried.
      promises: whether to try these, too; without them an audit takes a second.
      name: what to call it in the report.

    Returns:
      An `Audit`: `print` it, read `.dialect`, `.measured`, `.findings` and `.promises`, or
      put `.assert_is("torch.optim.AdamW")` into a test.

    Raises:
      TypeError: what is neither a transformation nor makes one.

    >>> import adam_tx, optax
    >>> found = adam_tx.audit(optax.adamw(1e-3, weight_decay=0.1), promises=False)
    >>> found.assert_is("torch.optim.AdamW", b2=0.999).dialect
    'adam with decoupled weight decay'
    >>> found.measured["weight_decay"]
    0.1
    """
    made, factory = _made(tx)
    subject = Transformation(made, name or _name(tx))
    with arithmetic("float32"):
        tried = [*of_answers(subject), *of_transformation(made)] if promises else []
        stuck = stuck_counts(made)

    def again(rate: Any) -> Transformation:
        assert factory is not None
        return Transformation(factory(rate), subject.name)

    return audited(subject, tried, factory and again, stuck)


def audited(
    subject: Subject,
    tried: list[Promise],
    make: Callable[[Any], Subject] | None = None,
    stuck: list[str] | None = None,
    *,
    schedules: bool = True,
) -> Audit:
    """The audit of a subject whose promises have been tried; `make` makes it with a learning rate."""
    anatomy, problem = anatomy_of(subject), problem_of(subject)
    match, small = nearest(problem, anatomy), False
    if match is not None and not match.same and not problem.leafwise:
        problem_below = problem_of(subject, BELOW)
        below = nearest(problem_below, anatomy.clipped())
        if below is not None and below.same:
            anatomy, problem, match, small = anatomy.clipped(), problem_below, below, True
    found = tuple(findings(anatomy, problem, match, stuck or []))
    if make is not None:
        effects = effects_of_rates(make, schedules=schedules)
        tried = [*tried, *effects.promises()]
        found += tuple(effects.findings(anatomy))
    return audit_of(subject.name, anatomy, problem, match, found, tuple(tried), small=small)


def _made(tx: Any) -> tuple[Any, Callable[[Any], Any] | None]:
    """A transformation, and the function of the learning rate that made it, if it was one."""
    if closures.is_transformation(tx):
        return tx, None
    if not callable(tx):
        raise TypeError(f"audit: tx must be a transformation, or a function that makes one, got {type(tx).__name__}.")
    named = "learning_rate" in inspect.signature(tx).parameters

    def make(rate: Any) -> Any:
        return tx(learning_rate=rate) if named else tx(rate)

    made = make(RATE)
    if not closures.is_transformation(made):
        raise TypeError(f"audit: tx must make a transformation of a learning rate, got {type(made).__name__}.")
    return made, make


def _name(tx: Any) -> str:
    """What a transformation is called."""
    maker = maker_name(tx) if closures.is_transformation(tx) else getattr(tx, "__name__", type(tx).__name__)
    return f"optax.{maker}" if closures.is_transformation(tx) and is_optax(tx) else maker
