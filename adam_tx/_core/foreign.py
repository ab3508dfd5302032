"""`Foreign`, a transformation from elsewhere as a link: its own `init` and `update`, and its own count."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Hashable, Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from adam_tx._core import numerics
from adam_tx._core.abstract_link import LIFTED, AbstractLink, Part
from adam_tx._core.call import Call, is_optax, maker_name
from adam_tx._core.facts import Stranger, check_gradient, combined, held_back
from adam_tx._core.leaves import LAYERS, Column, Leaves
from adam_tx._core.optax_parts import looks_at
from adam_tx._core.states import State

_IN_TURN = ("chain", "named_chain")
_SEE_ALL = (*_IN_TURN, "flatten", "masked", "partition")
"""The functions of Optax that hand every update on to what is inside."""


class Foreign(AbstractLink):
    """A transformation from elsewhere.

    Its state is made from lifted parameters, so that inside a chain, where it will
    see float32, the state keeps the dtypes it starts with.

    Attributes:
      wrapped: the transformation.
      said: what somebody has said that it emits.

    Args:
      transformation: the transformation.
      name: the key of its state in a chain; None for what made it.
      formula: what it emits, if somebody has said it.
      call: the code that makes it.
      held: the links in it, as far as they are known.
      elementwise: whether somebody has said that it steps each element by itself.
    """

    goes_first = True

    def __init__(
        self,
        transformation: optax.GradientTransformation,
        name: str | None,
        formula: str | None,
        call: Call,
        held: Sequence[AbstractLink] = (),
        *,
        elementwise: bool = False,
    ) -> None:
        self.wrapped = transformation
        self._inner = optax.with_extra_args_support(transformation)
        self.name = name or maker_name(transformation)
        self.said = formula or ""
        self.formula = formula or "as in its own documentation"
        self.call = call
        maker = maker_name(transformation) if is_optax(transformation) else ""
        in_turn = maker in _IN_TURN
        if in_turn:
            check_gradient(self.name, [(link.name, link.facts) for link in held])
        inside = combined([link.facts for link in held], in_turn=in_turn)
        if held and maker not in _SEE_ALL:
            inside = held_back(inside, self.name)
        if maker == "masked":  # what is masked out comes out as it came in
            inside = dataclasses.replace(inside, averages=tuple(a._replace(alone=False) for a in inside.averages))
        self.facts = dataclasses.replace(
            inside,
            changes_gradient=formula is None,  # nobody has said what it does
            passes_gradient=formula is None,
            strangers=(Stranger(self.name, self._may_average),),
            elementwise=elementwise,
            holds_back=bool(held),
            looks_ahead=False,  # the links inside do it themselves
            branches=False,
            keeps=self._inner.init is not optax.init_empty_state,
        )

    def init_leaves(self, leaves: Leaves) -> State:
        """The transformation's own state."""
        given = leaves.initial
        lifted = any(numerics.dtype_of(given[i]) == jnp.bfloat16 for i in leaves.present)
        column = [numerics.cast(x, leaves.dtypes[i]) if i in leaves.present else x for i, x in enumerate(given)]
        token = LIFTED.set(self.name if lifted else LIFTED.get())  # once lifted they stay so, however deep
        try:
            with with_layers(leaves):
                return self._inner.init(cast(optax.Params, leaves.tree(column)))
        finally:
            LIFTED.reset(token)

    def update_leaves(self, leaves: Leaves, updates: Column, state: State) -> tuple[Column, State]:
        """Its own update, on trees in working precision; of a leaf that it measures, for each layer by itself."""
        stacked = [i for i in leaves.layers if i in leaves.present and looks_at(self.wrapped) == "leaf"]
        if not stacked:
            return self._updated(leaves, updates, state)
        rest = leaves.only(set(leaves.present).difference(stacked))
        emitted, new = self._updated(
            rest, [u if i in rest.present else rest.updates[i] for i, u in enumerate(updates)], state
        )

        def of_layer(given: Any, _: object) -> Any:
            return self._inner.update(given[0], cast(optax.OptState, state), given[1])[0]

        for i in stacked:
            layers, param = leaves.layers[i], None if leaves.params is None else leaves.params[i]
            emitted[i] = layers.placed(layers.each(of_layer)((updates[i], param), ()))
        return emitted, new

    def _updated(self, leaves: Leaves, updates: Column, state: State) -> tuple[Column, State]:
        given: Any = state if self.facts.keeps else optax.EmptyState()
        params = None if leaves.params is None else cast(optax.Params, leaves.tree(leaves.params))
        extra = leaves.extra if leaves.grad is None else {**leaves.extra, "grad": leaves.tree(leaves.grad)}
        try:
            with with_layers(leaves):
                emitted, new = self._inner.update(cast(optax.Updates, leaves.tree(updates)), given, params, **extra)
        except FloatingPointError as error:  # under jax_debug_nans
            raise FloatingPointError(f"{self.name}: {error}") from error
        return leaves.column(emitted, self.name), new

    def split_state(self, state: State) -> Part:
        """All of it is its own."""
        return Part({"": state}, {})

    def state_signature(self) -> Hashable:
        """Known only where there is no state."""
        state = self._state_of_one()
        return object() if jax.tree.leaves(state) else jax.tree.structure(state)

    def replace_members(self, state: State, inside: Mapping[str, State]) -> State:
        """All of it is its own; what is merged or moved is empty, as `state_signature` and `basis_obstacles` say."""
        del inside
        return state

    def _state_of_one(self) -> object:
        """Its state for one small parameter; where it makes none of a parameter that is not its own, any number."""
        one = jax.ShapeDtypeStruct((1,), jnp.float32)
        try:
            return jax.eval_shape(self._inner.init, one)
        except Exception:  # whatever it makes of it
            return one

    def _may_average(self) -> bool:
        """Whether its state could hold an average: whether there are numbers in it that are no counts."""
        return any(jnp.issubdtype(array.dtype, jnp.inexact) for array in jax.tree.leaves(self._state_of_one()))

    def basis_obstacles(self) -> Iterator[str]:
        """Nothing is known of its state."""
        if jax.tree.leaves(self._state_of_one()):
            yield (
                f"the state of {self.name}, which is not a link of adam_tx, cannot follow a change of basis, because "
                "what it holds is not known. Use a link for it (adam_tx.chain for optax.chain), or write one with "
                "adam_tx.link."
            )

    def count_of(self, state: State) -> None:
        """It counts itself, if at all."""
        del state

    def with_count(self, state: State, count: jax.Array | None) -> State:
        """It counts itself, if at all."""
        del count
        return state


@contextlib.contextmanager
def with_layers(leaves: Leaves) -> Generator[None]:
    """Links inside know what is stacked, by the paths of leaves."""
    if not leaves.layers:
        yield
        return
    token = LAYERS.set({leaves.paths[i]: layers for i, layers in leaves.layers.items() if i in leaves.present})
    try:
        yield
    finally:
        LAYERS.reset(token)
