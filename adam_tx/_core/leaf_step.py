"""`LeafStep`: one leaf's step of a link, without the tree around it; and `Now`, the hyperparameters that it reads.

    read → decode → rule → encode → write

It is a pure function of arrays and numbers. A link calls it for every leaf. Where each
element is stepped by itself, a kernel may call it for every tile of a leaf.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from adam_tx._core import bias, blocks, numerics, sharding
from adam_tx._core.ahead import known
from adam_tx._core.bias import DecayNow
from adam_tx._core.hyperparams import Parameters, Value
from adam_tx._core.layers import ONE, Layers
from adam_tx._core.leaf import Leaf
from adam_tx._core.leaves import increment
from adam_tx._core.rule import INPUTS, Declaration, Reduction, Rule
from adam_tx._core.states import Fields
from adam_tx._core.storage import Storage, Stored

Row = Mapping[str, jax.Array | None]
"""What a rule reads of a leaf, by name."""
Slots = Mapping[str, Stored | None]
"""What is kept of a leaf, by slot; None where there is nothing."""


class Now:
    """What a rule may depend on at one update: the link's hyperparameters by name, and the count of earlier updates.

    A decay is a `DecayNow`; another hyperparameter a Python float, or a 0-d array in
    the precision of the leaf. `now.next` has what they will be at the next update.
    """

    def __init__(self, values: Mapping[str, Value], count: jax.Array, following: Callable[[], Now]) -> None:
        self.__dict__.update(values, count=count, _following=following)

    @property
    def next(self) -> Now:
        """The hyperparameters of the next update."""
        return self.__dict__["_following"]()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"the link has no hyperparameter {name!r}: annotate it with Decay, NonNegative, Positive or Finite."
        )


class Hyperparams:
    """The hyperparameters of a link, from which `Now` is made at each update.

    Args:
      parameters: those of the function that makes the link.
      arguments: what they were given.
      debias: by decay whose weight the rule reads the name of the weight in the state.
    """

    def __init__(self, parameters: Parameters, arguments: Mapping[str, object], debias: Mapping[str, str]) -> None:
        self._fixed, self._varying = parameters.read(arguments)
        self._debias = debias

    def values(self, count: jax.Array) -> dict[str, Value]:
        """All by name at this count of earlier updates."""
        return self._fixed | {name: read(count) for name, read in self._varying.items()}

    def at(self, count: jax.Array, fields: Fields) -> tuple[NowByDtype, dict[str, jax.Array]]:
        """`Now` at this update, and the weights of the state after it.

        Args:
          count: the number of earlier updates.
          fields: the state before it.
        """
        values = self._fixed if not self._varying else self.values(count)
        kept: dict[str, jax.Array] = {}
        for decay, field in self._debias.items():
            now: Any = values[decay]
            before = getattr(fields, field)
            step = (
                now.step if isinstance(now.step, jax.Array) else before.dtype.type(now.step)
            )  # no equation converts it
            kept[field], weight = bias.advance(before, step)
            values = {**values, decay: DecayNow(now.value, now.step, weight)}
        return NowByDtype(values, count, self), kept

    def following(self, values: Mapping[str, Value], count: jax.Array) -> dict[str, Value]:
        """All by name one update later."""
        later = self.values(count)
        for decay in self._debias:
            now: Any = later[decay]
            before: Any = values[decay]
            later[decay] = dataclasses.replace(now, total=bias.following(before.weight, now.step))
        return later


MakeNow = Callable[[Mapping[str, Value], jax.Array, Callable[[], Now]], Now]


class NowByDtype:
    """`Now` in the precision of each leaf. What is an array is converted once a dtype.

    Attributes:
      made: `Now` by real dtype, as far as it was asked for.
    """

    def __init__(self, values: Mapping[str, Value], count: jax.Array, hyperparams: Hyperparams) -> None:
        self._values = values
        self._count = count
        self._hyperparams = hyperparams
        self._later: NowByDtype | None = None
        self.made: dict[jnp.dtype, Now] = {}
        self.now: MakeNow = Now

    def at(self, dtype: jnp.dtype) -> Now:
        """For leaves of this real working dtype."""
        values = dict(self._values)
        for name, value in values.items():
            if isinstance(value, DecayNow):
                values[name] = value if value.total is None or value.total.dtype == dtype else value.cast(dtype)
            elif isinstance(value, jax.Array) and value.dtype != dtype:
                values[name] = numerics.cast(value, dtype)
        self.made[dtype] = now = self.now(values, self._count, lambda: self._next().at(dtype))
        return now

    def _next(self) -> NowByDtype:
        if self._later is None:
            count = increment(self._count)
            self._later = NowByDtype(self._hyperparams.following(self._values, count), count, self._hyperparams)
        return self._later


At = Callable[[jax.Array, Fields], tuple[NowByDtype, dict[str, jax.Array]]]
"""From the count and a state to `Now`, and to the weights of the state after the update."""


class CountProbe(NowByDtype):
    """`Now` that remembers whether anyone asked for the count itself."""

    def __init__(self, of: NowByDtype) -> None:
        super().__init__(of._values, of._count, of._hyperparams)
        self.was_read = False
        self.now = self._probed

    def _probed(self, values: Mapping[str, Value], count: jax.Array, following: Callable[[], Now]) -> Now:
        """`Now` whose count is found only if it is asked for, and that of the next update, too."""
        return _Probed(values, count, following).of(self)


class _Probed(Now):
    def of(self, probe: CountProbe) -> Now:
        """The same, seen by a probe."""
        self.__dict__["_probe"] = probe
        return self

    @property
    def count(self) -> jax.Array:
        """The count, at the cost of being found out."""
        self.__dict__["_probe"].was_read = True
        return self.__dict__["count"]

    @property
    def next(self) -> Now:
        """The next update."""
        later = _Probed.__new__(_Probed)
        later.__dict__.update(vars(super().next))
        return later.of(self.__dict__["_probe"])


class LeafStep:
    """The step of one leaf by the rule of a link.

    Attributes:
      known: all that the rule may read.
      reads: what the rule reads, in the order of its parameters.
      inputs: which of updates, grad and params the rule or a statistic reads.
      over_tree: the statistics that are reduced over the whole tree.
    """

    def __init__(self, name: str, declaration: Declaration, rule: Rule, storage: Mapping[str, Storage]) -> None:
        self._name = name
        self._slots = declaration.slots
        self._rule = rule
        self._storage = storage
        self.known = {"now", *INPUTS, *declaration.slots, *declaration.numbers, *rule.statistics}
        self.reads = self._names_of(rule.apply)
        self._terms = {name: self._names_of(statistic.term) for name, statistic in rule.statistics.items()}
        read = {*self.reads, *(name for names in self._terms.values() for name in names)}
        self.inputs = [name for name in ("updates", "grad", "params") if name in read]
        self.reads_noise = "noise" in read
        self.over_tree = {name: of for name, of in rule.statistics.items() if of.over == "tree"}
        self._of_leaf = {name: of for name, of in rule.statistics.items() if of.over != "tree"}
        self._reduces = bool(self._of_leaf or rule.shape or not rule.elementwise)

    def _names_of(self, function: Callable[..., object]) -> tuple[str, ...]:
        """What a rule reads, from the names of its parameters."""
        names = parameters_of(function, f"{self._name}: its rule")
        unknown = [name for name in names if name not in self.known]
        if unknown and self._rule.numbers is None:
            raise TypeError(
                f"{self._name}: its rule reads {unknown}; it may read now, updates, grad, params, noise, path, and the "
                f"slots, numbers and statistics of the link, {sorted(self.known - {'now', *INPUTS})}."
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
        row: dict[str, jax.Array | None] = {}
        for name in self.inputs:
            given = getattr(leaf, name)
            row[name] = given if given is None or given.dtype == leaf.dtype else numerics.cast(given, leaf.dtype)
        for name, stored in kept.items():
            storage = self._storage[name]
            if storage.as_is and stored is not None and stored.values.dtype == leaf.dtype:
                row[name] = stored.values
                continue
            storage.check_leaf(leaf.path, leaf.param_dtype, stored)
            row[name] = None if stored is None else self.decoded(name, stored, leaf.dtype, leaf.layers)
        if self.reads_noise:
            row["noise"] = leaf.noise(self._name, "rule")(leaf.updates)
        return sharding.together(row) if leaf.spread else row

    def decoded(self, name: str, stored: Stored, working: jnp.dtype, layers: Layers = ONE) -> jax.Array:
        """A slot in working precision."""
        square = self._slots[name].kind == "square"
        return layers.decode(self._storage[name], stored, numerics.real_dtype(working) if square else working)

    def write(self, now: Now, numbers: Row, leaf: Leaf, kept: Slots, row: Row) -> tuple[jax.Array, Slots]:
        """Apply the rule to what was read, and encode what is to be kept."""
        values: dict[str, Any] = {"path": leaf.path, **row, "now": now, **numbers}
        if self._of_leaf:
            for name, statistic in self._of_leaf.items():
                reduced = functools.partial(self.reduced, name, statistic)
                values[name] = known(leaf.ahead, lambda: self._of_layers(leaf, reduced, row, values))  # noqa: B023
        try:
            out = self._of_layers(leaf, self._applied, row, values)
        except KeyError:
            missing = [name for name in self.reads if name not in values]
            if not missing:
                raise
            raise TypeError(f"{self._name}: its rule reads {missing}, which Rule(numbers=...) does not give.") from None
        except FloatingPointError as error:  # under jax_debug_nans, where JAX runs operation by operation
            raise FloatingPointError(f"{self._name}: leaf {leaf.path()}: {error}") from error
        if self._keeps_apart(leaf):
            out = jax.tree.map(leaf.layers.placed, out)
        update, *slots = out if isinstance(out, tuple) else (out,)
        if len(slots) != len(kept) or getattr(update, "shape", None) != leaf.updates.shape:
            self._refuse(out, leaf, row)
        new: dict[str, Stored | None] = {}
        for (name, like), slot in zip(kept.items(), slots, strict=True):
            if like is None or slot is None or getattr(slot, "shape", None) != values[name].shape:
                if like is not slot:
                    self._refuse(out, leaf, row)
                new[name] = None
            elif self._storage[name].as_is and slot.dtype == like.values.dtype:
                new[name] = Stored(slot)
            elif slot is values[name]:  # which is kept for ever, and must not be rounded again
                new[name] = like
            else:  # the only place where a moment changes dtype, of which rules know nothing
                new[name] = self._encoded(name, slot, like, leaf)
        return update, new

    def _applied(self, values: Mapping[str, Any]) -> Any:
        """What the rule returns."""
        return self._rule.apply(*[values[name] for name in self.reads])

    def _keeps_apart(self, leaf: Leaf) -> bool:
        """Whether the layers of a leaf are stepped one by one, because the rule does not step each element so."""
        return bool(leaf.layers.axes) and self._reduces

    def _of_layers(
        self, leaf: Leaf, function: Callable[[Mapping[str, Any]], Any], row: Row, values: Mapping[str, Any]
    ) -> Any:
        """A function of what is known of a leaf, of each of its layers by itself where they are kept apart.

        Args:
          leaf: the leaf.
          function: of what is known by name.
          row: what was read of the leaf.
          values: this, the statistics so far, and what all leaves have in common.
        """
        if not self._keeps_apart(leaf):
            return function(values)
        statistics = {name: values[name] for name in self._of_leaf if name in values}

        def of_layer(row: Row, statistics: Row) -> Any:
            return function({**values, **row, **statistics})

        return leaf.layers.each(of_layer)(dict(row), statistics)

    def _encoded(self, name: str, slot: jax.Array, like: Stored, leaf: Leaf) -> Stored:
        storage = self._storage[name]
        noise = leaf.noise(self._name, name)
        if leaf.ahead is None or not storage.looks_ahead or leaf.layers.cross(storage):
            stored = leaf.layers.encode(storage, slot, like, noise)
        else:
            found = leaf.ahead.of(lambda: storage.ahead(slot, like))
            if leaf.ahead.is_first:
                return storage.outline(slot, like)
            stored = storage.encode_knowing(slot, like, noise, found)
        if _described(stored) != _described(like):
            raise ValueError(
                f"{self._name}: for leaf {leaf.path()} {storage!r} must keep {name} as before, as "
                f"{_described(like)}, but its encode returned {_described(stored)}."
            )
        return stored

    def _refuse(self, out: Any, leaf: Leaf, row: Row) -> None:
        """Refuse what a rule has returned, which is not updates and slots of the right shapes."""
        slots = [row[name] for name in self._slots]
        expected = [leaf.updates.shape, *(None if slot is None else slot.shape for slot in slots)]
        came = out if isinstance(out, tuple) else (out,)
        got = [None if x is None else getattr(x, "shape", type(x).__name__) for x in came]
        raise ValueError(
            f"{self._name}: for leaf {leaf.path()} its rule must return {' and '.join(['updates', *self._slots])} "
            f"of the shapes {expected}, but it returned {got}."
        )

    def reduced(self, name: str, statistic: Reduction, values: Mapping[str, Any]) -> jax.Array:
        """A statistic over the tensor, or over the blocks of a slot."""
        terms = statistic.term(*[values[read] for read in self._terms[name]])
        if statistic.over in self._slots:
            slot = values[statistic.over]
            shape = terms.shape if slot is None else jnp.shape(slot)
            return (blocks.mean if statistic.mean else blocks.total)(terms, shape)
        return jnp.sum(terms) / (float(max(terms.size, 1)) if statistic.mean else 1.0)  # JAX takes no int beyond int32


def _described(stored: object) -> list[str]:
    """The dtypes and shapes of what is kept."""
    return [f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(stored)]


def parameters_of(function: Callable[..., object], what: str) -> tuple[str, ...]:
    """The names of a function's parameters, each of which is given by its place.

    Args:
      function: the function.
      what: what it is called in the error.
    """
    if inspect.isfunction(function) and not function.__dict__:
        code = function.__code__  # faster than a signature, which what wraps a function would have
        if not (code.co_kwonlyargcount or code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)):
            return code.co_varnames[: code.co_argcount]
    parameters = inspect.signature(function).parameters
    if odd := [str(parameter) for parameter in parameters.values() if parameter.kind not in _BY_PLACE]:
        raise TypeError(
            f"{what} has the parameters {odd}; each must be given by its place, and named after what it reads: now, "
            "updates, grad, params, noise, or a slot, number or statistic of the link."
        )
    return tuple(parameters)


_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
