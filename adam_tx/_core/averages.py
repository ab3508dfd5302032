"""The averages in the state of a link, and the weights by which they are corrected, as others ask for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp

from adam_tx._core.leaf_step import CountProbe, NowByDtype
from adam_tx._core.leafwise import Leafwise
from adam_tx._core.leaves import Leaves
from adam_tx._core.rule import Slot
from adam_tx._core.states import Fields
from adam_tx._core.storage import Stored


class Kept(NamedTuple):
    """An average that a link keeps.

    Attributes:
      slot: what the link declares of it.
      name: of the slot.
      weight: by which the link debiases it; None if it does not.
      column: its arrays in working precision; None where there is none for a leaf.
    """

    slot: Slot
    name: str
    weight: jax.Array | None
    column: list[jax.Array | None]


def kept_by(link: Leafwise, leaves: Leaves, fields: Fields) -> Iterator[Kept]:
    """Every average in the state of a link."""
    if not link.declaration.slots:
        return
    stored = link.stored(leaves, fields, masked=True)
    for name, slot in link.declaration.slots.items():
        if slot.decay is not None:
            column = [
                link.step.decoded(name, x, leaves.dtypes[i], leaves.layers_of(i))
                if isinstance(x, Stored) and i in leaves.present
                else None
                for i, x in enumerate(stored[name])
            ]
            weighed = slot.decay in link.rule.debias
            yield Kept(slot, name, weight_of(link, fields, slot.decay) if weighed else None, column)


def corrected_by(link: Leafwise, fields: Fields) -> Iterator[tuple[str, jax.Array]]:
    """The kinds of the averages before it whose start from zero a link undoes, each with their weight."""
    for correction in link.facts.corrects:
        yield correction.kind, weight_of(link, fields, correction.argument)


def weight_of(link: Leafwise, fields: Fields, decay: str) -> jax.Array:
    """The number that a weight of a state stands for."""
    return jnp.sum(getattr(fields, link.declaration.weights[decay]))


def reads_count(link: Leafwise) -> bool:
    """Whether the rule itself depends on the count. It is run on a small leaf to see; if that fails, it may."""
    if link not in _READ_COUNT:
        _READ_COUNT[link] = _reads_count(link)
    return _READ_COUNT[link]


_READ_COUNT: WeakKeyDictionary[Leafwise, bool] = WeakKeyDictionary()


def _reads_count(link: Leafwise) -> bool:
    probes: list[CountProbe] = []

    def at(count: jax.Array, fields: Fields) -> tuple[NowByDtype, dict[str, jax.Array]]:
        now, kept = link.numbers.at(count, fields)
        probes.append(CountProbe(now))
        return probes[0], kept

    def run() -> object:
        one = jnp.ones((2, 2), jnp.float32)
        leaves = Leaves(one, one, one, count=jnp.zeros((), jnp.int32))
        fields = cast(Fields, link.init_leaves(Leaves.of_params(one)))
        return link.run(leaves, [one], fields, at)[0]

    try:
        jax.eval_shape(run)
    except Exception:  # whatever the rule makes of a leaf that is not its own
        return True
    return probes[0].was_read
