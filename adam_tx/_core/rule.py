"""What a link is declared by: slots, statistics, the rule of one leaf, and what all links of one kind share."""

from __future__ import annotations

import itertools
import keyword
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import jax

from adam_tx._core import blocks, states
from adam_tx._core.blocks import Shape, ShapeOf
from adam_tx._core.hyperparams import Parameters
from adam_tx._core.masks import Mask
from adam_tx._core.storage import StorageLike

KINDS = ("gradient", "square", "params", "residual")
INPUTS = ("updates", "grad", "params", "noise", "path")
RESERVED = {"count", "index", "now", "scales", *INPUTS, *keyword.kwlist} - {
    "path"
}  # links may have a slot of that name


class Slot(NamedTuple):
    """A part of a link's state with one array for every leaf.

    Attributes:
      kind: what it is like, from which follows how others treat it:
        "gradient": signed, complex where the gradient is; a change of basis rotates it.
        "square": a size of the gradient or its square: real, at least zero; a change of
        basis sorts it. "params": starts as a copy of the parameters. "residual": what a
        parameter has beyond its dtype; a storage of its own keeps it.
      decay: the hyperparameter by which it is an average that starts from zero; None if it is none.
      role: what it is to other links and frameworks, such as "trace". None for what the
        declaration says: "mu" if it is the link's only average of kind "gradient", "nu" if
        it is that of kind "square", and what is no other link's in all other cases.
      eps, eps_root: the hyperparameters that are added to its root, and inside of it, where
        updates are divided by that.
    """

    kind: str
    decay: str | None = None
    role: str | None = None
    eps: str | None = None
    eps_root: str | None = None


class Reduction(NamedTuple):
    """A statistic of many elements, reduced before the rule runs.

    Attributes:
      term: of one element: a function whose parameters are named after what it reads
        (`updates`, `grad`, `params`, a slot, `now`).
      over: what it is reduced over: "tensor", "tree", or the blocks of the slot of that name.
      mean: whether to divide the sum by the number of elements; never over the tree.
    """

    term: Callable[..., jax.Array]
    over: str = "tensor"
    mean: bool = False


def total(term: Callable[..., jax.Array], over: str = "tensor") -> Reduction:
    """The sum of a term over a tensor, over the whole tree, or over each block of a slot."""
    return Reduction(term, over)


def mean(term: Callable[..., jax.Array], over: str = "tensor") -> Reduction:
    """The mean of a term over a tensor or over each block of a slot."""
    return Reduction(term, over, mean=True)


