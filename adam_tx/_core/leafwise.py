"""The machinery of a declared link: its state from its slots, its update from the rule of one leaf."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adam_tx._core import blocks, correction, debias, numerics, rounding, sharding, states, storage
from adam_tx._core.abstract_link import AbstractLink, required_params
from adam_tx._core.call import Call
from adam_tx._core.correction import Average
from adam_tx._core.hyperparams import DecayNow
from adam_tx._core.leaves import Column, Leaves, State, increment, is_absent
from adam_tx._core.rule import INPUTS, Declaration, Now, Reduction, Rule, Slot
from adam_tx._core.storage import Stored


class Leafwise(AbstractLink):
    """A link made from the rule of a leaf."""

    def __init__(self, kind: Declaration, rule: Rule, arguments: Mapping[str, Any], call: Call) -> None:
        self.name, self.formula, self.call = kind.name, rule.formula, call
        self.kind, self.rule = kind, rule
        kind.check_rule(rule)
        self.hyperparams = dict(arguments)
        self.storage = storage.of_slots(kind.name, rule.dtype, kind.slots)
        self.scaled = {name: kept.scales_of(name) for name, kept in self.storage.items() if kept.scaled}
        self._optional = {*rule.shape, *(name for name, stored_as in self.storage.items() if stored_as.optional)}
        self._type = kind.state_type(rule.debias, scaled=bool(self.scaled))
        self.keeps = bool(self._type._fields)
        self._readers = kind.parameters.readers(arguments)
        self._absent: dict[str, Any] = {name: None for name in kind.parameters.ranges if name not in self._readers}
        self._reads = self._names_of(rule.apply)
        self._terms = {name: self._names_of(statistic.term) for name, statistic in rule.statistics.items()}
        self._over_tree = {name: stat for name, stat in rule.statistics.items() if stat.over == "tree"}
        self._of_leaf = {name: stat for name, stat in rule.statistics.items() if stat.over != "tree"}
        everything = {*self._reads, *(name for names in self._terms.values() for name in names)}
        self._inputs = [name for name in ("updates", "grad", "params") if name in everything]
        self._reads_noise = "noise" in everything
        self.reads_grad = "grad" in everything
        self.changes_gradient, self.terminal = rule.changes_gradient, rule.terminal
        self.elementwise = rule.elementwise and not rule.statistics and not rule.shape
        self.averages = self._averages()
        for name, slot in kind.slots.items():
            self.storage[name].check(name, slot.kind, None if slot.decay is None else arguments[slot.decay])

    def _names_of(self, function: Callable[..., Any]) -> tuple[str, ...]:
        """What a rule reads, from the names of its parameters."""
        names = tuple(inspect.signature(function).parameters)
        known = {"now", *INPUTS, *self.kind.slots, *self.kind.numbers, *self.rule.statistics}
        if self.rule.numbers is None and (unknown := [name for name in names if name not in known]):
            raise TypeError(
                f"{self.name}: its rule reads {unknown}; it may read now, updates, grad, params, noise, and the slots, "
                f"numbers and statistics of the link, {sorted(known - {'now', *INPUTS})}."
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

    def resolve(self, averages: tuple[Average, ...]) -> tuple[AbstractLink, tuple[Average, ...]]:
        """A correction that says no decays takes them from the averages before it."""
        corrects, declaration = self.rule.corrects, self
        if corrects is None:
            return super().resolve(averages)
        if self._is_open():
            corrects = correction.to_correct(averages)
            by_name = {f"b{order}": decay for order, decay in corrects.items()}
            declaration = self.call.maker(**by_name).implementation.made_by(self.call)
        return declaration, correction.correct(averages, corrects)

    def _is_open(self) -> bool:
        return self.rule.corrects is not None and all(decay is None for decay in self.rule.corrects.values())

    def init_leaves(self, leaves: Leaves) -> State:
        """Slots for every leaf, and zeros where something is debiased."""
        if self._is_open():
            raise ValueError(
                f"{self.name}() without decays takes them from the links before it in adam_tx.chain; elsewhere name "
                f"them, as in {self.name}(0.9, 0.999)."
            )
        kind, dtype = self.kind, leaves.scalar_dtype
        weights = {kind.weights[decay]: debias.zero(dtype) for decay in self.rule.debias}
        starts = {name: self.rule.start.get(name, start) for name, start in kind.numbers.items()}
        numbers = {name: jnp.full((), start, dtype) for name, start in starts.items()}
        slots = {name: self._slot(leaves, name) for name in kind.slots}
        return self._type(**weights, **numbers, **self._kept(leaves, slots))

    def _kept(self, leaves: Leaves, slots: Mapping[str, Column]) -> dict[str, Any]:
        """The parts of the state that hold what is stored of slots."""
        trees: dict[str, Any] = {name: leaves.tree([_values(x) for x in column]) for name, column in slots.items()}
        if self.scaled:
            trees["scales"] = {key: leaves.tree([_scales(x) for x in slots[name]]) for name, key in self.scaled.items()}
        return trees

    def _slot(self, leaves: Leaves, name: str) -> Column:
        kind, stored_as, column = self.kind.slots[name].kind, self.storage[name], list(leaves.params)
        start = self.rule.start.get(name, 0.0)
        for i in leaves.present:
            param, dtype = column[i], stored_as.dtype(leaves.dtypes[i])
            if kind == "square":
                dtype = numerics.real_dtype(dtype)
            elif leaves.dtypes[i].kind == "c" and dtype.kind != "c":
                raise TypeError(
                    f"params: leaf {leaves.path(i)} is complex, so its {name} cannot be stored as {dtype}; "
                    "leave dtype=None or choose a complex dtype."
                )
            if kind == "params":
                first = jnp.array(param, dtype=dtype, copy=True)
            else:
                first = self._smaller(leaves, i, name, jnp.full_like(param, start, dtype=dtype))
            noise = self.noise(np.int32(-1), i, name)
            column[i] = first if first is None else stored_as.begin(leaves.path(i), first, param, kind, noise)
        return column

    def _smaller(self, leaves: Leaves, i: int, name: str, first: jax.Array) -> jax.Array | None:
        """A slot's first value, reduced to what stands for its blocks; None where the leaf has none."""
        shape_of = self.rule.shape.get(name)
        if shape_of is None:
            return first
        smaller = shape_of(leaves.path(i), first.shape)
        if smaller is not None and not blocks.divides(tuple(smaller), first.shape):
            raise ValueError(
                f"{self.name}: leaf {leaves.path(i)} of shape {first.shape} cannot have a {name} of shape {smaller}; "
                "along every axis it must divide the leaf's."
            )
        # reduced from the leaf, so that its sharding is what a reduction of the gradient has
        return None if smaller is None else blocks.mean(first, tuple(smaller))

    def noise(self, count: Any, i: int, what: str) -> storage.Noise:
        """Random bits for a leaf at this update, for one of its slots or for the rule."""
        return lambda like: rounding.bits(like, rounding.seed(count, i, f"{self.name}.{what}"))

    def update_leaves(self, leaves: Leaves, updates: Column, state: State) -> tuple[Column, State]:
        """Apply the rule to every leaf."""
        kind, rule = self.kind, self.rule
        self._check_state(state)
        now, kept = self._now(leaves.count, state)
        columns = self._columns(leaves, updates, state)
        marks = None if rule.mask is None else leaves.marks(rule.mask)
        rows = {i: self._row(leaves, i, columns) for i in leaves.present if marks is None or marks[i]}
        if kind.numbers or self._over_tree:
            shared = self._numbers(now, rows, leaves, state)
            kept |= {name: shared[name] for name in kind.numbers}
        else:
            shared = {}
        emitted, new = list(updates), {name: list(columns[name]) for name in kind.slots}
        for i, row in rows.items():
            values = row | self._beside(leaves, i, now, shared)
            for name, statistic in self._of_leaf.items():
                values[name] = self._reduced(name, statistic, values)
            if missing := [name for name in self._reads if name not in values]:
                raise TypeError(f"{self.name}: its rule reads {missing}, which Rule(numbers=...) does not give.")
            try:
                out = rule.apply(*[values[name] for name in self._reads])
            except FloatingPointError as error:  # under jax_debug_nans, where JAX runs operation by operation
                raise FloatingPointError(f"{self.name}: leaf {leaves.path(i)}: {error}") from error
            emitted[i], *slots = self._checked(leaves, i, out, {name: row[name] for name in kind.slots})
            for name, slot in zip(kind.slots, slots, strict=True):
                new[name][i] = self._encoded(leaves, i, name, slot, columns[name][i])
        return emitted, self._type(**kept, **self._kept(leaves, new))

    def _encoded(self, leaves: Leaves, i: int, name: str, slot: Any, like: Any) -> Stored | None:
        """What is kept of a slot: the only place where a moment changes dtype, of which rules know nothing."""
        if slot is None:
            return None
        return self.storage[name].encode(slot, like, self.noise(leaves.count, i, name))

    def full_precision_params(self, leaves: Leaves, state: State) -> Leaves:
        """Parameters joined with their residuals."""
        residuals = [name for name, slot in self.kind.slots.items() if slot.kind == "residual"]
        if not residuals or leaves.params is None:
            return leaves
        self._check_state(state)
        params, slots = list(leaves.params), self._slots(leaves, state)
        for name in residuals:
            for i in leaves.present:
                if (stored := slots[name][i]) is not None:
                    self._check_slot(leaves, i, name, stored)
                    params[i] = self.storage[name].full_precision(params[i], stored)
        return leaves.with_params(params)

    def map_slots(self, leaves: Leaves, state: State, move: Callable[[str, str, Any], Any]) -> State:
        """The state with every slot replaced."""
        columns = self._slots(leaves, state)
        for name, slot in self.kind.slots.items():
            before = [self._before(leaves, i, name, x) for i, x in enumerate(columns[name])]
            after = leaves.column(move(name, slot.kind, leaves.tree(before)), name, optional=True)
            columns[name] = [
                kept if new is old else self._encoded(leaves, i, name, new, kept)
                for i, (kept, old, new) in enumerate(zip(columns[name], before, after, strict=True))
            ]
        return state._replace(**self._kept(leaves, columns))

    def _before(self, leaves: Leaves, i: int, name: str, kept: Any) -> Any:
        """A slot as what follows a change of basis sees it: as it is kept, if that is an array of numbers."""
        if not isinstance(kept, Stored):
            return kept
        return kept.values if kept.scales is None else self._decoded(leaves, i, name, kept)

    def state_signature(self) -> Hashable:
        """The parts of the state, how they are stored, and the decays that its weights go by."""
        if self.kind.numbers:
            return object()  # of the leaves that it is given, all together
        decays = [self.hyperparams[decay] for decay in self.rule.debias]
        stored = [(type(kept), kept.call.args, *kept.call.kwargs.items()) for kept in self.storage.values()]
        return self._type, *stored, *(float(d) if isinstance(d, int | float | np.generic) else id(d) for d in decays)

    def merge_states(self, leaves: Leaves, owners: Sequence[int], states: Sequence[State]) -> State:
        """Each leaf's slots, from the one that knows it."""
        trees: dict[str, Any] = {
            name: leaves.merged(owners, [getattr(state, name) for state in states]) for name in self.kind.slots
        }
        if self.scaled:
            trees["scales"] = {
                key: leaves.merged(owners, [state.scales[key] for state in states]) for key in self.scaled.values()
            }
        return states[0]._replace(**trees)

    def basis_obstacles(self) -> Iterator[str]:
        """Parameters are not in that basis."""
        copies = [name for name, slot in self.kind.slots.items() if slot.kind == "params"]
        if "params" in self._inputs or copies:
            yield f"{self.name} reads the parameters, which are in another basis; put it outside."

    def _checked(self, leaves: Leaves, i: int, out: Any, slots: Mapping[str, Any]) -> tuple[Any, ...]:
        """What a rule has returned, once it is known to be updates and slots of the right shapes."""
        out = out if isinstance(out, tuple) else (out,)
        shapes = {"updates": leaves.updates[i].shape} | {
            name: None if x is None else x.shape for name, x in slots.items()
        }
        if [None if x is None else jnp.shape(x) for x in out] != list(shapes.values()):
            got = [None if x is None else jnp.shape(x) for x in out]
            raise ValueError(
                f"{self.name}: for leaf {leaves.path(i)} its rule must return {' and '.join(shapes)} of the shapes "
                f"{list(shapes.values())}, but it returned {got}."
            )
        return out

    def _beside(self, leaves: Leaves, i: int, now: "_Views", shared: Mapping[str, Any]) -> dict[str, Any]:
        """What a rule reads beside the columns, in the precision of the leaf."""
        real = numerics.real_dtype(leaves.dtypes[i])
        return {"now": now.at(real)} | {name: numerics.cast(value, real) for name, value in shared.items()}

    def _check_state(self, state: State) -> None:
        states.check(self.name, state, self._type)
        if self.scaled and (came := sorted(state.scales)) != (ours := sorted(self.scaled.values())):
            raise ValueError(
                f"{self.name}: its scales are {ours}, but {came} came. Blocks of another size cannot be read: give the "
                "link the EightBit(block=...) that the state was made with, or call init anew."
            )

    def _now(self, count: Any, state: State) -> tuple["_Views", dict[str, Any]]:
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

    def _columns(self, leaves: Leaves, updates: Column, state: State) -> dict[str, Column]:
        columns: dict[str, Column] = {}
        for name in self._inputs:
            if name == "updates":
                columns[name] = updates
            else:
                columns[name] = leaves.grad if name == "grad" else required_params(leaves, self.name)
        return columns | self._slots(leaves, state)

    def _slots(self, leaves: Leaves, state: State, *, masked: bool = False) -> dict[str, Column]:
        """What is stored of every slot; where a leaf has none, what stands in its place; any may, if masked."""
        columns = {}
        for name in self.kind.slots:
            values = leaves.column(getattr(state, name), name, optional=masked or name in self._optional)
            key = self.scaled.get(name)
            scales = values if key is None else leaves.column(state.scales[key], "scales", optional=True)
            columns[name] = column = list(values)
            for i in leaves.present:
                if not is_absent(values[i]):
                    column[i] = Stored(values[i], None if key is None else scales[i])
        return columns

    def _row(self, leaves: Leaves, i: int, columns: Mapping[str, Column]) -> dict[str, Any]:
        """What the rule reads of a leaf, in working precision."""
        row: dict[str, Any] = {}
        for name, column in columns.items():
            if name not in self.kind.slots:
                row[name] = numerics.cast(column[i], leaves.dtypes[i])
            elif column[i] is None:
                self.storage[name].check_leaf(functools.partial(leaves.path, i), leaves.param_dtypes[i], None)
                row[name] = None
            else:
                self._check_slot(leaves, i, name, column[i])
                row[name] = self._decoded(leaves, i, name, column[i])
        if self._reads_noise:
            row["noise"] = self.noise(leaves.count, i, "rule")(leaves.updates[i])
        return sharding.together(row)

    def _decoded(self, leaves: Leaves, i: int, name: str, stored: Stored) -> jax.Array:
        """A slot in working precision."""
        dtype = leaves.dtypes[i]
        square = self.kind.slots[name].kind == "square"
        return self.storage[name].decode(stored, numerics.real_dtype(dtype) if square else dtype)

    def hyperparams_at(self, count: Any) -> dict[str, Any]:
        """The values of the hyperparameters at this count; a decay as `DecayNow`."""
        return {name: read(count) for name, read in self._readers.items()}

    def weights_corrected(self, state: State) -> Iterator[tuple[int, jax.Array]]:
        """The orders of the averages whose start from zero this link undoes, each with their weight."""
        for order in [order for order, decay in (self.rule.corrects or {}).items() if decay is not None]:
            if f"b{order}" in self.rule.debias:
                yield order, jnp.sum(getattr(state, self.kind.weights[f"b{order}"]))

    def averages_in(self, leaves: Leaves, state: State) -> Iterator[tuple[Slot, Any, Column]]:
        """Of every slot that is an average its weight, if it is debiased by it, and its arrays in working precision.

        Where the state has none for a leaf, as in a mask, there is None.
        """
        stored = self._slots(leaves, state, masked=True) if self.kind.slots else {}
        for name, slot in self.kind.slots.items():
            if slot.decay is None:
                continue
            kept = enumerate(stored[name])
            column = [self._decoded(leaves, i, name, x) if isinstance(x, Stored) else None for i, x in kept]
            weighed = slot.decay in self.rule.debias
            yield slot, jnp.sum(getattr(state, self.kind.weights[slot.decay])) if weighed else None, column

    def _check_slot(self, leaves: Leaves, i: int, name: str, stored: Stored) -> None:
        lead, slot = leaves.updates[i], stored.values
        if slot.shape != lead.shape:
            leaves.check_shapes(i, {"updates": lead, name: slot}, tuple(self.rule.shape))
        if leaves.dtypes[i].kind == "c" and self.kind.slots[name].kind != "square" and slot.dtype.kind != "c":
            raise TypeError(
                f"leaf {leaves.path(i)}: a complex gradient came for {name}, which is {slot.dtype} because the "
                "parameter is real. Give update the params, so that the gradient can be projected, or take its real "
                "part."
            )
        self.storage[name].check_leaf(functools.partial(leaves.path, i), leaves.param_dtypes[i], stored)

    def _reduced(self, name: str, statistic: Reduction, values: Mapping[str, Any]) -> jax.Array:
        terms = statistic.term(*[values[read] for read in self._terms[name]])
        if statistic.over in self.kind.slots:
            slot = values[statistic.over]
            shape = terms.shape if slot is None else slot.shape
            return (blocks.mean if statistic.mean else blocks.total)(terms, shape)
        return jnp.sum(terms) / (float(max(terms.size, 1)) if statistic.mean else 1.0)  # JAX takes no int beyond int32

    def _numbers(self, now: "_Views", rows: Mapping[int, Any], leaves: Leaves, state: State) -> dict[str, Any]:
        """Statistics over the tree, and the new numbers of the state that follow from them."""
        dtype, sums = leaves.scalar_dtype, {}
        old = {name: getattr(state, name) for name in self.kind.numbers}
        for name, statistic in self._over_tree.items():
            terms = [
                numerics.cast(self._reduced(name, statistic, row | self._beside(leaves, i, now, old)), dtype)
                for i, row in rows.items()
            ]
            sums[name] = sum(terms[1:], terms[0]) if terms else jnp.zeros((), dtype)
        if self.rule.numbers is None:
            return sums | old
        given = {"now": now.at(dtype)} | sums | old
        reads = tuple(inspect.signature(self.rule.numbers).parameters)
        if unknown := [name for name in reads if name not in given]:
            raise TypeError(f"{self.name}: Rule(numbers=...) reads {unknown}, but there are {sorted(given)}.")
        new: Any = self.rule.numbers(*[given[name] for name in reads])
        wrong = not isinstance(new, Mapping) or any(jnp.shape(value) for value in new.values())
        if wrong or not new.keys() >= self.kind.numbers.keys():
            raise TypeError(
                f"{self.name}: Rule(numbers=...) must return a dict with a 0-d array for each of "
                f"{list(self.kind.numbers)}, got {new!r}."
            )
        return sums | old | {name: jnp.asarray(value, dtype) for name, value in new.items()}


def _values(stored: Any) -> Any:
    return stored.values if isinstance(stored, Stored) else stored


def _scales(stored: Any) -> Any:
    return stored.scales if isinstance(stored, Stored) else stored


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
