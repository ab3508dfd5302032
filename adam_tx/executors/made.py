"""What is made of a leaf or a tile: a tree of arrays, of terms, which are to be reduced, and of samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adam_tx._core.term import How, Sample, Term


class Outline(NamedTuple):
    """Of a tree of arrays, terms and samples where each stands.

    Attributes:
      structure: the tree.
      kinds: what each of its leaves is: a term by how it is reduced.
    """

    structure: Any
    kinds: Sequence[str]

    @property
    def hows(self) -> list[How]:
        """How each of the terms is reduced."""
        return [kind for kind in self.kinds if kind == "sum" or kind == "largest"]

    def joined(self, arrays: Iterable[Any], numbers: Iterable[Any], samples: Iterable[Any] = ()) -> Any:
        """The tree with these arrays, numbers in the places of its terms, and samples."""
        number = iter(numbers)
        of_kind = {"array": iter(arrays), "sample": iter(samples)}
        return jax.tree.unflatten(self.structure, [next(of_kind.get(kind, number)) for kind in self.kinds])


class Apart(NamedTuple):
    """A tree of arrays, terms and samples taken apart.

    Attributes:
      arrays, terms, samples: each kind in order.
      outline: where each stands.
    """

    arrays: list[jax.Array]
    terms: list[Term]
    samples: list[Sample]
    outline: Outline


class Passed(NamedTuple):
    """What one pass makes of some leaves.

    Attributes:
      arrays: what is written of each.
      reduced: a row for each number that is reduced, with one of each leaf.
      samples: those of each.
    """

    arrays: list[list[jax.Array]]
    reduced: jax.Array
    samples: list[list[jax.Array]]

    @classmethod
    def of(cls, each: Sequence[Apart], elements: int) -> Passed:
        """Of leaves that are not cut into tiles.

        Args:
          each: what is made of each.
          elements: how many all leaves have together.
        """
        reduced = [[term.reduced() for term in made.terms] for made in each]
        columns = [jnp.stack(of_leaf) if of_leaf else jnp.zeros(0, jnp.float32) for of_leaf in reduced]
        samples = [[sample.taken(elements) for sample in made.samples] for made in each]
        return cls([made.arrays for made in each], jnp.stack(columns, axis=1), samples)

    @classmethod
    def of_arrays(cls, arrays: list[list[jax.Array]]) -> Passed:
        """Of leaves of which nothing is reduced."""
        return cls(arrays, jnp.zeros((0, len(arrays)), jnp.float32), [[] for _ in arrays])


def apart(made: Any) -> Apart:
    """The arrays, terms and samples of a tree of what is made of a leaf."""
    each, structure = jax.tree.flatten(made)
    terms = [x for x in each if isinstance(x, Term)]
    samples = [x for x in each if isinstance(x, Sample)]
    arrays = [x for x in each if not isinstance(x, Term | Sample)]
    kinds = [x.how if isinstance(x, Term) else "sample" if isinstance(x, Sample) else "array" for x in each]
    return Apart(arrays, terms, samples, Outline(structure, kinds))
