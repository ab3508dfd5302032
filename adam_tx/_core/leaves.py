"""An update's trees as columns of leaves: flattened, checked and lifted once, with errors that name the leaf.

The precision contract lives here. A leaf is *lifted* to its working dtype on the way
in, every rule runs there, and the emitted update is *lowered* on the way out to the
dtype that Optax would have emitted.

`None` and `optax.MaskedNode` stand for parameters that are not there (filtered or
masked out); they pass through untouched.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.sharding import SingleDeviceSharding

from adam_tx._core import blocks, numerics, sharding
from adam_tx._core.ahead import Ahead
from adam_tx._core.given import Given
from adam_tx._core.given import is_absent as is_absent
from adam_tx._core.layers import ONE, Layers
from adam_tx._core.masks import Mask, marked, mask_of
from adam_tx._core.paths import path_str, some

Tree = object
"""Any pytree."""
Column = list[jax.Array]
"""One array for each leaf of a tree, and in the place of one that is absent what stands for it."""

Told = Sequence[tuple[Sequence[int], Any]]
"""Some leaves by number, and a tree of what is said of them: an array with one number of each, or one array of each."""

Watch = Callable[[tuple[str, ...], "Member", "Leaves", Column, bool], None]
"""Who is told, of every link, where it stands, what it is, and what comes in; after its step what it emitted."""
WATCH: ContextVar[tuple[Watch, tuple[str, ...]] | None] = ContextVar("watch", default=None)
"""Who watches the updates that begin now, and where they are."""


LAYERS: ContextVar[Mapping[str, Layers] | None] = ContextVar("layers", default=None)
"""What layers leaves have, by path, while a transformation from elsewhere runs, of which links inside make `Leaves`."""


class Member(Protocol):
    """What `Leaves` know of a link."""

    def update_leaves(self, leaves: "Leaves", updates: Column, state: object) -> tuple[Column, object]:
        """What it emits, and its new state."""
        ...


class Leaves:
    """The leaves of one update, in the order of their tree.

    Attributes:
      updates, grad, params: the columns, lifted; the last two None where they did not come.
      present: the numbers of the leaves that are there, in order; whether one is among them takes no search.
      dtypes: the working dtype of every leaf.
      count: the number of earlier updates, int32.
      extra: what else was given to `update`, by name.
      place: the names of the links that the one which steps stands in, and its own, as far as somebody asks.
      positions: what links are called whose name stands at several places, by place.
      observed: whether somebody asks for places, so that members are run by `run_member`.
      ahead: what is known ahead of this step; None if nobody looks ahead.
      told: what links have to say of a step that was made, by place, where leaves were stepped one by one.
      layers: the layers of each leaf in which several are stacked, by number.
      is_alone: whether it is one leaf, or a tile of one, taken out of a tree that is not known.
    """

    updates: Column
    grad: Column | None
    params: Column | None
    present: Collection[int]
    dtypes: list[jnp.dtype]
    count: Any
    extra: Mapping[str, object]
    place: tuple[str, ...] = ()
    positions: Mapping[tuple[str, ...], str] = MappingProxyType({})
    observed: bool = False
    ahead: Ahead | None = None
    told: Mapping[tuple[str, ...], "Told"] = MappingProxyType({})
    layers: Mapping[int, Layers] = MappingProxyType({})
    is_alone: bool = False
    treedef: Any
    _results: list[jnp.dtype]
    _watch: Watch | None = None

    def __init__(
        self,
        updates: Tree,
        grad: Tree = None,
        params: Tree = None,
        *,
        count: jax.Array | None = None,
        extra: Mapping[str, object] | None = None,
        positions: Mapping[tuple[str, ...], str] = MappingProxyType({}),
    ) -> None:
        self._given = Given({"updates": updates, "params": params})
        if (watched := WATCH.get()) is not None:
            self._watch, self.place = watched
        nodes, self.treedef = jax.tree.flatten(updates, is_leaf=is_absent)
        self.count = count
        self.extra = extra or {}
        self.positions = positions
        self.present = {i: None for i, node in enumerate(nodes) if not is_absent(node)}
        columns = {"updates": nodes}
        if grad is not None and grad is not updates:
            columns["grad"] = self._of_updates(grad, "grad", nodes)
        if params is not None:
            columns["params"] = self._of_updates(params, "params", nodes)
            if len(self.present) < len(nodes):
                self._given.trees["params"] = self.tree(columns["params"])
        self.dtypes = [_NONE] * len(nodes)
        self._results = [_NONE] * len(nodes)
        lifted = {name: list(column) for name, column in columns.items()}
        for i in self.present:
            self._lift(i, {name: column[i] for name, column in columns.items()}, lifted)
        self.updates = lifted["updates"]
        self.params = lifted.get("params")
        self.grad = None if grad is None else lifted.get("grad", self.updates)
        self.observed = self._watch is not None or bool(positions)
        self._find_layers()

    def _find_layers(self) -> None:
        if (known := LAYERS.get()) is not None:
            self.layers = {i: known[self.paths[i]] for i in self.present if self.paths[i] in known}

    def layers_of(self, i: int) -> Layers:
        """The layers of a leaf."""
        return self.layers.get(i, ONE)

    @property
    def of_layers(self) -> Column:
        """The leaves as they came; of what is stacked the outline of one layer, which is what has a rule of its own."""
        nodes = self.nodes
        for i, layers in self.layers.items():
            nodes[i] = _outlined(layers, nodes[i])
        return nodes

    def _of_updates(self, tree: Tree, name: str, nodes: Column) -> Column:
        """The column of a tree without what stands where no update is: nothing is known of it, and nothing reads it."""
        column = self.column(tree, name)
        if len(self.present) == len(nodes):
            return column
        return [node if i in self.present else nodes[i] for i, node in enumerate(column)]

    def _lift(self, i: int, row: Mapping[str, jax.typing.ArrayLike], lifted: Mapping[str, Column]) -> None:
        """Convert what came of a leaf to the dtype to work in."""
        dtypes = {name: self._dtype(i, name, leaf) for name, leaf in row.items()}
        if len(row) > 1:
            self.check_shapes(i, row)
        dtype, self._results[i] = numerics.working_and_emitted(**dtypes)
        self.dtypes[i] = dtype
        for name, leaf in row.items():
            if not (dtypes[name] == dtype and isinstance(leaf, jax.Array)):
                lifted[name][i] = numerics.cast(leaf, dtype)

    def _dtype(self, i: int, name: str, leaf: Any) -> jnp.dtype:
        try:
            dtype = getattr(leaf, "dtype", None) or numerics.dtype_of(leaf)
        except TypeError:
            raise TypeError(
                f"{name}: leaf {self.path(i)} is a {type(leaf).__name__}, and no array. Put None in its place in the "
                "trees given to init and update, as equinox.filter(model, equinox.is_array) does."
            ) from None
        if not numerics.is_inexact(dtype):
            raise TypeError(
                f"{name}: leaf {self.path(i)} has dtype {dtype}, but only floating-point and complex leaves can be "
                "optimised. Mask it with optax.masked, or put None in its place in the trees given to init and update."
            )
        return dtype

    @classmethod
    def of_params(cls, params: Tree, positions: Mapping[tuple[str, ...], str] = MappingProxyType({})) -> "Leaves":
        """Those of parameters alone, to make a state for them."""
        leaves = cls.__new__(cls)
        leaves._given = Given({"params": params})
        nodes, leaves.treedef = jax.tree.flatten(params, is_leaf=is_absent)
        leaves.present = {i: None for i, node in enumerate(nodes) if not is_absent(node)}
        leaves.params = nodes
        leaves.positions = positions
        leaves.dtypes = [_NONE] * len(nodes)
        for i in leaves.present:
            leaves.dtypes[i] = numerics.working(leaves._dtype(i, "params", nodes[i]))
        leaves._find_layers()
        return leaves

    def __len__(self) -> int:
        return len(self.dtypes)

    @property
    def initial(self) -> Column:
        """The parameters, which are there wherever a state is made."""
        return self.params or []

    @functools.cached_property
    def scalar_dtype(self) -> jnp.dtype:
        """The dtype of a state's numbers: the widest real working dtype of any leaf."""
        return numerics.real_dtype(numerics.working(*{self.dtypes[i] for i in self.present}))

    @functools.cached_property
    def on_explicit_mesh(self) -> bool:
        """Whether JAX wants to be told how what is computed of the leaves lies on a mesh."""
        # an array on one device lies on none; this is known at once, and its type takes long to ask
        updates = [self.updates[i] for i in self.present]
        asked = [x for x in updates if isinstance(x, Tracer) or not isinstance(x.sharding, SingleDeviceSharding)]
        return bool(asked) and sharding.is_explicit(*asked)

    def column(self, tree: Tree, name: str, *, optional: bool = False) -> Column:
        """The nodes of another tree that stand where this one has its leaves.

        Where a leaf is present its node must be a leaf too, or absent if `optional`; what is absent then may stand for
        a whole part of the tree.
        """
        try:
            nodes = self.treedef.flatten_up_to(tree)
        except ValueError:
            if not optional:
                raise ValueError(self._different(tree, name)) from None
            nodes = self._spread(tree, name)
        for i in self.present:
            node = nodes[i]
            if not (hasattr(node, "dtype") or (optional and is_absent(node)) or _is_leaf(node)):
                raise ValueError(self._different(tree, name))
        return nodes

    def _spread(self, tree: Tree, name: str) -> Column:
        """The nodes of a tree in which what is absent may stand above the leaves, as Optax puts it there."""

        def below(node: object, part: Tree) -> Tree:
            inside = jax.tree.structure(part, is_leaf=is_absent)
            return inside.unflatten([node] * inside.num_leaves) if is_absent(node) else node

        ours = self.treedef.unflatten(self.nodes)
        try:
            return self.treedef.flatten_up_to(jax.tree.map(below, tree, ours, is_leaf=is_absent))
        except ValueError:
            raise ValueError(self._different(tree, name)) from None

    def tree(self, column: Sequence[object]) -> Tree:
        """The tree whose leaves these are."""
        return jax.tree.unflatten(self.treedef, column)

    def each(self, function: Callable[[jax.Array], jax.Array], column: Column) -> Column:
        """The function of every leaf of a column that is there; what is absent stays."""
        return [function(x) if i in self.present else x for i, x in enumerate(column)]

    def given(self, name: str) -> Tree:
        """The updates or params before they were lifted; None where they did not come."""
        return self._given.trees.get(name)

    def lower(self, emitted: Column, *, exact: bool = False) -> Tree:
        """The tree of emitted updates in the dtype of (parameter, update), as Optax emits them; unrounded if exact."""
        column = list(emitted)
        for i in self.present:
            if column[i].shape != self.updates[i].shape:
                raise ValueError(
                    f"leaf {self.path(i)}: an update of shape {column[i].shape} was emitted for one of shape "
                    f"{self.updates[i].shape}. A wrapper, or a transformation from elsewhere, must keep the shape."
                )
            if column[i].dtype != self._results[i] and not exact:
                column[i] = self.lowered(i, column[i])
        return self.treedef.unflatten(column)

    def lowered(self, i: int, update: jax.Array) -> jax.Array:
        """The emitted update of a leaf in the dtype in which Optax would emit it."""
        return numerics.cast(update, self._results[i])

    def merged(self, owners: Sequence[int], trees: Sequence[Tree]) -> Tree:
        """The tree of which every node, where these leaves are, is that of the tree of its owner's number."""
        columns = [[None] * len(self) if tree is None else self.treedef.flatten_up_to(tree) for tree in trees]
        return self.tree([columns[owner][i] for i, owner in enumerate(owners)])

    @property
    def nodes(self) -> Column:
        """The leaves as they came, parameters or updates, and what stands for those that are absent."""
        return self.treedef.flatten_up_to(self._given.first)

    @property
    def paths(self) -> list[str]:
        """The paths of the leaves, also of those that are absent, such as `dense/kernel`."""
        return self._given.paths

    @functools.cached_property
    def param_dtypes(self) -> list[jnp.dtype | None]:
        """The dtypes in which the parameters came; None for those that are not there."""
        params = self.given("params")
        leaves: list[Any] = [None] * len(self) if params is None else self.treedef.flatten_up_to(params)
        return [None if is_absent(leaf) else numerics.dtype_of(leaf) for leaf in leaves]

    def only(self, leaves: Collection[int]) -> "Leaves":
        """The same leaves without all other leaves: as if these were masked."""
        chosen = set(leaves)
        dtype = self.scalar_dtype
        columns = {
            name: [x if i in chosen or is_absent(x) else optax.MaskedNode() for i, x in enumerate(column)]
            for name in ("updates", "grad", "params")
            if (column := getattr(self, name, None)) is not None
        }
        present = dict.fromkeys(i for i in self.present if i in chosen)
        return self.replace(present=present, scalar_dtype=dtype, **columns)

    def run_member(self, name: str, link: Member, updates: Column, state: object) -> tuple[Column, object]:
        """The step of a link that stands under this name, seen by who watches."""
        leaves = self.within(name) if self.observed else self
        if self._watch is None:
            return link.update_leaves(leaves, updates, state)
        self._watch(leaves.place, link, leaves, updates, False)
        emitted, state = link.update_leaves(leaves, updates, state)
        self._watch(leaves.place, link, leaves, emitted, True)
        return emitted, state

    def within(self, name: str) -> "Leaves":
        """The same for the link that stands under this name."""
        return self.replace(place=(*self.place, name)) if name else self

    def replace(self, **changed: object) -> "Leaves":
        """The same with other columns, or another count, for links inside."""
        other = Leaves.__new__(Leaves)
        other.__dict__.update(self.__dict__, **changed)
        return other

    def path(self, i: int) -> str:
        """The path of a leaf as Python would index it, such as `['dense']['kernel']`."""
        return path_str(self._given.keys[i])

    def check_shapes(self, i: int, row: Mapping[str, jax.typing.ArrayLike], block_slots: Collection[str] = ()) -> None:
        """Refuse leaves of different shapes; slots named in `block_slots` need only divide the first."""
        shapes = {name: jnp.shape(leaf) for name, leaf in row.items()}
        lead = next(iter(shapes.values()))
        for name, shape in shapes.items():
            if shape != lead and not (name in block_slots and blocks.divides(shape, lead)):
                listing = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
                raise ValueError(
                    f"leaf {self.path(i)} must have one shape, but came with {listing}. "
                    "Give update the gradient of the params that init was given, or call init anew."
                )

    def marks(self, mask: Mask) -> Sequence[bool]:
        """For each leaf whether a mask, a tree of booleans or a function from params to one, marks it."""
        params = self.given("params")
        if params is None:
            if not self.present:
                return [False] * len(self)
            raise ValueError("a mask marks parameters, so it needs params: call tx.update(updates, state, params).")
        tree = mask_of(mask, self._arrays_of_params())
        for over in (params, self._given.params):  # a tree may mark what is not there, too
            try:
                return self.treedef.flatten_up_to(jax.tree.map(marked, jax.tree.broadcast(tree, over)))
            except (ValueError, TypeError):
                continue
        raise ValueError(
            f"mask must be a tree of booleans, one for each leaf or part of the tree of params, got {tree}."
        )

    def _arrays_of_params(self) -> Tree:
        """All parameters that came; of what has no update, and is no array, what stands in its place."""
        shown = self.treedef.flatten_up_to(self.given("params"))
        came = self.treedef.flatten_up_to(self._given.params)
        arrays = [all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(node)) for node in came]
        nodes = [node if whole else mark for node, mark, whole in zip(came, shown, arrays, strict=True)]
        for i, layers in self.layers.items():
            nodes[i] = _outlined(layers, nodes[i])
        return self.tree(nodes)

    def _different(self, other: Tree, name: str) -> str:
        trees = (self._given.first, other)
        ours, theirs = ({path_str(path) for path, _ in jax.tree_util.tree_leaves_with_path(t)} for t in trees)
        only = {"updates": sorted(ours - theirs), name: sorted(theirs - ours)}
        found = [f"only {name} has {some(paths)}" for name, paths in only.items() if paths]
        return (
            f"updates and {name} are different trees: {', '.join(found) or 'the same leaves in other containers'}. "
            "Give update(updates, state, params) trees like the one that init was given, or call init anew."
        )


_NONE = jnp.dtype("V")  # of a leaf that is absent


def increment(count: jax.Array) -> jax.Array:
    """The count of one more update; it stays at the largest int32 instead of wrapping round."""
    return jnp.minimum(count, 2**31 - 2) + 1


def _is_leaf(node: object) -> bool:
    return not is_absent(node) and jax.tree_util.all_leaves([node])


def _outlined(layers: Layers, leaf: Any) -> Any:
    """The shape and dtype of one of the layers."""
    return jax.ShapeDtypeStruct(layers.shape(jnp.shape(leaf)), numerics.dtype_of(leaf))
