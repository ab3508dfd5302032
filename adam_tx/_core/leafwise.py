"""`Leafwise`, a link made from the rule of a leaf: its state from its slots, its update from `LeafStep`."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import ScalarOrSchedule

from adam_tx._core import bias, numerics, states
from adam_tx._core.abstract_leaf_step import KeptOfLeaf, StoredSlot
from adam_tx._core.abstract_link import AbstractLink, MoveSlot, required_params
from adam_tx._core.ahead import known
from adam_tx._core.bias import Average, Correction
from adam_tx._core.call import Call
from adam_tx._core.facts import Facts
from adam_tx._core.first_value import FirstValue
from adam_tx._core.leaf import Leaf
from adam_tx._core.leaf_step import At, Hyperparams, LeafStep, NowByDtype, Row, Slots
from adam_tx._core.leaves import Column, Leaves, is_absent
from adam_tx._core.provenance import Provenance, Run
from adam_tx._core.rounding import Bits
from adam_tx._core.rule import Declaration, Rule
from adam_tx._core.states import Fields, State
from adam_tx._core.storage import Noise, Stored, of_slots
from adam_tx._core.tree_numbers import TreeNumbers


class Leafwise(AbstractLink):
    """A link made from the rule of a leaf.

    Attributes:
      declaration: what all links of its function have in common.
      rule: what is its own.
      storage: how each slot is kept.
      scaled: the names of the scales that slots have, by slot.
      step: one leaf's step.
      numbers: its hyperparameters, and the weights of its averages.
    """

    def __init__(self, declaration: Declaration, rule: Rule, arguments: Mapping[str, Any], call: Call) -> None:
        self.name = declaration.name
        self.formula = rule.formula
        self.call = call
        self.declaration = declaration
        self.rule = rule
        declaration.check_rule(rule)
        self.hyperparams = arguments
        self.storage = of_slots(declaration.name, rule.dtype, declaration.slots)
        self.scaled = {name: kept.scales_of(name) for name, kept in self.storage.items() if kept.scaled}
        self.step = LeafStep(self.name, declaration, rule, self.storage)
        self._tree = TreeNumbers(self.name, declaration.numbers, rule, self.step)
        self._optional = {*rule.shape, *(name for name, stored_as in self.storage.items() if stored_as.optional)}
        self._type = declaration.state_type(rule.debias, scaled=bool(self.scaled))
        self._weights = {decay: declaration.weights[decay] for decay in rule.debias}
        self.numbers = Hyperparams(declaration.parameters, arguments, self._weights)
        self.facts = self._facts()
        for name, slot in declaration.slots.items():
            self.storage[name].check(name, slot.kind, None if slot.decay is None else arguments[slot.decay])

    def _facts(self) -> Facts:
        rule = self.rule
        given: Mapping[str, Any] = self.hyperparams
        corrects = [(kind, argument, given[argument]) for kind, argument in rule.corrects.items()]
        return Facts(
            reads_grad="grad" in self.step.inputs,
            changes_gradient=rule.changes_gradient,
            passes_gradient=bool(
                rule.passes_gradient or rule.changes_gradient or rule.corrects or rule.multiplies_by or rule.terminal
            ),
            averages=tuple(
                Average(slot.kind, given[slot.decay], slot.decay in rule.debias or not rule.correctable, self.name)
                for slot in self.declaration.slots.values()
                if slot.decay is not None
            ),
            corrects=tuple(Correction(kind, decay, name) for kind, name, decay in corrects if decay is not None),
            elementwise=rule.elementwise and not (rule.statistics or rule.shape or "path" in self.step.reads),
            terminal=rule.terminal,
            is_step=rule.is_step,
            looks_ahead=any(storage.looks_ahead for storage in self.storage.values()),
            keeps=bool(self._type._fields) or self.is_open,  # an open one is asked for a state, and refuses
        )

    @property
    def is_open(self) -> bool:
        """Whether it is a correction that takes its decays from the averages that stand before it."""
        return bool(self.rule.corrects) and all(self.hyperparams[name] is None for name in self.rule.corrects.values())

    def closed(self, before: Facts) -> AbstractLink:
        """The correction with the decays of the averages that stand before it."""
        unknown = [stranger.name for stranger in before.strangers if stranger.may_average()]
        decays = bias.to_correct(before.averages, unknown)
        found = {self.rule.corrects[kind]: decay for kind, decay in decays.items() if kind in self.rule.corrects}
        return self.declaration.maker(**self.declaration.parameters.given({**self.hyperparams, **found})).implementation

    def debiased_square(self) -> tuple[str, str] | None:
        """The first such slot."""
        for name, slot in self.declaration.slots.items():
            if slot.kind == "square" and slot.decay is not None and slot.decay in self.rule.debias:
                return name, self.declaration.weights[slot.decay]
        return None

    def init_leaves(self, leaves: Leaves) -> State:
        """Slots for every leaf, and zeros where something is debiased."""
        if self.is_open:
            raise ValueError(
                f"{self.name}() without decays takes them from the links before it in adam_tx.chain. "
                f"Alone, or in optax.chain, give them: {self.name}(0.9) corrects a momentum with decay 0.9."
            )
        dtype = leaves.scalar_dtype
        if self.rule.marked_only and self.rule.mask is not None:
            marks = leaves.marks(self.rule.mask)
            leaves = leaves.only([i for i in leaves.present if marks[i]])
        weights = {self.declaration.weights[decay]: bias.zero(dtype) for decay in self.rule.debias}
        numbers = {
            name: jnp.full((), self.rule.start.get(name, start), dtype)
            for name, start in self.declaration.numbers.items()
        }
        slots = {
            name: FirstValue(self.name, name, slot.kind, self.rule, self.storage[name]).of(
                leaves, functools.partial(self._noise_of, leaves, count=np.int32(-1), what=name)
            )
            for name, slot in self.declaration.slots.items()
        }
        return self._type(**weights, **numbers, **self._kept(leaves, slots))

    def _kept(self, leaves: Leaves, slots: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """The parts of the state that hold what is stored of slots."""
        unflatten = leaves.treedef.unflatten
        trees: dict[str, Any] = {
            name: unflatten([x.values if type(x) is Stored else x for x in column]) for name, column in slots.items()
        }
        if self.scaled:
            trees["scales"] = {
                key: unflatten([x.scales if type(x) is Stored else x for x in slots[name]])
                for name, key in self.scaled.items()
            }
        return trees

    def _noise_of(self, leaves: Leaves, i: int, count: Any, what: str) -> Noise:
        return Bits(count, i, f"{leaves.positions.get(leaves.place, self.name)}.{what}")

    def update_leaves(self, leaves: Leaves, updates: Column, state: State) -> tuple[Column, State]:
        """Apply the rule to every leaf."""
        fields: Any = state
        if self.facts.keeps and (type(state) is not self._type or self.scaled):
            fields = self._checked(state)
        if "params" in self.step.inputs and leaves.params is None:
            required_params(leaves, self.name)
        return self.run(leaves, updates, fields, self.numbers.at)

    def run(self, leaves: Leaves, updates: Column, fields: Fields, at: At) -> tuple[Column, State]:
        """Apply the rule to every leaf, with the hyperparameters that `at` gives."""
        step = self.step
        columns = self.stored(leaves, fields)
        marks = None if self.rule.mask is None else leaves.marks(self.rule.mask)
        chosen = leaves.present if marks is None else [i for i in leaves.present if marks[i]]
        read = {i: self._leaf(leaves, i, updates, columns) for i in chosen}
        now, kept = at(leaves.count, fields)
        numbers: Mapping[str, jax.Array] = {}
        rows: dict[int, Row] = {}
        if self.declaration.numbers or step.over_tree:
            rows = {i: step.read(*of_leaf) for i, of_leaf in read.items()}
            numbers = known(leaves.ahead, lambda: self._tree.at(now, rows, leaves, fields))
            kept |= {name: numbers[name] for name in self.declaration.numbers}
        emitted = list(updates)
        for i, (leaf, slots) in read.items():
            real = numerics.real_dtype(leaf.dtype)
            given = {name: numerics.cast(value, real) for name, value in numbers.items()} if numbers else numbers
            row = rows[i] if rows else step.read(leaf, slots)
            emitted[i], new = step.write(now.made.get(real) or now.at(real), given, leaf, slots, row)
            for name, slot in new.items():
                columns[name][i] = slot
        return emitted, self._type(**kept, **self._kept(leaves, columns))

    def _leaf(self, leaves: Leaves, i: int, updates: Column, columns: Mapping[str, Any]) -> tuple[Leaf, Slots]:
        """A leaf as its step reads it, and what is kept of it, once it is known to be of its shape."""
        leaf = Leaf(
            leaves.dtypes[i],
            updates[i],
            None if leaves.grad is None else leaves.grad[i],
            None if leaves.params is None else leaves.params[i],
            leaves.count,
            i,
            leaves.path,
            None,
            leaves.param_dtypes[i] if self._optional else None,
            leaves.on_explicit_mesh,
            leaves.place,
            leaves.positions,
            leaves.ahead,
            layers=leaves.layers_of(i),
        )
        slots = {name: column[i] for name, column in columns.items()}
        self._check_slots(leaves, i, slots)
        return leaf, slots

    def _check_slots(self, leaves: Leaves, i: int, slots: Mapping[str, Any]) -> None:
        """Refuse what is kept of a leaf that is stepped, but is not of its shape."""
        for name, stored in slots.items():
            if isinstance(stored, optax.MaskedNode):
                raise ValueError(
                    f"{self.name}: the mask marks leaf {leaves.path(i)}, of which the state keeps no {name}. Give the "
                    "mask that the state was made with, or make a new one with adam_tx.migrate."
                )
            if stored is not None and (stored.values.shape != leaves.updates[i].shape or leaves.dtypes[i].kind == "c"):
                self._check_slot(leaves, i, name, stored)

    def full_precision_params(self, leaves: Leaves, state: State) -> Leaves:
        """Parameters joined with their residuals."""
        slots = self.declaration.slots.values()
        if leaves.params is None or all(slot.kind != "residual" for slot in slots):
            return leaves
        kept = self.kept_of_leaves(leaves, state)
        params = [self.full_precision_of(x, kept[i]) if i in leaves.present else x for i, x in enumerate(leaves.params)]
        return leaves.replace(params=params)

    def full_precision_of(self, param: jax.Array, kept: KeptOfLeaf) -> jax.Array:
        """A parameter joined with its residuals."""
        for name, slot in self.declaration.slots.items():
            stored = kept.get(name)
            if slot.kind == "residual" and isinstance(stored, Stored):
                param = self.storage[name].full_precision(param, stored)
        return param

    def ways(self, leaves: Leaves) -> list[Hashable]:
        """Whether a mask marks each."""
        mask = self.rule.mask
        return super().ways(leaves) if mask is None else list(map(bool, leaves.marks(mask)))

    def fusing_obstacles(self, way: Hashable = None, *, tiled: bool = False) -> Iterator[str]:
        """What is of the whole tree cannot be known of one leaf, and what is of a leaf not of a tile."""
        del way
        if self.declaration.numbers or self.step.over_tree:
            yield f"{self.name} reads a statistic over the tree"
        if tiled and not self.facts.elementwise:
            yield f"{self.name} does not step each element by itself"

    def numbers_at(self, count: jax.Array, state: State, found: Any = None) -> tuple[NowByDtype, dict[str, jax.Array]]:
        """The hyperparameters, and the weights of the state after this update."""
        del found
        return self.numbers.at(count, cast(Fields, state))

    def numbers_of(self, state: State) -> dict[str, jax.Array]:
        """The weights."""
        return {name: getattr(state, name) for name in self._weights.values()}

    def stored_of(self, kept: KeptOfLeaf) -> Iterator[StoredSlot]:
        """Every slot of a leaf."""
        for name, stored in kept.items():
            if isinstance(stored, Stored):
                yield StoredSlot(self.storage[name], stored, self.rule.starts_finite(name))

    def leaf_step(self, numbers: Any, leaf: Leaf, kept: KeptOfLeaf) -> tuple[jax.Array, KeptOfLeaf]:
        """One leaf's step by the rule; what a mask leaves out passes."""
        if leaf.way is False:
            return leaf.updates, kept
        return self.step(numbers.at(numerics.real_dtype(leaf.dtype)), {}, leaf, cast(Slots, kept))

    def kept_of_leaves(self, leaves: Leaves, state: State) -> list[KeptOfLeaf]:
        """What is stored of every slot, for each leaf."""
        columns = self.stored(leaves, self._checked(state) if self.facts.keeps else cast(Fields, state))
        kept: list[Any] = [{name: column[i] for name, column in columns.items()} for i in range(len(leaves))]
        ways = self.ways(leaves)
        for i in leaves.present:
            if ways[i] is not False:
                self._check_slots(leaves, i, kept[i])
        return kept

    def with_kept(self, state: State, leaves: Leaves, numbers: Any, kept: Sequence[KeptOfLeaf]) -> State:
        """The state in which this is kept."""
        del state
        columns = {name: [of_leaf[name] for of_leaf in kept] for name in self.declaration.slots}
        return self._type(**numbers, **self._kept(leaves, columns))

    def map_slots(self, leaves: Leaves, state: State, move: MoveSlot) -> State:
        """The state with every slot replaced."""
        columns = self.stored(leaves, self._checked(state))
        for name, slot in self.declaration.slots.items():
            before = [self._before(leaves, i, name, x) for i, x in enumerate(columns[name])]
            after = leaves.column(move(name, slot.kind, leaves.tree(before)), name, optional=True)
            columns[name] = [
                kept if new is old else self._moved(leaves, i, name, new, kept)
                for i, (kept, old, new) in enumerate(zip(columns[name], before, after, strict=True))
            ]
        return states.replaced(state, self._kept(leaves, columns))

    def _before(self, leaves: Leaves, i: int, name: str, kept: Any) -> Any:
        """A slot as what follows a change of basis sees it: as it is kept, if that is an array of numbers."""
        if not isinstance(kept, Stored):
            return kept
        if kept.scales is None:
            return kept.values
        return self.step.decoded(name, kept, leaves.dtypes[i], leaves.layers_of(i))

    def _moved(self, leaves: Leaves, i: int, name: str, new: Any, like: Stored) -> Stored | None:
        if new is None:
            return None
        noise = self._noise_of(leaves, i, leaves.count, name)
        return leaves.layers_of(i).encode(self.storage[name], new, like, noise)

    def state_signature(self) -> Hashable:
        """The parts of the state, how they are stored, and the decays that its weights go by."""
        if self.declaration.numbers:
            return object()  # of the leaves that it is given, all together
        decays = [self.hyperparams[decay] for decay in self.rule.debias]
        stored = [(type(kept), kept.call.args, *kept.call.kwargs.items()) for kept in self.storage.values()]
        return self._type, *stored, *(float(d) if isinstance(d, int | float | np.generic) else id(d) for d in decays)

    def merge_states(self, leaves: Leaves, owners: Sequence[int], states: Sequence[State]) -> State:
        """Each leaf's slots, from the one that knows it."""
        given: Sequence[Any] = states
        trees: dict[str, Any] = {
            name: leaves.merged(owners, [getattr(state, name) for state in given]) for name in self.declaration.slots
        }
        if self.scaled:
            trees["scales"] = {
                key: leaves.merged(owners, [state.scales[key] for state in given]) for key in self.scaled.values()
            }
        return given[0]._replace(**trees)

    def basis_obstacles(self) -> Iterator[str]:
        """Parameters are not in that basis."""
        copies = [name for name, slot in self.declaration.slots.items() if slot.kind == "params"]
        if "params" in self.step.inputs or copies:
            yield f"{self.name} reads the parameters, which are in another basis; put it outside."

    def trace(self, run: Run, updates: Provenance, grad: Provenance) -> Provenance:
        """What the rule makes of updates, as far as it matters to what comes behind."""
        del run, grad
        rate = self.rule.multiplies_by
        if rate is not None:
            return updates.stepped(cast(ScalarOrSchedule, self.hyperparams[rate])).times(float(self.rule.sign))
        if any(slot.kind == "square" for slot in self.declaration.slots.values()):
            return updates.marked("scaled")
        return updates if self.facts.passes_gradient else updates.marked("changed")

    def _checked(self, state: State) -> Fields:
        fields = states.checked(self.name, state, self._type)
        if self.scaled and (came := sorted(fields.scales)) != (ours := sorted(self.scaled.values())):
            raise ValueError(
                f"{self.name}: its scales are {ours}, but {came} came. Blocks of another size cannot be read: give the "
                "link the EightBit(block=...) that the state was made with, or call init anew."
            )
        return fields

    def stored(self, leaves: Leaves, fields: Fields, *, masked: bool = False) -> dict[str, list[Any]]:
        """What is stored of every slot; where a leaf has none, what stands in its place; any may, if masked."""
        columns: dict[str, list[Any]] = {}
        column: list[Any] = []
        for name in self.declaration.slots:
            tree = getattr(fields, name)
            try:
                column = leaves.treedef.flatten_up_to(tree)
                usual = False not in [hasattr(column[i], "dtype") for i in leaves.present]
            except ValueError:
                usual = False
            if not usual:  # something is absent, or wrong
                column = leaves.column(tree, name, optional=masked or self.rule.marked_only or name in self._optional)
            key = self.scaled.get(name)
            scales = None if key is None else leaves.column(fields.scales[key], "scales", optional=True)
            for i in leaves.present if scales is None else range(len(leaves)):
                if (usual and scales is None) or not is_absent(column[i]):
                    column[i] = Stored(column[i], None if scales is None else scales[i])
            columns[name] = column
        return columns

    def _check_slot(self, leaves: Leaves, i: int, name: str, stored: Stored) -> None:
        slot = stored.values
        lead = leaves.updates[i]
        if slot.shape != lead.shape:
            leaves.check_shapes(i, {"updates": lead, name: slot}, tuple(self.rule.shape))
            layers = leaves.layers_of(i)
            if layers.numbers(slot.shape) != layers.numbers(lead.shape):
                raise ValueError(
                    f"{self.name}: leaf {leaves.path(i)} of shape {lead.shape} has its layers along {layers.axes}, but "
                    f"its {name} of shape {slot.shape} is not that of as many layers. Call init anew, or "
                    f"adam_tx.migrate with fresh={name!r}."
                )
        if leaves.dtypes[i].kind == "c" and self.declaration.slots[name].kind != "square" and slot.dtype.kind != "c":
            raise TypeError(
                f"leaf {leaves.path(i)}: a complex gradient came for {name}, which is {slot.dtype} because the "
                "parameter is real. Give update the params, so that the gradient can be projected, or take its real "
                "part."
            )