@dataclass(frozen=True)
class Rule:
    """The rule of one leaf, and what of a link depends on its arguments.

    `now`, the first parameter of a rule, has every hyperparameter by its name, and::

        now.count            the number of earlier updates
        now.next             the same hyperparameters at the next update
        now.<decay>.value    a decay
        now.<decay>.step     1 - decay, without the rounding of float32
        now.<decay>.weight   1 - Π decay over all updates, where `debias` names it

    Attributes:
      apply: `(now, …) -> updates`, or `-> (updates, *slots)` for a link with slots, in
        their order: a pure function of arrays in working precision. Its parameters
        after `now` are named after what it reads: `updates`, `grad` (the raw gradient),
        `params`, slots, statistics, numbers of the state, `noise`: 32 random bits for
        every element, and `path`: a function that gives the leaf's, such as `['dense']['kernel']`.
      formula: what the link emits, in one line.
      debias: the decays whose weight the rule reads as `now.<decay>.weight`.
      dtype: what the slots are stored as, or a mapping by name: a dtype, a `Storage`, or
        None for float32, or wider where the parameter is.
      start: what slots and numbers start from, by name; where it is not said slots start
        from zero, numbers from what the link declares.
      roles: of slots whose role depends on the arguments, by name, see `Slot`; and of weights of decays by which no
        slot averages, by their name in the state.
      shape: of slots that stand for blocks of their leaf: `(path, shape) -> shape`, or None where there is none.
      statistics: by name, sums and means that the rule reads.
      numbers: `(now, …) -> numbers` for a link with numbers: their new values by name,
        from their old ones and statistics over the tree; the rule reads the new ones,
        and whatever else is returned here, by name.
      mask: tree of booleans, or a function from params to one; other leaves pass as they are.
      marked_only: whether slots are kept of the leaves alone that the mask marks.
      correctable: whether a `bias_correction` may follow: whether what is emitted is
        proportional to the average of a "gradient" slot, or to one over the root of that
        of a "square" slot.
      elementwise: whether the rule of an element depends on that element alone; a rule
        with statistics, or that reads the path, is known not to be.
      terminal: whether what is emitted has to be added to the parameters as it is.
      is_step: whether what is emitted is the step from the parameters that the rule read, all in all: nothing may
        scale it or add to it. Only a link that is terminal may stand behind it in a chain.
      changes_gradient: whether the link changes the gradient itself, as clipping does.
      passes_gradient: whether what it makes of a gradient is the gradient still. That of a
        link that changes or corrects it is, and that of one that multiplies it.
      corrects: the averages before it whose start from zero it undoes: by the kind of their
        slots the hyperparameter that is their decay. With all of these hyperparameters None the link
        takes them, when a chain is made, from the averages that stand before it.
      multiplies_by: the hyperparameter by which it multiplies the updates, and does no more,
        if that is the learning rate.
      sign: of the product, 1 or -1.
    """

    apply: Callable[..., Any]
    formula: str = "as its docstring says"
    debias: Sequence[str] = ()
    dtype: StorageLike | Mapping[str, StorageLike | None] | None = None
    start: Mapping[str, float] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    shape: Mapping[str, ShapeOf] = field(default_factory=dict)
    statistics: Mapping[str, Reduction] = field(default_factory=dict)
    numbers: Callable[..., Mapping[str, Any]] | None = None
    mask: Mask = None
    marked_only: bool = False
    correctable: bool = False
    elementwise: bool = True
    terminal: bool = False
    is_step: bool = False
    changes_gradient: bool = False
    passes_gradient: bool = False
    corrects: Mapping[str, str] = field(default_factory=dict)
    multiplies_by: str | None = None
    sign: int = 1

    def starts_finite(self, slot: str) -> bool:
        """Whether all numbers of a slot are known to be finite at first."""
        start = self.start.get(slot, 0.0)
        return isinstance(start, int | float) and math.isfinite(start)

    def slot_shape(self, link: str, slot: str, where: str, leaf: Shape) -> Shape | None:
        """The shape of a slot that stands for blocks of the leaf at this path; None where the leaf has none."""
        shape = self.shape[slot](where, leaf)
        if shape is not None and not blocks.divides(tuple(shape), leaf):
            raise ValueError(
                f"{link}: leaf {where} of shape {leaf} cannot have a {slot} of shape {shape}; along every axis it must "
                "divide the leaf's."
            )
        return None if shape is None else tuple(shape)

    def check(self, link: str) -> None:
        """Refuse what no rule says, for a link of this name."""
        for name, usual in _PLAIN.items():
            if type(given := getattr(self, name)) is not type(usual):
                raise TypeError(f"{link}: Rule({name}=...) must be a {type(usual).__name__}, got {given!r}.")
        if self.sign not in (1, -1):
            raise ValueError(f"{link}: Rule(sign=...) must be 1 or -1, got {self.sign!r}.")
        if any(isinstance(mark, int | float) and mark not in (0, 1) for mark in jax.tree.leaves(self.mask)):
            raise TypeError(
                f"{link}: mask must be a tree of booleans, one for each leaf or part of the tree of params, or a "
                f"function from params to one, got {self.mask!r}."
            )


_PLAIN = {of.name: of.default for of in fields(Rule) if isinstance(of.default, bool | str)}


