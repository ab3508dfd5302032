"""`stacked`: layers that `jax.lax.scan` wants in one array, each a tensor of its own to what reads whole tensors."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import optax

from adam_tx._core.abstract_leaf_step import KeptOfLeaf, StoredSlot
from adam_tx._core.abstract_link import AbstractLink, Part
from adam_tx._core.boxes import unboxed
from adam_tx._core.call import is_optax, maker_name
from adam_tx._core.layers import Layers
from adam_tx._core.leaf import Leaf
from adam_tx._core.leaves import Column, Leaves
from adam_tx._core.optax_parts import looks_at
from adam_tx._core.paths import PathPattern, Pattern, shape_of
from adam_tx._core.states import State
from adam_tx._link import implementation_in, optimizer
from adam_tx.describe import visit

Axes = int | Sequence[int]


@optimizer
def stacked(
    inner: optax.GradientTransformation, patterns: PathPattern | Mapping[PathPattern, Axes], axes: Axes = 0
) -> Stacked:
    """Treat each layer of parameters that are stacked for `jax.lax.scan` as a tensor of its own.

    A network of equal layers compiles in the time of one if their parameters are stacked,
    an array `(layers, m, n)` in the place of as many matrices, and `jax.lax.scan` goes
    through them: Flax's `nn.scan` and `nnx.scan`, `scan_layers` of MaxText, `Stacked` of
    Haliax, `Repeat` of AXLearn do so. A norm of such an array would be that of all
    layers. Here everything that a link reduces over a tensor is a layer's: trust ratios and
    clips, surprises, Adam-mini's blocks, Adafactor's rows and columns, SOAP's bases, Muon's
    matrices, the scales of 8-bit moments. With w_l the layer l of a leaf::

        update of w_l  =  what inner would emit for w_l, were it a leaf of its own

    What a link reduces over the whole tree, such as a global norm, is still of all leaves.
    What steps each element by itself, such as Adam, runs as it did, bit by bit.

    `inner` sees a layer wherever a shape matters: a function given as `block`, `axes` or
    `mask`, and a pattern in `groups` inside, get the shape of a layer. So "no decay on what
    has one axis" is right for stacked biases. `optax.masked` and `optax.partition` see whole
    arrays, and are refused where that makes a difference.

    Nothing is kept of this: the state is that of `inner`, so a checkpoint of a model with
    stacked layers fits before and after, where nothing is reduced over a tensor. What is
    kept of a layer stands in arrays with the axes of layers where the parameter has them
    (`nu_row` is `(layers, m, 1)`); what has no axes of a parameter, such as a basis, has
    them in front. Layouts over a mesh may split these axes, too. Rounding at random draws
    other bits for every layer.

    Args:
      inner: a link, a chain or another transformation. A transformation of Optax that is
        not known to step elements by themselves is refused; adam_tx has links for most.
        `as_link(…, elementwise=True)` says it of one of your own.
      patterns: which leaves are stacked, as in `groups`: "blocks/*"; or a dict from such
        patterns to their axes.
      axes: the axis, or axes, of a leaf that number its layers, counted from its end if
        negative. MaxText's `param_scan_axis` is 1.

    Returns:
      A `Link` with the name and state of `inner`.

    Raises:
      TypeError: axes that are no whole numbers; axes beside a dict.
      ValueError: at `init` and `update`, a pattern that matches no leaf, a leaf that two
        match, axes that a leaf does not have; a transformation of which it is not known
        what it reduces.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.stacked(adam_tx.clip_by_norm(1.0), "blocks/*")
    >>> params = {"blocks": {"kernel": jnp.zeros((2, 1, 2))}}
    >>> grads = {"blocks": {"kernel": jnp.array([[[3.0, 4.0]], [[0.3, 0.4]]])}}
    >>> tx.update(grads, tx.init(params))[0]["blocks"]["kernel"]
    Array([[[0.6, 0.8]],
    <BLANKLINE>
           [[0.3, 0.4]]], dtype=float32)
    """
    return Stacked(inner, _by_pattern(patterns, axes))


def _by_pattern(patterns: Any, axes: Any) -> dict[PathPattern, tuple[int, ...]]:
    """The axes of each pattern."""
    if isinstance(patterns, Mapping):
        if axes != 0:
            raise TypeError(f"stacked: the axes stand in the dict {patterns!r}, so leave axes={axes!r} out.")
        given = dict(cast(Mapping[PathPattern, Any], patterns))
    else:
        given = {patterns: axes}
    if not given or not all(isinstance(pattern, str) or callable(pattern) for pattern in given):
        raise TypeError(
            f"stacked: patterns must be a str, a function (path, shape) -> bool or a dict of such, got {patterns!r}."
        )
    return {pattern: _checked(pattern, of_pattern) for pattern, of_pattern in given.items()}


def _checked(pattern: PathPattern, axes: Any) -> tuple[int, ...]:
    found = tuple(cast(Sequence[Any], axes)) if isinstance(axes, Sequence) else (axes,)
    if not found or any(not isinstance(axis, int) or isinstance(axis, bool) for axis in found):
        raise TypeError(f"stacked: the axes of {pattern!r} must be an int or several, got {axes!r}.")
    return found


class _Way(NamedTuple):
    """How a leaf is treated in which layers are stacked.

    Attributes:
      layers: its layers.
      inside: how the link inside treats it.
    """

    layers: Layers
    inside: Hashable


class Stacked(AbstractLink):
    """A link to which each layer of some leaves is a leaf of its own."""

    emits_last = True

    def __init__(self, inner: optax.GradientTransformation, patterns: Mapping[PathPattern, tuple[int, ...]]) -> None:
        self.inner = implementation_in(inner)
        self.name = self.inner.name
        self.members = {"inner": self.inner}
        self.facts = self.inner.facts
        self.gives_gradient = self.inner.gives_gradient
        self._patterns = [(Pattern(pattern), axes) for pattern, axes in patterns.items()]
        said = [f"layers of {p.text} along {', '.join(map(str, axes))}" for p, axes in self._patterns]
        self.formula = "; ".join(["inner(u), of each layer by itself", *said])

    def leaves_inside(self, leaves: Leaves) -> Leaves:
        """The leaves with the layers that are stacked in them, and with those that are known from outside."""
        if leaves.is_alone:
            return leaves
        named = list(zip(leaves.paths, leaves.nodes, strict=True))
        for pattern, _ in self._patterns:
            pattern.check("stacked", named, of_updates=leaves.given("updates") is not None)
        found = dict(leaves.layers)
        for i in leaves.present:
            path, leaf = named[i]
            claims = [(p.text, axes) for p, axes in self._patterns if p.matches(path, shape_of(leaf))]
            if len(claims) > 1:
                raise ValueError(
                    f"stacked: leaf {path} is claimed by the patterns {[text for text, _ in claims]}; its axes can be "
                    f"said once. Take it out of all but one, as in '{claims[0][0]}|!{path}'."
                )
            if claims and 0 not in shape_of(leaf):
                found[i] = _of_leaf(path, shape_of(leaf), claims[0][1], leaves.layers_of(i))
        return leaves.replace(layers=found)

    def init_leaves(self, leaves: Leaves) -> State:
        """The state of the link inside."""
        inside = self.leaves_inside(leaves)
        state = self.inner.init_leaves(inside.within("inner"))
        self._check_strangers(inside, state, "params")
        return state

    def update_leaves(self, leaves: Leaves, updates: Column, state: State) -> tuple[Column, State]:
        """The step of the link inside."""
        inside = self.leaves_inside(leaves)
        self._check_strangers(inside, state, "updates")
        return inside.run_member("inner", self.inner, updates, state)

    def _check_strangers(self, leaves: Leaves, state: State, what: str) -> None:
        """Refuse transformations from elsewhere that may reduce over all layers of a leaf."""
        if not self.facts.strangers or self.facts.elementwise:
            return

        ours: set[tuple[int, ...]] = set()

        def enter(part: visit.Part) -> None:
            of_part = leaves.layers.keys() if part.leaves is None else part.leaves & leaves.layers.keys()
            if part.link is not None:
                ours.add(part.numbers)
            elif of_part and (why := _obstacle(part, leaves, is_in_ours=not part.numbers or part.numbers[:-1] in ours)):
                raise ValueError(
                    f"{what}: leaf {leaves.paths[min(of_part)]} has stacked layers, but {why}. Use a link of adam_tx "
                    "in its place, which steps each layer by itself; or, if it steps each element by itself, say so: "
                    "as_link(<it>, elementwise=True). Or put stacked around those links alone that reduce something."
                )

        known = leaves if leaves.given("params") is not None else None
        visit.visit(self.inner, unboxed(state), enter, tree=known)

    # What it keeps is what the link inside keeps.

    def split_state(self, state: State) -> Part:
        """All of it is the link's inside."""
        return Part({}, {"inner": state})

    def replace_members(self, state: State, inside: Mapping[str, State]) -> State:
        """All of it is the link's inside."""
        return inside.get("inner", state)

    def count_of(self, state: State) -> jax.Array | None:
        """The count of the link inside."""
        return self.inner.count_of(state)

    def with_count(self, state: State, count: jax.Array | None) -> State:
        """The state of the link inside, which is the outermost that counts."""
        return self.inner.with_count(state, count)

    def full_precision_params(self, leaves: Leaves, state: State) -> Leaves:
        """The parameters as the link inside knows them."""
        return self.inner.full_precision_params(leaves, state)

    def moved(self, leaves: Leaves) -> Collection[int]:
        """Those that the link inside may move."""
        return self.inner.moved(self.leaves_inside(leaves))

    def debiased_square(self) -> tuple[str, str] | None:
        """That of the link inside."""
        return self.inner.debiased_square()

    def basis_obstacles(self) -> Iterator[str]:
        """The basis would turn whole stacks."""
        yield "stacked stands inside a change of basis, which would mix its layers; put stacked around that."

    # One leaf's step without the tree: that of the link inside, which knows whether it may be made of a tile.

    def ways(self, leaves: Leaves) -> list[Hashable]:
        """Those of the link inside, and the layers."""
        inside = self.leaves_inside(leaves)
        ways = self.inner.ways(inside)
        for i, layers in inside.layers.items():
            ways[i] = _Way(layers, ways[i])
        return ways

    def run_front(self, leaves: Leaves, updates: Column, state: State) -> State:
        """Those of the link inside make their step."""
        return self.inner.run_front(self.leaves_inside(leaves).within("inner"), updates, state)

    def fusing_obstacles(self, way: Hashable = None, *, tiled: bool = False) -> Iterator[str]:
        """Those of the link inside; scales that are not of rows, and so not of a layer, where several are given."""
        yield from self.inner.fusing_obstacles(_inside(way), tiled=tiled)
        if isinstance(way, _Way) and _mixes(self.inner, way.layers):
            yield "what is stored of its layers has to be told apart"

    def numbers_at(self, count: jax.Array, state: State, found: Any = None) -> tuple[object, object]:
        """Those of the link inside."""
        return self.inner.numbers_at(count, state, found)

    def numbers_of(self, state: State) -> object:
        """Those of the link inside."""
        return self.inner.numbers_of(state)

    def leaf_survey(self, numbers: Any, leaf: Leaf, kept: KeptOfLeaf) -> Mapping[str, Any]:
        """That of the link inside."""
        return self.inner.leaf_survey(numbers, self._leaf_inside(leaf), kept)

    def leaf_step(self, numbers: Any, leaf: Leaf, kept: KeptOfLeaf) -> tuple[jax.Array, KeptOfLeaf]:
        """That of the link inside, to which a tile is a part of the whole stack."""
        return self.inner.leaf_step(numbers, self._leaf_inside(leaf), kept)

    def _leaf_inside(self, leaf: Leaf) -> Leaf:
        way = leaf.way
        known = leaf.within("inner")._replace(way=_inside(way))
        return known._replace(layers=way.layers) if isinstance(way, _Way) and leaf.tile is None else known

    def stored_of(self, kept: KeptOfLeaf) -> Iterator[StoredSlot]:
        """Those of the link inside."""
        return self.inner.stored_of(kept)

    def full_precision_of(self, param: jax.Array, kept: KeptOfLeaf) -> jax.Array:
        """The parameter as the link inside knows it."""
        return self.inner.full_precision_of(param, kept)

    def kept_of_leaves(self, leaves: Leaves, state: State) -> list[KeptOfLeaf]:
        """What the link inside keeps."""
        return self.inner.kept_of_leaves(self.leaves_inside(leaves), state)

    def with_kept(self, state: State, leaves: Leaves, numbers: Any, kept: Sequence[KeptOfLeaf]) -> State:
        """The state in which the link inside keeps this."""
        return self.inner.with_kept(state, leaves.within("inner"), numbers, kept)


