"""`LeafStep`: one leaf's step of a link, without the tree around it.

    read → decode → rule → encode → write

It is a pure function of arrays and numbers. A link calls it for every leaf. Where each
element is stepped by itself, a kernel may call it for every tile of a leaf.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from adam_tx._core import blocks, numerics, sharding
from adam_tx._core.now import Now
from adam_tx._core.rule import INPUTS, Declaration, Reduction, Rule
from adam_tx._core.storage import Noise, Storage, Stored

Row = Mapping[str, jax.Array | None]
"""What a rule reads of a leaf, by name."""
Slots = Mapping[str, Stored | None]
"""What is kept of a leaf, by slot; None where there is nothing."""


class Leaf(NamedTuple):
    """A leaf, or a tile of one, in working precision.

    Attributes:
      updates: what comes in.
      grad: the raw gradient; None if it is not there.
      params: the parameters; None if they are not there.
      noise: from the name of what is rounded to its random bits, which depend on the place alone.
      path: gives the leaf's path, for errors.
      param_dtype: the dtype in which the parameter came; None if it did not.
      spread: whether the arrays may lie differently on an explicit mesh.
    """

    updates: jax.Array
    grad: jax.Array | None
    params: jax.Array | None
    noise: Callable[[str], Noise]
    path: Callable[[], str]
    param_dtype: jnp.dtype | None = None
    spread: bool = False

    @property
    def dtype(self) -> jnp.dtype:
        """The working dtype."""
        return self.updates.dtype


class LeafStep:
    """The step of one leaf by the rule of a link.

    Attributes:
      reads: what the rule reads, in the order of its parameters.
      inputs: which of updates, grad and params the rule or a statistic reads.
      over_tree: the statistics that are reduced over the whole tree.
    """

    def __init__(self, declaration: Declaration, rule: Rule, storage: Mapping[str, Storage]) -> None:
        self._name = declaration.name
        self._slots = declaration.slots
        self._rule = rule
        self._storage = storage
        self._known = {"now", *INPUTS, *declaration.slots, *declaration.numbers, *rule.statistics}
        self.reads = self._names_of(rule.apply)
        self._terms = {name: self._names_of(statistic.term) for name, statistic in rule.statistics.items()}
        read = {*self.reads, *(name for names in self._terms.values() for name in names)}
        self.inputs = [name for name in ("updates", "grad", "params") if name in read]
        self.reads_noise = "noise" in read
        self._rounds = self.reads_noise or any(not kept.as_is for kept in storage.values())
        self.over_tree = {name: of for name, of in rule.statistics.items() if of.over == "tree"}
        self._of_leaf = {name: of for name, of in rule.statistics.items() if of.over != "tree"}

    def _names_of(self, function: Callable[..., object]) -> tuple[str, ...]:
        """What a rule reads, from the names of its parameters."""
        names = parameters_of(function)
        unknown = [name for name in names if name not in self._known]
        if unknown and self._rule.numbers is None:
            raise TypeError(
                f"{self._name}: its rule reads {unknown}; it may read now, updates, grad, params, noise, and the "
                f"slots, numbers and statistics of the link, {sorted(self._known - {'now', *INPUTS})}."
            )
        return names

    def __call__(self, now: Now, numbers: Row, leaf: Leaf, kept: Slots) -> tuple[jax.Array, Slots]:
        """What is emitted for a leaf, and what is kept of it.

        Args:
          now: the hyperparameters of this update, in the precision of the leaf.
          numbers: what the rule reads of the whole tree, by name.
          leaf: the leaf.
          kept: what was kept of it.
        """
        return self.write(now, numbers, leaf, kept, self.read(leaf, kept))

    def read(self, leaf: Leaf, kept: Slots) -> dict[str, jax.Array | None]:
        """What the rule reads of a leaf, in working precision."""
        row: dict[str, jax.Array | None] = {name: getattr(leaf, name) for name in self.inputs}
        for name, stored in kept.items():
            storage = self._storage[name]
            if storage.as_is and stored is not None and stored.values.dtype == leaf.dtype:
                row[name] = stored.values
                continue
            storage.check_leaf(leaf.path, leaf.param_dtype, stored)
            row[name] = None if stored is None else self.decoded(name, stored, leaf.dtype)
        if self.reads_noise:
            row["noise"] = leaf.noise("rule")(leaf.updates)
        return sharding.together(row) if leaf.spread else row

    def decoded(self, name: str, stored: Stored, working: jnp.dtype) -> jax.Array:
        """A slot in working precision."""
        square = self._slots[name].kind == "square"
        return self._storage[name].decode(stored, numerics.real_dtype(working) if square else working)

    def write(self, now: Now, numbers: Row, leaf: Leaf, kept: Slots, row: Row) -> tuple[jax.Array, Slots]:
        """Apply the rule to what was read, and encode what is to be kept."""
        values = {**row, "now": now, **numbers} if numbers else {**row, "now": now}
        for name, statistic in self._of_leaf.items():
            values[name] = self.reduced(name, statistic, values)
        try:
            out = self._rule.apply(*[values[name] for name in self.reads])
        except KeyError:
            missing = [name for name in self.reads if name not in values]
            if not missing:
                raise
            raise TypeError(f"{self._name}: its rule reads {missing}, which Rule(numbers=...) does not give.") from None
        except FloatingPointError as error:  # under jax_debug_nans, where JAX runs operation by operation
            raise FloatingPointError(f"{self._name}: leaf {leaf.path()}: {error}") from error
        if not isinstance(out, tuple):
            out = (out,)
        self._check(out, leaf, row)
        slots = dict(zip(self._slots, out[1:], strict=True))
        return out[0], {name: self.encoded(name, slot, kept[name], leaf) for name, slot in slots.items()}

    def encoded(self, name: str, slot: jax.Array | None, like: Stored | None, leaf: Leaf) -> Stored | None:
        """What is kept of a slot: the only place where a moment changes dtype, of which rules know nothing."""
        if slot is None or like is None:
            return None
        storage = self._storage[name]
        if storage.as_is and slot.dtype == like.values.dtype:
            return Stored(slot)
        return storage.encode(slot, like, leaf.noise(name))

    def _check(self, out: tuple[jax.Array | None, ...], leaf: Leaf, row: Row) -> None:
        """Refuse what a rule has returned unless it is updates and slots of the right shapes."""
        expected = [leaf.updates.shape, *(None if row[name] is None else row[name].shape for name in self._slots)]
        got = [None if x is None else jnp.shape(x) for x in out]
        if got != expected:
            raise ValueError(
                f"{self._name}: for leaf {leaf.path()} its rule must return {' and '.join(['updates', *self._slots])} "
                f"of the shapes {expected}, but it returned {got}."
            )

    def reduced(self, name: str, statistic: Reduction, values: Mapping[str, object]) -> jax.Array:
        """A statistic over the tensor, or over the blocks of a slot."""
        terms = statistic.term(*[values[read] for read in self._terms[name]])
        if statistic.over in self._slots:
            slot = values[statistic.over]
            shape = terms.shape if slot is None else jnp.shape(slot)
            return (blocks.mean if statistic.mean else blocks.total)(terms, shape)
        return jnp.sum(terms) / (float(max(terms.size, 1)) if statistic.mean else 1.0)  # JAX takes no int beyond int32


def parameters_of(function: Callable[..., object]) -> tuple[str, ...]:
    """The names of a function's parameters."""
    if inspect.isfunction(function) and not function.__dict__:
        code = function.__code__  # faster than a signature, which what wraps a function would have
        return code.co_varnames[: code.co_argcount]
    return tuple(inspect.signature(function).parameters)
