"""Parameters of another framework, which of ours each is and how its axes are turned; and our entries for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from adam_tx._core.boxes import leaves_with_paths
from adam_tx._core.leaves import is_absent
from adam_tx._core.paths import Pattern, shape_of, slashed, some
from adam_tx.state.arrays import Array
from adam_tx.state.conversion import rescaling, times
from adam_tx.state.export import of_parameter
from adam_tx.state.policy import names
from adam_tx.state.roles import Key, Role, weight_of

Order = Sequence[int] | Callable[[str, tuple[int, ...]], Sequence[int] | None]
Axes = Mapping[str, Order] | Callable[[str, tuple[int, ...]], Sequence[int] | None] | None
"""By pattern of paths, or by a function of path and shape, the other framework's axes in the order of ours.

An axis that is read backwards is written as its complement, `~2`.
"""


def flax_axes(path: str, shape: tuple[int, ...]) -> Sequence[int] | None:
    """How PyTorch's weights turn into Flax's kernels: the first two axes go to the end, input before output.

    A `Linear`'s (out, in) becomes (in, out), a `Conv2d`'s (out, in, height, width) becomes
    (height, width, in, out). Other parameters, embeddings among them, stay as they are.

    **It is not for transposed convolutions.** PyTorch's `ConvTranspose2d` has (in, out, height,
    width). Flax's `ConvTranspose` has (height, width, in, out), and reads height and width
    backwards, unless it has `transpose_kernel=True`: then this function is right. The shape
    tells only if the numbers of channels differ. So a path with "ConvTranspose" in it, as Linen
    makes them, is refused, and you say which parameters are such by their paths::

        axes = {"*/ConvTranspose_*/kernel": (~2, ~3, 0, 1), "*": flax_axes}

    where `~2` is axis 2, read backwards; with `transpose_kernel=True` it is `(2, 3, 1, 0)`.

    Raises:
      ValueError: a kernel of what is called ConvTranspose.

    >>> import adam_tx
    >>> adam_tx.interop.torch.flax_axes("conv/kernel", (3, 3, 8, 16))
    (2, 3, 1, 0)
    """
    n = len(shape)
    if path.split("/")[-1] != "kernel" or n < 2:
        return None
    if "convtranspose" in path.lower().replace("_", ""):
        turned = ", ".join(f"~{axis}" for axis in range(2, n))
        raise ValueError(
            f"axes: {path} is called a transposed convolution, whose axes are in another order than flax_axes gives. "
            f'Say it before: axes={{"{path}": ({turned}, 0, 1), "*": flax_axes}}; with transpose_kernel=True '
            f"{(*range(2, n), 1, 0)} instead."
        )
    return (*range(2, n), 1, 0)


class Parameters:
    """Our parameters in the order of another framework's.

    Args:
      what: the framework's optimizer, for errors.
      params: the tree of parameters, or their shapes.
      paths: the path of ours for each of theirs, in their order.
      axes: see `Axes`.

    Attributes:
      paths: these paths.
      shapes: the shapes of our parameters by path.
    """

    def __init__(self, what: str, params: Any, paths: Sequence[str], axes: Axes = None) -> None:
        leaves = leaves_with_paths(params, is_absent)
        self.shapes = {slashed(path): shape_of(leaf) for path, leaf in leaves if not is_absent(leaf)}
        self._what, self.paths = what, list(paths)
        twice = sorted({path for path in self.paths if self.paths.count(path) > 1})
        unknown = [path for path in self.paths if path not in self.shapes]
        for problem, found in (("twice", twice), ("no parameter", unknown)):
            if found:
                raise ValueError(
                    f"{what}: names must say for each of its {len(self.paths)} parameters, in its order, which of the "
                    f"{len(self.shapes)} in params it is; {problem}: {some(found)}."
                )
        self._axes = {path: self._order(path, axes) for path in self.paths}

    def _order(self, path: str, axes: Axes) -> tuple[int, ...] | None:
        shape = self.shapes[path]
        order: Any = axes
        if isinstance(axes, Mapping):
            order = next((order for of, order in axes.items() if Pattern(of).matches(path, shape)), None)
        given: Any = order(path, shape) if callable(order) else order
        if given is not None and sorted(map(_axis, given)) != list(range(len(shape))):
            raise ValueError(
                f"{self._what}: axes gives {tuple(given)} for {path}, but must give each of its {len(shape)} axes once."
            )
        return None if given is None else tuple(given)

    def ours(self, path: str, slot: str, value: Array) -> Array:
        """Their array of a slot, in the axes of our parameter."""
        order, shape = self._axes[path], self.shapes[path]
        turned = value if order is None or value.ndim != len(order) else _turned(value, order)
        if turned.shape != shape:
            hint = (
                "" if order is not None or sorted(value.shape) != sorted(shape) else " Are its axes in another order?"
            )
            raise ValueError(
                f"{self._what}: {slot} of {path} has shape {value.shape}, which does not give the parameter's {shape}. "
                f"Mend names, or give axes.{hint}"
            )
        return turned

    def theirs(self, path: str, slot: str, value: Array) -> Array:
        """Our array of a slot, in the axes of their parameter."""
        order = self._axes[path]
        if value.shape != self.shapes[path]:
            raise ValueError(
                f"{self._what}: {slot} of {path} has shape {value.shape}, but the parameter has {self.shapes[path]}. "
                "Give the params that were exported."
            )
        return value if order is None else np.ascontiguousarray(_turned_back(value, order))


def _axis(axis: int) -> int:
    """The number of an axis that may be read backwards."""
    return axis if axis >= 0 else ~axis


def _backwards(order: Sequence[int]) -> tuple[int, ...]:
    return tuple(place for place, axis in enumerate(order) if axis < 0)


def _turned(value: Array, order: Sequence[int]) -> Array:
    return np.flip(np.transpose(value, [_axis(axis) for axis in order]), _backwards(order))


def _turned_back(value: Array, order: Sequence[int]) -> Array:
    return np.transpose(np.flip(value, _backwards(order)), np.argsort([_axis(axis) for axis in order]))


class Entries:
    """What `export_state` gave, as the optimizer of another framework takes it.

    Args:
      what: the framework's optimizer, for errors.
      exported: the dict.
    """

    def __init__(self, what: str, exported: Mapping[str, object]) -> None:
        self._what = what
        self._values: dict[Key, Any] = {Key.parse(text): value for text, value in exported.items()}

    def __contains__(self, key: Key) -> bool:
        return key in self._values

    def get(self, key: Key) -> Any:
        """The entry of a parameter, or the one that all share; None without either."""
        return of_parameter(self._values, key)

    def needed(self, key: Key, slot: str = "") -> Any:
        """The entry of this very key, which the framework keeps in this slot."""
        if key not in self._values:
            needs = (
                f"{slot} of {key.path}, but exported has no {key}" if slot else f"{key}, which exported does not have"
            )
            raise ValueError(f"{self._what}: it needs {needs}.")
        return self._values[key]

    def scaled(self, key: Key, slot: str, wanted: float) -> Array:
        """The entry of this very key, of gradients times this constant."""
        value, rate = np.asarray(self.needed(key, slot)), self.get(key._replace(about="rate"))
        by = rescaling(key.role, rate, wanted, fades=key.role.is_of_steps)
        if by is None:
            raise ValueError(f"{self._what}: {key} is of gradients times {rate}, not {wanted}; take that away before.")
        return times(value, by)

    def check_nothing_is_lost(self, used: set[Key], drop: str) -> None:
        """Refuse to leave out what is kept of a parameter, unless that is said."""
        # a tree that is one parameter has keys without a path, as shared numbers have
        alone = not any(key.path for key in used)
        left = [
            key
            for key, value in self._values.items()
            if (key.path or (alone and np.ndim(value))) and not key.stored and key not in used
            if not (key.about or key.role.is_count or key.role.is_weight or (drop and names(drop, key)))
        ]
        if left:
            raise ValueError(
                f"{self._what} has no place for {some([str(key) for key in left])}. If that may be lost, say so: "
                f"drop='{left[0].shared}'."
            )

    def check_weights(self, path: str, betas: Mapping[Role, Any], count: int) -> None:
        """Refuse a debiasing weight that a framework, which takes it from its betas and the step, would not have.

        Args:
          path: the path of a parameter.
          betas: by the role of an average the decay that the framework debiases it by.
          count: the number of its steps.
        """
        for average, beta in betas.items():
            role = weight_of(average)
            ours, theirs = self.get(Key(role, path)), 1 - float(beta) ** count
            if ours is not None and abs(float(np.sum(ours)) - theirs) > 1e-4 * theirs:
                raise ValueError(
                    f"{self._what}: {role} is {np.sum(ours):.6g}, but after {count} steps it debiases by 1 - "
                    f"{beta}^{count} = {theirs:.6g}. It knows only constant betas, and only those of all steps; set "
                    "them to the decays."
                )
