"""Walking the trees of an update leaf by leaf, with errors that name the leaf.

`None` and `optax.MaskedNode` stand for parameters that are not there (filtered
or masked out); they pass through untouched.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from adam_tx import _blocks, _numerics

Tree = Any
ShapeOf = Callable[[Any, _blocks.Shape], _blocks.Shape | None]
"""The shape of a slot, from the path and shape of its leaf; None where the leaf has no such slot."""


def is_absent(node: object) -> bool:
    """Whether the node stands for a parameter that is not there."""
    return node is None or isinstance(node, optax.MaskedNode)


def map_leaves(
    rule: Callable[..., tuple[jax.Array, ...]],
    inputs: Mapping[str, Tree],
    slots: Mapping[str, Tree],
    *,
    real: Collection[str] = (),
    blocks: Collection[str] = (),
) -> tuple[Tree, ...]:
    """Apply a leaf's rule to every leaf: `rule(*inputs, *slots) -> (emitted, *slots)`.

    This is the only place where a moment changes dtype: the rule sees it in the
    leaf's working dtype, and what it returns is stored in the dtype `init` chose.
    The first input fixes the tree; a leaf absent there is absent everywhere. Slots
    named in `real` stay real beside complex leaves; those named in `blocks` stand for
    blocks of the leaf (`_blocks`) or, where they are None, for nothing.
    """
    (first, tree), *_ = inputs.items()
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_absent)
    columns = {first: [leaf for _, leaf in paths]}
    for name, other in [*list(inputs.items())[1:], *slots.items()]:
        columns[name] = _flatten_like(treedef, other, f"{first} and {name}", tree, optional=name in blocks)

    rows = []
    for (path, lead), *leaves in zip(paths, *list(columns.values())[1:], strict=True):
        if is_absent(lead):
            rows.append((lead, *leaves[len(inputs) - 1 :]))
            continue
        row = dict(zip(columns, (lead, *leaves), strict=True))
        present = {name: leaf for name, leaf in row.items() if leaf is not None}
        _check_shapes(path, present, blocks)
        dtype = _numerics.compute_dtype(*present.values())
        dtypes = {name: _numerics.real_dtype(dtype) if name in real else dtype for name in present}
        for name in present.keys() & slots.keys():
            _check_kind(path, name, row[name], dtypes[name])
        emitted, *new = rule(*(x if x is None else _numerics.cast(x, dtypes[name]) for name, x in row.items()))
        stored = dict(zip(slots, new, strict=True))
        rows.append((emitted, *(x if x is None else _numerics.cast(x, row[name].dtype) for name, x in stored.items())))
    columns_out = zip(*rows, strict=True) if rows else [()] * (1 + len(slots))
    return tuple(jax.tree.unflatten(treedef, column) for column in columns_out)


def full_like(
    params: Tree, value: float, dtype: DTypeLike | None = None, *, real: bool = False, shape: ShapeOf | None = None
) -> Tree:
    """A moment for every parameter, of its shape and sharding, float32 or wider.

    Args:
      params: the tree of parameters; floating-point or complex leaves.
      value: what every element starts from.
      dtype: storage dtype; `None` for the leaf's working dtype. A complex leaf's
        moment stays complex unless `real`.
      real: whether the moment is real even for a complex leaf.
      shape: its shape where that is another, standing for blocks of the leaf.
    """

    def full(path: Any, param: Any) -> Any:
        check_inexact(path, param, "params")
        stored = jnp.dtype(dtype) if dtype is not None else _numerics.compute_dtype(param)
        if real:
            stored = _numerics.real_dtype(stored)
        elif _numerics.is_complex(param) and not jnp.issubdtype(stored, jnp.complexfloating):
            raise TypeError(
                f"params: leaf {path_str(path)} is complex, so its moment cannot be stored as {stored}; "
                "leave dtype=None or choose a complex dtype."
            )
        moment = jnp.full_like(param, value, dtype=stored)
        if shape is None:
            return moment
        smaller = shape(path, moment.shape)
        # reduced from the leaf, so that its sharding is what a reduction of the gradient has
        return None if smaller is None else _blocks.mean(moment, smaller)

    return jax.tree_util.tree_map_with_path(full, params)


def map_beside(rule: Callable[..., Any], tree: Tree, beside: Tree, names: str, *, absent: Tree = None) -> Tree:
    """Apply `rule(path, leaf, part)` to every leaf and what stands in its place in `beside`, of any structure.

    An absent leaf stays as it is; where `absent` is given, what stands in its place there is taken.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_absent)
    try:
        parts = treedef.flatten_up_to(beside)
    except ValueError:
        raise ValueError(_different(tree, beside, names)) from None
    kept = [leaf for _, leaf in paths] if absent is None else treedef.flatten_up_to(absent)
    rows = zip(paths, parts, kept, strict=True)
    return jax.tree.unflatten(
        treedef, [keep if is_absent(leaf) else rule(path, leaf, part) for (path, leaf), part, keep in rows]
    )


def increment(count: jax.Array) -> jax.Array:
    """The count of one more update; it stays at the largest int32 instead of wrapping round."""
    return jnp.asarray(optax.safe_increment(count))


