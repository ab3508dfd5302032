"""`TreeNumbers`: what a link keeps and computes once for the whole tree, such as Prodigy's estimate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from adam_tx._core import numerics
from adam_tx._core.leaf_step import LeafStep, NowByDtype, Row, parameters_of
from adam_tx._core.leaves import Leaves
from adam_tx._core.rule import Declaration, Rule
from adam_tx._core.states import Fields


class TreeNumbers:
    """The numbers of a link, and the statistics over the tree that they follow from."""

    def __init__(self, declaration: Declaration, rule: Rule, step: LeafStep) -> None:
        self._name = declaration.name
        self._names = list(declaration.numbers)
        self._rule = rule.numbers
        self._step = step

    def at(self, now: NowByDtype, rows: Mapping[int, Row], leaves: Leaves, fields: Fields) -> dict[str, jax.Array]:
        """Statistics over the tree, and the new numbers of the state that follow from them."""
        dtype = leaves.scalar_dtype
        old: dict[str, jax.Array] = {name: getattr(fields, name) for name in self._names}
        sums: dict[str, jax.Array] = {}
        for name, statistic in self._step.over_tree.items():
            terms: list[jax.Array] = []
            for i, row in rows.items():
                real = numerics.real_dtype(leaves.dtypes[i])
                given = {number: numerics.cast(value, real) for number, value in old.items()}
                reduced = self._step.reduced(name, statistic, {**row, "now": now.at(real), **given})
                terms.append(numerics.cast(reduced, dtype))
            sums[name] = sum(terms[1:], terms[0]) if terms else jnp.zeros((), dtype)
        if self._rule is None:
            return sums | old
        return sums | old | self._new(self._rule, {"now": now.at(dtype), **sums, **old}, dtype)

    def _new(self, rule: Callable[..., Any], given: Mapping[str, Any], dtype: jnp.dtype) -> dict[str, jax.Array]:
        reads = parameters_of(rule)
        if unknown := [name for name in reads if name not in given]:
            raise TypeError(f"{self._name}: Rule(numbers=...) reads {unknown}, but there are {sorted(given)}.")
        new = rule(*[given[name] for name in reads])
        wrong = not isinstance(new, Mapping) or any(jnp.shape(value) for value in new.values())
        if wrong or not new.keys() >= set(self._names):
            raise TypeError(
                f"{self._name}: Rule(numbers=...) must return a dict with a 0-d array for each of {self._names}, got "
                f"{new!r}."
            )
        return {name: jnp.asarray(value, dtype) for name, value in new.items()}
