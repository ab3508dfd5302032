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
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from adam_tx._core import blocks, boxes, numerics, paths

Tree = Any
State = Any
"""What a link keeps: a NamedTuple or dict of its own, whose fields follow from its declaration."""
if TYPE_CHECKING:
    Mask = optax.Params | Callable[[Any], optax.Params] | None
    """Which parameters are meant: a tree of booleans, or a function from params to one; None for all."""
else:
    Mask = Any  # the annotations of links are read, and inside optax.Params is a name that only chex can resolve
Column = list[Any]
"""One entry for each leaf of the tree that a leaves goes over."""
ShapeOf = Callable[[str, blocks.Shape], blocks.Shape | None]
"""The shape of a slot, from the path and shape of its leaf; None where the leaf has no such slot."""


Watch = Callable[[tuple[str, ...], Any, "Leaves", Column, bool], None]
"""Who is told, of every link, where it stands, what it is, and what comes in; after its step what it emitted."""
WATCH: ContextVar[tuple[Watch, tuple[str, ...]] | None] = ContextVar("watch", default=None)
"""Who watches the parts_of_leaves that begin now, and where they are."""


class Leaves:
    """The leaves of one update, in the order of their tree.

    Attributes:
      updates, grad, params: the columns, lifted; the last two None where they did not come.
      present: the numbers of the leaves that are there, in order; whether one is among them takes no search.
      dtypes: the working dtype of every leaf.
      count: the number of earlier updates, int32.
      extra: what else was given to `update`, by name.
    """

    updates: Column
    grad: Any
    params: Any
    present: Collection[int]
    dtypes: list[Any]
    count: Any
    extra: dict[str, Any]
    _results: list[Any]
    _watch: Watch | None = None
    _place: tuple[str, ...] = ()

    def __init__(self, updates: Tree, grad: Tree = None, params: Tree = None, *, count: Any = None, extra: Any = None):
        self._given = _Given({"updates": updates, "params": params})
        if (watched := WATCH.get()) is not None:
            self._watch, self._place = watched
        leaves, self._treedef = jax.tree.flatten(updates, is_leaf=is_absent)
        self.count, self.extra = count, extra or {}
        self.present = _present(leaves)
        same = grad is updates or grad is None
        columns = {"updates": leaves}
        for name, tree in {"grad": None if same else grad, "params": params}.items():
            if tree is not None:
                columns[name] = self._of_updates(self.column(tree, name), leaves)
        if "params" in columns and len(self.present) < len(leaves):
            self._given.trees["params"] = self.tree(columns["params"])
        self._results, self.dtypes = [None] * len(leaves), [None] * len(leaves)
        lifted = {name: list(column) for name, column in columns.items()}
        for i in self.present:
            self._lift(i, columns, lifted)
        self.updates, self.params = lifted["updates"], lifted.get("params")
        self.grad = None if grad is None else lifted["updates"] if same else lifted["grad"]

    def _of_updates(self, column: Column, updates: Column) -> Column:
        """The column without what stands where no update is: nothing is known of it, and nothing reads it."""
        return [node if i in self.present else updates[i] for i, node in enumerate(column)]

    def _lift(self, i: int, columns: Mapping[str, Column], lifted: Mapping[str, Column]) -> None:
        row = {name: column[i] for name, column in columns.items()}
        dtypes = [self._dtype(i, name, leaf) for name, leaf in row.items()]
        self.check_shapes(i, row)
        dtype = numerics.working(*dtypes)
        if "params" in row and dtypes[-1].kind != "c":
            # a complex gradient of a real parameter is projected: the only direction in which that can move
            dtype = numerics.real_dtype(dtype)
        self.dtypes[i] = dtype
        self._results[i] = numerics.promoted(*(dtypes if "grad" not in row else [dtypes[0], *dtypes[2:]]))
        for name, leaf in row.items():
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
    def of_params(cls, params: Tree) -> "Leaves":
        """A leaves over parameters, to make a state for them."""
        leaves = cls.__new__(cls)
        leaves._given = _Given({"params": params})
        arrays, leaves._treedef = jax.tree.flatten(params, is_leaf=is_absent)
        leaves.present = _present(arrays)
        leaves.params, leaves.dtypes = arrays, [None] * len(arrays)
        for i in leaves.present:
            leaves.dtypes[i] = numerics.working(leaves._dtype(i, "params", arrays[i]))
        return leaves

    def __len__(self) -> int:
        return len(self.dtypes)

    @functools.cached_property
    def scalar_dtype(self) -> jnp.dtype:
        """The dtype of a state's numbers: the widest real working dtype of any leaf."""
        return numerics.real_dtype(numerics.working(*(self.dtypes[i] for i in self.present)))

    def column(self, tree: Tree, name: str, *, optional: bool = False) -> Column:
        """The nodes of another tree that stand where this one has its leaves.

        Where a leaf is present its node must be a leaf too, or absent if `optional`; what is absent then may stand for
        a whole part of the tree.
        """
        try:
            nodes = self._treedef.flatten_up_to(tree)
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

        def below(node: Any, part: Tree) -> Tree:
            return jax.tree.map(lambda _: node, part, is_leaf=is_absent) if is_absent(node) else node

        ours = self._treedef.unflatten(self.nodes)
        try:
            return self._treedef.flatten_up_to(jax.tree.map(below, tree, ours, is_leaf=is_absent))
        except ValueError:
            raise ValueError(self._different(tree, name)) from None

    def tree(self, column: Sequence[Any]) -> Tree:
        """The tree whose leaves these are."""
        return jax.tree.unflatten(self._treedef, column)

    def given(self, name: str) -> Tree:
        """The updates or params before they were lifted; None where they did not come."""
        return self._given.trees.get(name)

    def lower(self, emitted: Column, *, exact: bool = False) -> Tree:
        """The tree of emitted updates in the dtype of (parameter, update), as Optax emits them; unrounded if exact."""
        if exact:
            return self.tree(emitted)
        column = list(emitted)
        for i in self.present:
            column[i] = self.lowered(i, column[i])
        return self.tree(column)

    def lowered(self, i: int, update: Any) -> Any:
        """The emitted update of a leaf in the dtype in which Optax would emit it."""
        return numerics.cast(update, self._results[i])

    def merged(self, owners: Sequence[int], trees: Sequence[Tree]) -> Tree:
        """The tree of which every node, where this leaves has its leaves, is that of the tree of its owner's number."""
        columns = [[None] * len(self) if tree is None else self._treedef.flatten_up_to(tree) for tree in trees]
        return self.tree([columns[owner][i] for i, owner in enumerate(owners)])

    @property
    def nodes(self) -> Column:
        """The leaves as they came, parameters or updates, and what stands for those that are absent."""
        return self._treedef.flatten_up_to(self._given.first)

    @property
    def paths(self) -> list[str]:
        """The paths of the leaves, also of those that are absent, such as `dense/kernel`."""
        return self._given.paths

    @functools.cached_property
    def param_dtypes(self) -> list[jnp.dtype | None]:
        """The dtypes in which the parameters came; None for those that are not there."""
        params = self.given("params")
        leaves: list[Any] = [None] * len(self) if params is None else self._treedef.flatten_up_to(params)
        return [None if is_absent(leaf) else numerics.dtype_of(leaf) for leaf in leaves]

    def with_grad(self, grad: Column) -> "Leaves":
        """The same leaves with another gradient, for the links inside a chain."""
        return self._with(grad=grad)

    def with_params(self, params: Column | None) -> "Leaves":
        """The same leaves with other parameters, or none."""
        return self._with(params=params)

    def counting(self, updates: Column, grad: Column | None, count: Any) -> "Leaves":
        """The same leaves with these updates, for links that count by themselves."""
        return self._with(updates=updates, grad=grad, count=count)

    def inside(self, updates: Column, grad: Column, count: Any) -> "Leaves":
        """The same leaves in another basis, without parameters, for links that count by themselves."""
        return self._with(updates=updates, grad=grad, params=None, count=count)

    def only(self, leaves: Sequence[int]) -> "Leaves":
        """The same leaves without all other leaves: as if these were masked."""
        chosen, dtype = set(leaves), self.scalar_dtype
        columns = {
            name: [x if i in chosen or is_absent(x) else optax.MaskedNode() for i, x in enumerate(column)]
            for name in ("updates", "grad", "params")
            if (column := getattr(self, name, None)) is not None
        }
        present = dict.fromkeys(i for i in self.present if i in chosen)
        return self._with(present=present, scalar_dtype=dtype, **columns)

    def run_member(self, name: str, link: Any, updates: Column, state: State) -> tuple[Column, State]:
        """The step of a link that stands under this name, seen by who watches."""
        if self._watch is None:
            return link.update_leaves(self, updates, state)
        leaves = self._with(_place=(*self._place, name) if name else self._place)
        self._watch(leaves._place, link, leaves, updates, False)
        emitted, state = link.update_leaves(leaves, updates, state)
        self._watch(leaves._place, link, leaves, emitted, True)
        return emitted, state

    def _with(self, **changed: Any) -> "Leaves":
        other = Leaves.__new__(Leaves)
        other.__dict__.update(self.__dict__, **changed)
        return other

    def path(self, i: int) -> str:
        """The path of a leaf as Python would index it, such as `['dense']['kernel']`."""
        return path_str(self._given.keys[i])

    def check_shapes(
        self, i: int, row: Mapping[str, Any], block_slots: Mapping[str, Any] | tuple[str, ...] = ()
    ) -> None:
        """Refuse leaves of different shapes; slots named in `block_slots` need only divide the first."""
        lead = None
        for name, leaf in row.items():
            shape = jnp.shape(leaf)
            if lead is None:
                lead = shape
            elif shape != lead and not (name in block_slots and blocks.divides(shape, lead)):
                listing = ", ".join(f"{name} {jnp.shape(leaf)}" for name, leaf in row.items())
                raise ValueError(
                    f"leaf {self.path(i)} must have one shape, but came with {listing}. "
                    "Give update the gradient of the params that init was given, or call init anew."
                )

    def marks(self, mask: Mask) -> Sequence[bool]:
        """For each leaf whether a mask, a tree of booleans or a function from params to one, marks it."""
        if mask is None:
            return [True] * len(self)
        params = self.given("params")
        if params is None and self.present:
            raise ValueError("a mask marks parameters, so it needs params: call tx.update(updates, state, params).")
        tree = mask_of(mask, params)
        for over in (params, self._given.params):  # a tree may mark what is not there, too
            try:
                marked = jax.tree.map(lambda mark, part: jax.tree.map(lambda _: _marked(mark), part), tree, over)
                return self._treedef.flatten_up_to(marked)
            except (ValueError, TypeError):
                continue
        raise ValueError(
            f"mask must be a tree of booleans, one for each leaf or part of the tree of params, got {tree}."
        )

    def _different(self, other: Tree, name: str) -> str:
        trees = (self._given.first, other)
        ours, theirs = ({path_str(path) for path, _ in jax.tree_util.tree_leaves_with_path(t)} for t in trees)
        only = {"updates": sorted(ours - theirs), name: sorted(theirs - ours)}
        found = [f"only {name} has {some(paths)}" for name, paths in only.items() if paths]
        return (
            f"updates and {name} are different trees: {', '.join(found) or 'the same leaves in other containers'}. "
            "Give update(updates, state, params) trees like the one that init was given, or call init anew."
        )