def scalar_dtype(params: Tree) -> jnp.dtype:
    """The dtype of a state's scalars: the widest real working dtype of any leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, leaf in leaves:
        check_inexact(path, leaf, "params")
    return _numerics.real_dtype(_numerics.compute_dtype(*(leaf for _, leaf in leaves)))


def lift(updates: Tree, grad: Tree, params: Tree) -> tuple[Tree, Tree, Tree]:
    """Convert each leaf of the three trees to its working dtype; `grad` and `params` may be None.

    A complex gradient of a real parameter is projected onto the real axis, the
    only direction in which that parameter can move.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(updates, is_leaf=is_absent)
    same = grad is updates
    grads = None if grad is None or same else _flatten_like(treedef, grad, "updates and grad", updates)
    weights = None if params is None else _flatten_like(treedef, params, "updates and params", updates)

    columns: tuple[list[Any], ...] = ([], [], [])
    for i, (path, u) in enumerate(paths):
        g, p = (grads[i] if grads else None), (weights[i] if weights else None)
        if not is_absent(u):
            row = {"updates": u, "grad": g, "params": p}
            present = {name: leaf for name, leaf in row.items() if not is_absent(leaf)}
            for name, leaf in present.items():
                check_inexact(path, leaf, name)
            _check_shapes(path, present)
            dtype = _numerics.compute_dtype(*present.values())
            if "params" in present and not _numerics.is_complex(present["params"]):
                dtype = _numerics.real_dtype(dtype)
            u, g, p = (leaf if is_absent(leaf) else _numerics.cast(leaf, dtype) for leaf in row.values())
        for column, leaf in zip(columns, (u, g, p), strict=True):
            column.append(leaf)

    lifted = [jax.tree.unflatten(treedef, column) for column in columns]
    return (
        lifted[0],
        None if grad is None else lifted[0] if same else lifted[1],
        None if params is None else lifted[2],
    )


def lower(emitted: Tree, updates: Tree, params: Tree) -> Tree:
    """Convert emitted updates to the dtype of (parameter, update), as Optax emits them."""

    def narrow(out: Any, *leaves: Any) -> Any:
        if is_absent(out):
            return out
        return _numerics.cast(out, _numerics.result_dtype(*(leaf for leaf in leaves if not is_absent(leaf))))

    trees = (updates,) if params is None else (updates, params)
    return jax.tree.map(narrow, emitted, *trees, is_leaf=is_absent)


def path_str(path: Any) -> str:
    """A leaf's path as Python would index it, such as `['dense']['kernel']`."""
    return jax.tree_util.keystr(path) or "(the tree itself)"


def check_inexact(path: Any, leaf: Any, tree: str) -> None:
    """Refuse integer, boolean, key and float0 leaves: they have no gradient to average."""
    dtype = getattr(leaf, "dtype", None) or _numerics.dtype_of(leaf)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"{tree}: leaf {path_str(path)} has dtype {dtype}, but only floating-point and complex leaves can be "
            "optimised. Mask it with optax.masked, or put None in its place in the trees given to init and update."
        )


def _flatten_like(treedef: Any, other: Tree, names: str, tree: Tree, *, optional: bool = False) -> list[Any]:
    """The nodes of `other` that stand where `treedef` has its leaves; a leaf, or None if `optional`, for a leaf."""
    try:
        nodes = treedef.flatten_up_to(other)
    except ValueError:
        raise ValueError(_different(tree, other, names)) from None
    leaves = treedef.flatten_up_to(tree)
    pairs = zip(leaves, nodes, strict=True)
    if all(is_absent(leaf) or _is_leaf(node) or (optional and node is None) for leaf, node in pairs):
        return nodes
    raise ValueError(_different(tree, other, names))


def _is_leaf(node: Any) -> bool:
    return not is_absent(node) and jax.tree_util.all_leaves([node])


def _different(tree: Tree, other: Tree, names: str) -> str:
    ours, theirs = ({path_str(path) for path, _ in jax.tree_util.tree_leaves_with_path(t)} for t in (tree, other))
    one, two = names.split(" and ")
    only = {one: sorted(ours - theirs), two: sorted(theirs - ours)}
    found = [f"only {name} has {_some(paths)}" for name, paths in only.items() if paths]
    return (
        f"{names} are different trees: {', '.join(found) or 'the same leaves in other containers'}. Give "
        "update(updates, state, params) trees like the one that init was given, or call init anew."
    )


def _some(paths: list[str], most: int = 5) -> str:
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(paths[:most]) + more


def _check_shapes(path: Any, row: Mapping[str, Any], blocks: Collection[str] = ()) -> None:
    shapes = {name: jnp.shape(leaf) for name, leaf in row.items()}
    lead = next(iter(shapes.values()))
    if not all(shape == lead or (name in blocks and _blocks.divides(shape, lead)) for name, shape in shapes.items()):
        listing = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"leaf {path_str(path)} must have one shape, but came with {listing}. "
            "Give update the gradient of the params that init was given, or call init anew."
        )


def _check_kind(path: Any, name: str, slot: jax.Array, dtype: jnp.dtype) -> None:
    if dtype.kind == "c" and not _numerics.is_complex(slot):
        raise TypeError(
            f"leaf {path_str(path)}: a complex gradient came for {name}, which is {slot.dtype} because the "
            "parameter is real. Give update the params, so that the gradient can be projected, or take its real part."
        )
