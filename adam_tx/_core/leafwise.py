"""The machinery of a declared link: its state from its slots, its update from the rule of one leaf."""

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from adam_tx._core import blocks, correction, debias, hyperparams, numerics, states
from adam_tx._core.correction import Average
from adam_tx._core.declaration import Call, Declaration, required_params
from adam_tx._core.hyperparams import DecayNow, Parameters
from adam_tx._core.trees import Column, ShapeOf, Walk, increment

KINDS = ("gradient", "square", "params")


class Slot(NamedTuple):
    """A part of a link's state with one array for every leaf.

    Attributes:
      kind: what it is like, from which follows how others treat it:
        "gradient": signed, complex where the gradient is; a change of basis rotates it.
        "square": a size of the gradient or its square: real, at least zero; a change of
        basis sorts it. "params": starts as a copy of the parameters.
      decay: the hyperparameter by which it is an average that starts from zero; None if it is none.
    """

    kind: str
    decay: str | None = None


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

    Attributes:
      apply: `(now, …) -> updates`, or `-> (updates, *slots)` for a link with slots, in
        their order: a pure function of arrays in working precision. Its parameters
        after `now` are named after what it reads: `updates`, `grad` (the raw gradient),
        `params`, slots, statistics, and numbers of the state.
      formula: what the link emits, in one line.
      debias: the decays whose weight the rule reads as `now.<decay>.weight`.
      dtype: what the slots are stored in; None for float32, or wider where the parameter is.
      start: what slots start from, by name; zero where it is not said.
      shape: of slots that stand for blocks of their leaf: `(path, shape) -> shape`, or None where there is none.
      statistics: by name, sums and means that the rule reads.
      numbers: `(now, …) -> numbers` for a link with numbers: their new values by name,
        from their old ones and statistics over the tree; the rule reads the new ones,
        and whatever else is returned here, by name.
      mask: tree of booleans, or a function from params to one; other leaves pass as they are.
      correctable: whether dividing what is emitted by a weight, as `bias_correction`
        does, would undo the start from zero of what the slots average.
      elementwise: whether the rule of an element depends on that element alone; a rule
        with statistics is known not to be.
      changes_gradient: whether the link changes the gradient itself, as clipping does.
      corrects: the decays by which it undoes an average's start from zero, by the order
        of the average; None for one it leaves alone. With all of them None the link
        takes them, when a chain is made, from the averages that stand before it.
    """

    apply: Callable[..., Any]
    formula: str = "as its docstring says"
    debias: Sequence[str] = ()
    dtype: DTypeLike | None = None
    start: Mapping[str, float] = field(default_factory=dict)
    shape: Mapping[str, ShapeOf] = field(default_factory=dict)
    statistics: Mapping[str, Reduction] = field(default_factory=dict)
    numbers: Callable[..., Mapping[str, Any]] | None = None
    mask: Any = None
    correctable: bool = True
    elementwise: bool = True
    changes_gradient: bool = False
    corrects: Mapping[int, Any] | None = None


class Now:
    """What a rule may depend on at one update: the link's hyperparameters by name, and the count of earlier updates.

    A decay is a `DecayNow`; another hyperparameter a Python float, or a 0-d array in
    the precision of the leaf. `now.next` has what they will be at the next update.
    """

    def __init__(self, values: Mapping[str, Any], count: Any, following: Callable[[], "Now"]) -> None:
        self.__dict__.update(values, count=count, _following=following)

    @property
    def next(self) -> "Now":
        """The hyperparameters of the next update."""
        return self._following()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"the link has no hyperparameter {name!r}: annotate it with Decay, NonNegative, Positive or Finite."
        )


class Kind:
    """What all links that one function makes have in common."""

    def __init__(
        self,
        function: Callable[..., Any],
        slots: Mapping[str, Slot],
        numbers: Mapping[str, float],
        debiases: Sequence[str],
    ) -> None:
        self.name, self.slots, self.numbers = function.__name__, dict(slots), dict(numbers)
        self.parameters = Parameters(function)
        for name, slot in self.slots.items():
            if slot.kind not in KINDS:
                raise ValueError(f"{self.name}: the kind of slot {name} must be one of {KINDS}, got {slot.kind!r}.")
        taken = {"count", "updates", "grad", "params", "now"} & {*self.slots, *self.numbers}
        if taken:
            raise ValueError(f"{self.name}: {sorted(taken)} cannot name a slot or number: they mean something else.")
        self.weights = {decay: "weight" if decay == "decay" else f"weight_{decay}" for decay in debiases}
        self._module = "adam_tx" if function.__module__.startswith("adam_tx.") else function.__module__
        # all at once, so that a program that was exported elsewhere finds them registered
        for size in range(len(debiases) + 1):
            for debiased in itertools.combinations(debiases, size):
                self.state_type(debiased)
                self.state_type(debiased, counted=True)

    def state_type(self, debiased: Sequence[str], *, counted: bool = False) -> Any:
        """The type of the states of links that debias by these decays, with or without a count."""
        weights = [name for decay, name in self.weights.items() if decay in debiased]
        fields = (*(["count"] if counted else []), *weights, *self.numbers, *self.slots)
        return states.state_type(self.name, fields, self._module)


class Leafwise(Declaration):
    """A link made from the rule of a leaf."""

    def __init__(self, kind: Kind, rule: Rule, arguments: Mapping[str, Any], call: Call) -> None:
        self.name, self.formula, self.call = kind.name, rule.formula, call
        self.kind, self.rule = kind, rule
        self.hyperparams = dict(arguments)
        self._type = kind.state_type(rule.debias)
        self.keeps = bool(self._type._fields)
        self._readers = kind.parameters.readers(arguments)
        self._absent: dict[str, Any] = {name: None for name in kind.parameters.ranges if name not in self._readers}
        self._reads = self._names_of(rule.apply)
        self._terms = {name: self._names_of(statistic.term) for name, statistic in rule.statistics.items()}
        self._over_tree = {name: stat for name, stat in rule.statistics.items() if stat.over == "tree"}
        self._of_leaf = {name: stat for name, stat in rule.statistics.items() if stat.over != "tree"}
        everything = {*self._reads, *(name for names in self._terms.values() for name in names)}
        self._inputs = [name for name in ("updates", "grad", "params") if name in everything]
        self.reads_grad = "grad" in everything
        self.changes_gradient = rule.changes_gradient
        self.elementwise = rule.elementwise and not rule.statistics and not rule.shape
        self.averages = self._averages()
        for name, slot in kind.slots.items():
            decay = None if slot.decay is None else arguments[slot.decay]
            hyperparams.check_moment_dtype(name, rule.dtype, decay, squares=slot.kind == "square")
        for decay in rule.debias:
            if decay not in kind.weights:
                raise ValueError(f"{self.name}: a rule that debiases by {decay} is a link with debiases=({decay!r},).")

    def _names_of(self, function: Callable[..., Any]) -> tuple[str, ...]:
        """What a rule reads, from the names of its parameters."""
        names = tuple(inspect.signature(function).parameters)
        known = {"now", "updates", "grad", "params", *self.kind.slots, *self.kind.numbers, *self.rule.statistics}
        if self.rule.numbers is None and (unknown := [name for name in names if name not in known]):
            raise TypeError(
                f"{self.name}: its rule reads {unknown}, which are neither slots nor statistics of the link nor any of "
                "now, updates, grad and params."
            )
        return names

    def _averages(self) -> tuple[Average, ...]:
        orders, rule = {"gradient": 1, "square": 2}, self.rule
        return tuple(
            Average(
                orders[slot.kind],
                self.hyperparams[slot.decay],
                slot.decay in rule.debias or not rule.correctable,
                self.name,
            )
            for slot in self.kind.slots.values()
            if slot.decay is not None
        )

    def after(self, averages: tuple[Average, ...]) -> tuple[Declaration, tuple[Average, ...]]:
        """A correction that says no decays takes them from the averages before it."""
        corrects, declaration = self.rule.corrects, self
        if corrects is None:
            return super().after(averages)
        if self._is_open():
            corrects = correction.to_correct(averages)
            by_name = {f"b{order}": decay for order, decay in corrects.items()}
            declaration = self.call.maker(**by_name).declaration
            declaration.call = self.call
        return declaration, correction.correct(averages, corrects)

    def _is_open(self) -> bool:
        return self.rule.corrects is not None and all(decay is None for decay in self.rule.corrects.values())

    def begin(self, walk: Walk) -> Any:
        """Slots for every leaf, and zeros where something is debiased."""
        if self._is_open():
            raise ValueError(
                f"{self.name}() without decays takes them from the links before it in adam_tx.chain; elsewhere name "
                f"them, as in {self.name}(0.9, 0.999)."
            )
        kind, dtype = self.kind, walk.scalar_dtype
        weights = {kind.weights[decay]: debias.zero(dtype) for decay in self.rule.debias}
        numbers = {name: jnp.full((), start, dtype) for name, start in kind.numbers.items()}
        return self._type(**weights, **numbers, **{name: walk.tree(self._slot(walk, name)) for name in kind.slots})

    def _slot(self, walk: Walk, name: str) -> Column:
        kind, column = self.kind.slots[name].kind, list(walk.params)
        shape_of, start = self.rule.shape.get(name), self.rule.start.get(name, 0.0)
        for i in walk.present:
            param, working = column[i], walk.dtypes[i]
            stored = working if self.rule.dtype is None else jnp.dtype(self.rule.dtype)
            if kind == "square":
                stored = numerics.real_dtype(stored)
            elif working.kind == "c" and stored.kind != "c":
                raise TypeError(
                    f"params: leaf {walk.path(i)} is complex, so its {name} cannot be stored as {stored}; "
                    "leave dtype=None or choose a complex dtype."
                )
            if kind == "params":
                column[i] = jnp.array(param, dtype=stored, copy=True)
                continue
            column[i] = jnp.full_like(param, start, dtype=stored)
            if shape_of is not None:
                smaller = shape_of(walk.path(i), column[i].shape)
                # reduced from the leaf, so that its sharding is what a reduction of the gradient has
                column[i] = None if smaller is None else blocks.mean(column[i], smaller)
        return column

    def step(self, walk: Walk, updates: Column, state: Any) -> tuple[Column, Any]:
        """Apply the rule to every leaf."""
        kind, rule = self.kind, self.rule
        self._check_state(state)
        now, kept = self._now(walk.count, state)
        columns = self._columns(walk, updates, state)
        marks = None if rule.mask is None else walk.marks(rule.mask)
        rows = {i: self._row(walk, i, columns) for i in walk.present if marks is None or marks[i]}
        if kind.numbers or self._over_tree:
            shared = self._numbers(now, rows, walk, state)
            kept |= {name: shared[name] for name in kind.numbers}
        else:
            shared = {}
        emitted, new = list(updates), {name: list(columns[name]) for name in kind.slots}
        for i, row in rows.items():
            real = numerics.real_dtype(walk.dtypes[i])
            values = row | {"now": now.at(real)} | {name: numerics.cast(value, real) for name, value in shared.items()}
            for name, statistic in self._of_leaf.items():
                values[name] = self._reduced(name, statistic, values)
            out = rule.apply(*[values[name] for name in self._reads])
            if not kind.slots:
                emitted[i] = out
                continue
            emitted[i] = out[0]
            for name, slot in zip(kind.slots, out[1:], strict=True):
                # the only place where a moment changes dtype: a rule sees it in working precision
                new[name][i] = slot if slot is None else numerics.cast(slot, columns[name][i].dtype)
        return emitted, self._type(**kept, **{name: walk.tree(column) for name, column in new.items()})

    def follow(self, state: Any, move: Callable[[str, str, Any], Any]) -> Any:
        """The state with every slot replaced."""
        return state._replace(
            **{name: move(name, slot.kind, getattr(state, name)) for name, slot in self.kind.slots.items()}
        )

    def unknown_in_a_basis(self) -> Iterator[str]:
        """Parameters are not in that basis."""
        copies = [name for name, slot in self.kind.slots.items() if slot.kind == "params"]
        if "params" in self._inputs or copies:
            yield f"{self.name} reads the parameters, which are in another basis; put it outside."

    def _check_state(self, state: Any) -> None:
        fields = getattr(state, "_fields", ())
        if tuple(name for name in fields if name != "count") != self._type._fields:
            raise ValueError(
                f"{self.name}: its state is a {self._type.__name__} of {list(self._type._fields)}, but a "
                f"{type(state).__name__} of {list(fields)} came. Give update the state that init returned; the order "
                "is update(updates, state, params)."
            )

    def _now(self, count: Any, state: Any) -> tuple["_Views", dict[str, Any]]:
        """What the rule may depend on at this update, and the numbers of the state after it."""
        values: dict[str, Any] = {name: read(count) for name, read in self._readers.items()} | self._absent
        kept: dict[str, Any] = {}
        for decay in self.rule.debias:
            field_name = self.kind.weights[decay]
            kept[field_name], weight = debias.advance(getattr(state, field_name), values[decay].step)
            values[decay] = dataclasses.replace(values[decay], total=weight)
        return _Views(values, count, lambda: self._next(values, count)), kept

    def _next(self, values: Mapping[str, Any], count: Any) -> dict[str, Any]:
        """The hyperparameters of the next update."""
        following: dict[str, Any] = {
            name: read(increment(count)) for name, read in self._readers.items()
        } | self._absent
        for decay in self.rule.debias:
            step, weight = following[decay].step, values[decay].weight
            weight = weight + numerics.scalar(step, weight) * (1.0 - weight)
            following[decay] = dataclasses.replace(following[decay], total=weight)
        return following

    def _columns(self, walk: Walk, updates: Column, state: Any) -> dict[str, Column]:
        columns: dict[str, Column] = {}
        for name in self._inputs:
            if name == "updates":
                columns[name] = updates
            else:
                columns[name] = walk.grad if name == "grad" else required_params(walk, self.name)
        for name in self.kind.slots:
            columns[name] = walk.column(getattr(state, name), name, optional=name in self.rule.shape)
        return columns

    def _row(self, walk: Walk, i: int, columns: Mapping[str, Column]) -> dict[str, Any]:
        """What the rule reads of a leaf, in working precision."""
        dtype, slots = walk.dtypes[i], self.kind.slots
        row: dict[str, Any] = {}
        for name, column in columns.items():
            leaf: Any = column[i]
            if name not in slots:
                row[name] = numerics.cast(leaf, dtype)
            elif leaf is None and name in self.rule.shape:
                row[name] = None
            else:
                self._check_slot(walk, i, name, leaf)
                row[name] = numerics.cast(leaf, numerics.real_dtype(dtype) if slots[name].kind == "square" else dtype)
        return row

    def _check_slot(self, walk: Walk, i: int, name: str, slot: Any) -> None:
        lead = walk.updates[i]
        if slot.shape != lead.shape:
            walk.check_shapes(i, {"updates": lead, name: slot}, tuple(self.rule.shape))
        if walk.dtypes[i].kind == "c" and self.kind.slots[name].kind != "square" and slot.dtype.kind != "c":
            raise TypeError(
                f"leaf {walk.path(i)}: a complex gradient came for {name}, which is {slot.dtype} because the "
                "parameter is real. Give update the params, so that the gradient can be projected, or take its real "
                "part."
            )

    def _reduced(self, name: str, statistic: Reduction, values: Mapping[str, Any]) -> jax.Array:
        terms = statistic.term(*[values[read] for read in self._terms[name]])
        if statistic.over in self.kind.slots:
            slot = values[statistic.over]
            shape = terms.shape if slot is None else slot.shape
            return (blocks.mean if statistic.mean else blocks.total)(terms, shape)
        return jnp.sum(terms) / (max(terms.size, 1) if statistic.mean else 1)

    def _numbers(self, now: "_Views", rows: Mapping[int, Any], walk: Walk, state: Any) -> dict[str, Any]:
        """Statistics over the tree, and the new numbers of the state that follow from them."""
        dtype, sums = walk.scalar_dtype, {}
        for name, statistic in self._over_tree.items():
            terms = [
                numerics.cast(
                    self._reduced(name, statistic, row | {"now": now.at(numerics.real_dtype(walk.dtypes[i]))}), dtype
                )
                for i, row in rows.items()
            ]
            sums[name] = sum(terms[1:], terms[0]) if terms else jnp.zeros((), dtype)
        old = {name: getattr(state, name) for name in self.kind.numbers}
        if self.rule.numbers is None:
            return sums | old
        given = {"now": now.at(dtype)} | sums | old
        new = self.rule.numbers(*[given[name] for name in inspect.signature(self.rule.numbers).parameters])
        return sums | old | {name: jnp.asarray(value, dtype) for name, value in new.items()}


class _Views:
    """`Now` in the precision of each leaf: values that are arrays are converted once a dtype."""

    def __init__(self, values: Mapping[str, Any], count: Any, following: Callable[[], Mapping[str, Any]]) -> None:
        self._values, self._count, self._views, self._following = values, count, {}, following

    def at(self, dtype: jnp.dtype) -> Now:
        """For a leaf of this real working dtype."""
        if dtype not in self._views:
            values = {name: _in(value, dtype) for name, value in self._values.items()}
            self._views[dtype] = Now(values, self._count, lambda: self._next.at(dtype))
        return self._views[dtype]

    @functools.cached_property
    def _next(self) -> "_Views":
        return _Views(self._following(), increment(self._count), self._following)


def _in(value: Any, dtype: jnp.dtype) -> Any:
    if isinstance(value, DecayNow):
        return DecayNow(_in(value.value, dtype), _in(value.step, dtype), _in(value.total, dtype))
    return numerics.cast(value, dtype) if isinstance(value, jax.Array) else value