class _Given:
    """The trees that came. All parts_of_leaves that are made of one share it, so that paths are found once."""

    def __init__(self, trees: dict[str, Tree]) -> None:
        self.trees, self.params = trees, trees.get("params")

    @property
    def first(self) -> Tree:
        """The one that the leaves goes over."""
        return next(iter(self.trees.values()))

    @functools.cached_property
    def keys(self) -> list[Any]:
        """The path of every leaf, as JAX's keys."""
        return [path for path, _ in boxes.leaves_with_paths(self.first, is_absent)]

    @functools.cached_property
    def paths(self) -> list[str]:
        """The same as text."""
        return [paths.slashed(path) for path in self.keys]


def is_absent(node: object) -> bool:
    """Whether the node stands for a parameter that is not there."""
    return node is None or isinstance(node, optax.MaskedNode)


def mask_of(mask: Any, params: Tree) -> Tree:
    """The mask for these parameters: what a function makes of them, or the tree that it is.

    A tree may be callable too, as a module is whose leaves are booleans; only a function's leaves are callable.
    """
    return mask(params) if callable(mask) and all(map(callable, jax.tree.leaves(mask))) else mask


def _marked(mark: Any) -> bool:
    if isinstance(mark, str):  # which would be True, whatever it says
        raise TypeError(mark)
    return bool(mark)


def _present(leaves: Column) -> Collection[int]:
    return dict.fromkeys(i for i, leaf in enumerate(leaves) if not is_absent(leaf))


def increment(count: jax.Array) -> jax.Array:
    """The count of one more update; it stays at the largest int32 instead of wrapping round."""
    return jnp.minimum(count, 2**31 - 2) + 1


def path_str(path: Any) -> str:
    """A leaf's path as Python would index it, such as `['dense']['kernel']`."""
    return jax.tree_util.keystr(path) or "(the tree itself)"


def _is_leaf(node: Any) -> bool:
    return not is_absent(node) and jax.tree_util.all_leaves([node])


def some(paths: list[str], most: int = 5) -> str:
    """The first of some paths, and how many more there are."""
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(paths[:most]) + more
