"""`parallel`: links side by side, whose updates are added up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from adam_tx._chain import Member, by_name, init_members, refuse_terminal
from adam_tx._core import numerics, states
from adam_tx._core.abstract_link import AbstractLink, Part
from adam_tx._core.call import Call
from adam_tx._core.facts import combined
from adam_tx._core.hyperparams import FINITE, ScalarOrSchedule, readable, reader
from adam_tx._core.leaves import Column, Leaves
from adam_tx._core.provenance import Provenance, Run
from adam_tx._link import Link, link_of


@readable
def parallel(*members: Member, weights: Sequence[ScalarOrSchedule] | None = None) -> Link:
    """Give the same updates to several links and add up what they emit.

    Every member also receives the raw gradient, as in `chain`::

        u <- Σ weight_k · member_k(u)

    Args:
      *members: as for `chain`; none has to come first.
      weights: one for each member, of either sign: number, 0-d array or schedule; all
        one by default.

    Returns:
      A `Link` with state `(count, links)`, the members' states by name.

    Raises:
      ValueError: no member, or as many weights as there are not members.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> import optax
    >>> tx = adam_tx.parallel(optax.scale(1.0), ("other", optax.scale(10.0)), weights=(1.0, -0.5))
    >>> grad = jnp.array([2.0])
    >>> tx.update(grad, tx.init(grad))[0]
    Array([-8.], dtype=float32)
    """
    given = {} if weights is None else {"weights": weights}
    return link_of(Parallel(members, weights, Call(parallel, members, given)))


class Parallel(AbstractLink):
    """Links side by side."""

    name = "parallel"
    formula = "Σ weight · link(u)"

    def __init__(self, members: Sequence[Member], weights: Sequence[ScalarOrSchedule] | None, call: Call) -> None:
        self.call = call
        self.members = by_name("parallel", members)
        given = (1.0,) * len(self.members) if weights is None else tuple(weights)
        if not self.members or len(given) != len(self.members):
            raise ValueError(
                f"parallel: needs members and a weight for each, got {len(self.members)} and {len(given)}."
            )
        self.hyperparams = {"weights": given}
        self._weights = [reader(f"parallel: weights[{k}]", weight, FINITE) for k, weight in enumerate(given)]
        refuse_terminal("parallel", self.members)
        facts = combined([member.facts for member in self.members.values()])
        alone = len(self.members) == 1
        averages = tuple(average._replace(alone=average.alone and alone) for average in facts.averages)
        self.facts = dataclasses.replace(facts, averages=averages, keeps=True)

    def init_leaves(self, leaves: Leaves) -> states.State:
        """The members' states by name."""
        return _TYPE(init_members(self.members, leaves))

    def update_leaves(self, leaves: Leaves, updates: Column, state: states.State) -> tuple[Column, states.State]:
        """The weighted sum of what the members emit."""
        kept = states.checked(self.name, state, _TYPE).links
        weights = [weight(leaves.count) for weight in self._weights]
        emitted = list(updates)
        new: dict[str, states.State] = {}
        for k, (name, member) in enumerate(self.members.items()):
            column, of_member = leaves.run_member(name, member, updates, kept.get(name))
            if member.facts.keeps:
                new[name] = of_member
            for i in leaves.present:
                weighted = numerics.times(column[i], weights[k])
                emitted[i] = emitted[i] + weighted if k else weighted
        return emitted, _TYPE(new)

    def split_state(self, state: states.State) -> Part:
        """The members' states are in one field."""
        own = dict(states.fields_of(state))
        links = own.pop("links")
        return Part(own, {name: links.get(name) for name in self.members})

    def replace_members(self, state: Any, inside: Any) -> states.State:
        """The members' states are in one field."""
        return state._replace(links={**state.links, **inside})

    def trace(self, run: Run, updates: Provenance, grad: Provenance) -> Provenance:
        """The sum of what each makes of the same updates."""
        return Provenance.merged([run(name, updates, grad) for name in self.members])

    def acts(self, name: str) -> bool:
        """What becomes of the leaves is the sum of what the members make of them."""
        del name
        return len(self.members) == 1


_TYPE = states.wrapper_type("parallel", "links")