def _of_leaf(path: str, shape: tuple[int, ...], axes: tuple[int, ...], known: Layers) -> Layers:
    """The layers of a leaf, those included that are known from outside."""
    counted = [axis + len(shape) if axis < 0 else axis for axis in axes]
    if len({*counted}) < len(counted) or not {*counted} <= {*range(len(shape))}:
        raise ValueError(
            f"stacked: leaf {path} of shape {shape} has no layers along axes {axes}. Name different axes that it has, "
            "or take it out of the pattern."
        )
    return Layers(tuple(sorted({*counted, *known.axes})))


def _inside(way: Hashable) -> Hashable:
    return way.inside if isinstance(way, _Way) else way


def _mixes(link: AbstractLink, layers: Layers) -> bool:
    """Whether a storage of it, or of a link inside, takes numbers of several layers together."""
    own = any(layers.cross(storage) for storage in link.storage.values())
    return own or any(_mixes(member, layers) for member in link.stepping.values())


def _obstacle(part: visit.Part, leaves: Leaves, *, is_in_ours: bool) -> str:
    """Why a transformation from elsewhere may not be given stacked layers; empty if it may."""
    maker, known = maker_name(part.tx), looks_at(part.tx)
    if part.elementwise:
        return ""
    if part.apart is None:
        return f"what {maker} does with an array is not known"
    if maker == "flatten":
        return "optax.flatten makes one vector of all leaves"
    if any(_chooses_otherwise(part, member.name, leaves) for member in part.apart.members):
        return f"optax.{maker} chooses leaves by the shape of whole arrays, and would choose otherwise for a layer"
    if part.apart.members or known == "element" or (known == "leaf" and is_in_ours):
        return ""
    if known == "leaf":
        return (
            f"optax.{maker}, which measures whole arrays, stands in a wrapper of Optax; in adam_tx.chain it may stand"
        )
    return f"{'optax.' * is_optax(part.tx)}{maker} may take a norm, or a mean, of a whole array"


def _chooses_otherwise(part: visit.Part, member: str, leaves: Leaves) -> bool:
    """Whether a wrapper of Optax gives this member other leaves than it would if it knew the shapes of layers."""
    if part.tree is None:
        return False
    mask = visit.mask_of_member(part.tx, member, leaves.given("params"))
    try:
        of_layers = visit.mask_of_member(part.tx, member, cast(Any, leaves.tree(leaves.of_layers)))
    except Exception:  # what reads numbers gets none
        return False
    return mask is not None and any(leaves.marks(mask)[i] != leaves.marks(of_layers)[i] for i in leaves.layers)
