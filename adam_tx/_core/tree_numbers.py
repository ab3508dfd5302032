"""`TreeNumbers`: what a link keeps and computes once for the whole tree, such as Prodigy's estimate."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adam_tx._core import numerics
from adam_tx._core.leaf_step import LeafStep, NowByDtype, Row, parameters_of
from adam_tx._core.leaves import Leaves
from adam_tx._core.rule import Rule
from adam_tx._core.states import Fields


class TreeNumbers(NamedTuple):
    """The numbers of a link, and the statistics over the tree that they follow from."""

    name: str
    numbers: Collection[str]
    rule: Rule
    step: LeafStep

    def at(self, now: NowByDtype, rows: Mapping[int, Row], leaves: Leaves, fields: Fields) -> dict[str, jax.Array]:
        """Statistics over the tree, and the new numbers of the state that follow from them."""
        dtype = leaves.scalar_dtype
        old: dict[str, jax.Array] = {name: getattr(fields, name) for name in self.numbers}
        sums: dict[str, jax.Array] = {}
        for name, statistic in self.step.over_tree.items():
            terms: list[jax.Array] = []
            for i, row in rows.items():
                real = numerics.real_dtype(leaves.dtypes[i])
                given = {number: numerics.cast(value, real) for number, value in old.items()}
                reduced = self.step.reduced(name, statistic, {**row, "now": now.at(real), **given})
                terms.append(numerics.cast(reduced, dtype))
            sums[name] = sum(terms[1:], terms[0]) if terms else jnp.zeros((), dtype)
        if self.rule.numbers is None:
            return sums | old
        given: dict[str, Any] = {"now": now.at(dtype), **sums, **old}
        reads = parameters_of(self.rule.numbers, f"{self.name}: Rule(numbers=...)")
        if unknown := [name for name in reads if name not in given]:
            raise TypeError(f"{self.name}: Rule(numbers=...) reads {unknown}, but there are {sorted(given)}.")
        new: Any = self.rule.numbers(*[given[name] for name in reads])
        wrong = not isinstance(new, Mapping) or any(jnp.shape(value) for value in new.values())
        if wrong or not new.keys() >= old.keys():
            raise TypeError(
                f"{self.name}: Rule(numbers=...) must return a dict with a 0-d array for each of {list(old)}, got "
                f"{new!r}."
            )
        if taken := sorted(new.keys() & self.step.known - old.keys()):
            raise ValueError(
                f"{self.name}: Rule(numbers=...) returned {taken}, which mean something else; name them otherwise."
            )
        return sums | old | {name: jnp.asarray(value, dtype) for name, value in new.items()}