class Declaration:
    """What all links that one function makes have in common.

    Attributes:
      maker: the function that makes them.
    """

    maker: Callable[..., Any]

    def __init__(
        self,
        function: Callable[..., Any],
        slots: Mapping[str, Slot],
        numbers: Mapping[str, float],
        debiases: Sequence[str] | str,
    ) -> None:
        self.parameters = Parameters(function)
        self.name, self.slots, self.numbers = function.__name__, dict(slots), dict(numbers)
        self.debiases = (debiases,) if isinstance(debiases, str) else tuple(debiases)
        self.weights = {decay: "weight" if decay == "decay" else f"weight_{decay}" for decay in self.debiases}
        self._check_names(set(self.parameters.signature.parameters))
        self._module = function.__module__
        # all at once, so that a program that was exported elsewhere finds them registered
        for chosen in itertools.product((False, True), repeat=len(self.debiases)):
            debiased = list(itertools.compress(self.debiases, chosen))
            for scaled, counted in itertools.product({False, bool(slots)}, (False, True)):
                self.state_type(debiased, scaled=scaled, counted=counted)

    def _check_names(self, arguments: set[str]) -> None:
        """Refuse names that mean something else, and hyperparameters that are not there."""
        for name, slot in self.slots.items():
            if not isinstance(slot, Slot) or slot.kind not in KINDS:
                raise ValueError(f"{self.name}: slot {name} must be a Slot of one of the kinds {KINDS}, got {slot!r}.")
            if slot.decay is not None and (slot.decay not in arguments or slot.kind == "params"):
                raise ValueError(
                    f"{self.name}: slot {name} says that it averages by {slot.decay!r}; that must be a hyperparameter, "
                    f"one of {sorted(arguments)}, and the slot no copy of the parameters."
                )
        if unknown := [decay for decay in self.debiases if decay not in arguments]:
            raise ValueError(f"{self.name}: it debiases by {unknown}, which must be among {sorted(arguments)}.")
        for name in (*self.slots, *self.numbers):
            if name in RESERVED or name in self.weights.values() or not name.isidentifier() or name.startswith("_"):
                raise ValueError(f"{self.name}: {name!r} cannot name a slot or number: it means something else.")
            if name in self.slots and name in self.numbers:
                raise ValueError(f"{self.name}: {name!r} is both a slot and a number; name one of them otherwise.")

    def state_type(self, debiased: Sequence[str], *, scaled: bool = False, counted: bool = False) -> Any:
        """The type of the states of links that debias by these decays, with or without scales and a count."""
        weights = [name for decay, name in self.weights.items() if decay in debiased]
        fields = (*["count"] * counted, *weights, *self.numbers, *self.slots, *["scales"] * scaled)
        return states.state_type(self.name, fields, self._module)

    def check_rule(self, rule: Rule) -> None:
        """Refuse a rule that names what this kind of link does not have."""
        rule.check(self.name)
        kept, names = {*self.slots, *self.numbers}, self.parameters
        averaged = [slot.decay for slot in self.slots.values() if slot.decay is not None]
        for decay in {*averaged, *self.debiases}:
            if not names.is_decay(decay):
                raise TypeError(f"{self.name}: {decay} is the decay of an average, so annotate it with Decay.")
        for what, given, allowed in (
            ("debias", rule.debias, self.debiases),
            ("start", rule.start, kept),
            ("roles", rule.roles, {*self.slots, *self.weights.values()}),
            ("shape", rule.shape, self.slots),
            ("corrects", rule.corrects.values(), names.ranges),
            ("multiplies_by", [rule.multiplies_by] if rule.multiplies_by else [], names.ranges),
        ):
            if unknown := [name for name in given if name not in allowed]:
                raise ValueError(f"{self.name}: Rule({what}=...) names {unknown}, but there are {sorted(allowed)}.")
        for name, statistic in rule.statistics.items():
            if name in kept or name in RESERVED:
                raise ValueError(f"{self.name}: the statistic {name!r} has the name of something else.")
            over = {"tensor", "tree", *self.slots}
            if statistic.over not in over or (statistic.over == "tree" and statistic.mean):
                raise ValueError(
                    f"{self.name}: the statistic {name!r} is {'the mean' if statistic.mean else 'the total'} over "
                    f"{statistic.over!r}; it may be over {sorted(over)}, and over the tree only a total."
                )
        if bool(self.numbers) != (rule.numbers is not None):
            raise ValueError(f"{self.name}: a link with numbers has a Rule(numbers=...), and no other has one.")
