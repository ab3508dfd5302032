"""Jaxprs taken apart, for executors that run a leaf's step by other means than XLA.

inlined(function, …)  one list of equations: no calls in it, and nothing that no output depends on
split(equations, …)   those that follow from the scalars of a state alone, and the rest
run(equations, …)     the equations run one by one by JAX
explicit(function, …) the function, to which all that it has from outside is given
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core

Atom = Any
"""A variable of a jaxpr, or a literal. JAX has no public types that say what these have."""
Equation = Any
"""An equation of a jaxpr."""

# What calls another jaxpr, and under which name it has that.
_CALLS = {
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat2": "jaxpr",
}
_IDENTITIES = ("optimization_barrier", "stop_gradient")


class Equations(NamedTuple):
    """A function as equations.

    Attributes:
      inputs: the variables of its arguments.
      constants: what it has from outside, by variable.
      each: the equations in the order in which they run.
      outputs: what it returns.
    """

    inputs: list[Any]
    constants: dict[Any, Any]
    each: list[Equation]
    outputs: list[Atom]


def inlined(function: Callable[..., Any], *arguments: Any) -> Equations:
    """The equations of a function of arrays, or of descriptions of them; its inputs and outputs flattened."""
    called = jax.make_jaxpr(function)(*arguments)

    def without_calls(*given: Any) -> list[Any]:
        return _evaluated(called.jaxpr, called.consts, given)

    flat = jax.make_jaxpr(without_calls)(*jax.tree.leaves(arguments))
    needed = {atom for atom in flat.jaxpr.outvars if is_variable(atom)}
    each: list[Equation] = []
    for equation in reversed(flat.jaxpr.eqns):
        if needed.intersection(equation.outvars):
            each.insert(0, equation)
            needed.update(variables(equation))
    constants = dict(zip(flat.jaxpr.constvars, flat.consts, strict=True))
    return Equations(list(flat.jaxpr.invars), constants, each, list(flat.jaxpr.outvars))


def split(equations: Equations, scalars: Sequence[Any], size: int) -> tuple[list[Equation], list[Equation], list[Any]]:
    """The equations that follow from some inputs alone, the rest, and what the rest reads of the first.

    An array of this size or more, such as zeros, stays where it is read.
    """
    known = {*scalars, *equations.constants}
    ahead: list[Equation] = []
    rest: list[Equation] = []
    for equation in equations.each:
        of_scalars = all(variable in known for variable in variables(equation))
        if of_scalars and all(out.aval.size < size for out in equation.outvars):
            ahead.append(equation)
            known.update(equation.outvars)
        else:
            rest.append(equation)
    read = dict.fromkeys(variable for equation in rest for variable in variables(equation) if variable in known)
    return ahead, rest, list(read)


def run(equations: Sequence[Equation], values: Mapping[Any, Any]) -> dict[Any, Any]:
    """What is known once the equations have run, by variable."""
    known = dict(values)
    for equation in equations:
        given = [known[atom] if is_variable(atom) else atom.val for atom in equation.invars]
        out = equation.primitive.bind(*given, **equation.params)
        known.update(zip(equation.outvars, out if equation.primitive.multiple_results else [out], strict=True))
    return known


def explicit(function: Callable[..., Any], *arguments: Any) -> tuple[Callable[..., Any], Sequence[Any]]:
    """The same function with what it has from outside as its first argument, and that."""
    called, described = jax.make_jaxpr(function, return_shape=True)(*arguments)
    structure = jax.tree.structure(described)

    def evaluate(constants: Sequence[Any], *arguments: Any) -> Any:
        return core.jaxpr_as_fun(called.replace(consts=list(constants)))(*jax.tree.leaves(arguments))

    # traced once more, because JAX keeps what is returned here, and a jaxpr may keep its constants
    free = jax.make_jaxpr(evaluate)(called.consts, *arguments)

    def of_constants(constants: Sequence[Any], *arguments: Any) -> Any:
        return jax.tree.unflatten(structure, core.jaxpr_as_fun(free)(*constants, *jax.tree.leaves(arguments)))

    return of_constants, called.consts


def variables(equation: Equation) -> list[Any]:
    """What an equation reads, but for literals."""
    return [atom for atom in equation.invars if is_variable(atom)]


def is_variable(atom: Atom) -> bool:
    """Whether it is no literal."""
    return not isinstance(atom, core.Literal)


def _evaluated(jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """What a jaxpr returns, with all that it calls run equation by equation."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))
    for equation in jaxpr.eqns:
        given = [known[atom] if is_variable(atom) else atom.val for atom in equation.invars]
        name = equation.primitive.name
        if name in _CALLS:
            inner = equation.params[_CALLS[name]]
            out = _evaluated(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), given)
        elif name in _IDENTITIES:
            out = given
        else:
            out = equation.primitive.bind(*given, **equation.params)
            out = out if equation.primitive.multiple_results else [out]
        known.update(zip(equation.outvars, out, strict=True))
    return [known[atom] if is_variable(atom) else atom.val for atom in jaxpr.outvars]
