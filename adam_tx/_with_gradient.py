"""`with_gradient`: a link that sees another gradient than the rest of the chain does."""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax

from adam_tx._core import states
from adam_tx._core.leaves import Column, Leaves
from adam_tx._core.provenance import Provenance, Run
from adam_tx._link import Link, implementation_in, optimizer
from adam_tx._wrapper import Wrapper

OfLeaf = Callable[[jax.Array, jax.Array], jax.Array]


@optimizer
def with_gradient(member: optax.GradientTransformation, gradient: OfLeaf | Link) -> WithGradient:
    """Let one link see another gradient than the rest of the chain does.

    With g the raw gradient and u the incoming updates::

        u <- member(u, grad=gradient(g, u))        gradient a function of a leaf of either
        u <- member(u, grad=gradient(g))           gradient a link, which may have a state

    CAME, for instance, averages how far the updates are from their momentum, and Adan
    the square of a gradient to which its change was added.

    Args:
      member: the link that sees it.
      gradient: a function `(grad, updates) -> grad` of one leaf, elementwise, or a link
        that is given the raw gradient as its updates.

    Returns:
      A `Link` with state `(count, member, gradient)`.

    Raises:
      TypeError: a member that is no transformation, or a gradient that is neither function nor link.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.with_gradient(adam_tx.scale_by_rms(0.0), lambda grad, updates: grad - updates)
    >>> tx.update(jnp.array([6.0]), tx.init(jnp.zeros(1)), grad=jnp.array([4.0]))[0]
    Array([3.], dtype=float32)
    """
    return WithGradient(member, gradient)


class WithGradient(Wrapper):
    """A link that sees another gradient."""

    member = "member"
    is_straight = True
    formula = "member(u), which sees another gradient"

    def __init__(self, member: optax.GradientTransformation, gradient: OfLeaf | Link) -> None:
        super().__init__(member, name="with_gradient", reads_grad=True)
        if isinstance(gradient, optax.GradientTransformation):
            self._of_leaf = None
            self.members = {**self.members, "gradient": implementation_in(gradient)}
        elif callable(gradient):
            self._of_leaf = gradient
        else:
            raise TypeError(f"with_gradient: gradient must be a function (grad, updates) or a link, got {gradient!r}.")
        self._type = states.wrapper_type(self.name, self.member, "gradient")

    def init_own(self, leaves: Leaves) -> dict[str, states.State]:
        """The state of the link that makes the gradient."""
        made = None if self._of_leaf else self.members["gradient"].init_leaves(leaves.within("gradient"))
        return {"gradient": made}

    def update_leaves(self, leaves: Leaves, updates: Column, state: states.State) -> tuple[Column, states.State]:
        """Make the gradient, and the link's update with it."""
        fields = self.fields(state)
        raw = leaves.grad or []
        if self._of_leaf:
            grad = self._made(leaves, raw, updates, self._of_leaf)
            made = None
        else:
            grad, made = leaves.run_member("gradient", self.members["gradient"], raw, fields.gradient)
        emitted, inner = self.run_inner(leaves.replace(grad=grad), updates, fields.member)
        return emitted, self.state(inner, gradient=made)

    def _made(self, leaves: Leaves, raw: Column, updates: Column, of_leaf: OfLeaf) -> Column:
        grad = list(raw)
        for i in leaves.present:
            grad[i] = of_leaf(raw[i], updates[i])
            if getattr(grad[i], "shape", None) != updates[i].shape:
                raise ValueError(
                    f"with_gradient: for leaf {leaves.path(i)} the function must make an array of the leaf's shape, "
                    f"{updates[i].shape}, got {getattr(grad[i], 'shape', type(grad[i]).__name__)}."
                )
        return grad

    def trace(self, run: Run, updates: Provenance, grad: Provenance) -> Provenance:
        """The member's, to which the gradient is another."""
        if not self._of_leaf:
            run("gradient", grad, grad)
        return run(self.member, updates, grad.marked("changed"))

    def acts(self, name: str) -> bool:
        """The other member makes the gradient."""
        return name == self.member


for _kept in (["member"], ["member", "gradient"]):
    states.wrapper_type("with_gradient", *_kept)  # so that exported programs find it
