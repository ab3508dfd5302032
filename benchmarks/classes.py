"""Two habits of a package that its text shows: `Any` in signatures, and tests for concrete classes."""

import ast
import functools
from collections.abc import Iterator
from typing import Any

from source import Function, Module, Package, functions_of

ANY = "typing.Any"
WITH_ANY = ("with_any", "written_out")
BASES = {
    "links": ({"begin", "step"}, {"init_leaves", "update_leaves"}),
    "storages": ({"encode", "decode"},),
}
"""By which methods the base of links is known, and that of storages: one of these sets."""


class Signatures:
    """Which signatures have `Any` in them, or a name of the package that stands for a type with it."""

    def __init__(self, package: Package) -> None:
        self._package = package
        self.aliases: dict[str, str] = {}
        size = -1
        while size < len(self.aliases):  # an alias may be of another one
            size = len(self.aliases)
            for module in package.modules.values():
                self.aliases |= self._aliases_in(module)

    def _aliases_in(self, module: Module) -> dict[str, str]:
        found: dict[str, str] = {}
        for statement in module.tree.body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    pass
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                    pass
                case _:
                    continue
            of_types = isinstance(value, ast.Name | ast.Attribute | ast.Subscript | ast.BinOp)
            if of_types and self.mentions_any(module, value):
                found[f"{module.name}.{name}"] = ast.unparse(value)
        return found

    def mentions_any(self, module: Module, annotation: ast.expr, *, written_out: bool = False) -> bool:
        """Whether an annotation has `Any` in it, or, if not only what is written out counts, a name for it."""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode="eval").body
        wanted = {ANY} if written_out else {ANY, *self.aliases}
        names = (node for node in ast.walk(annotation) if isinstance(node, ast.Name | ast.Attribute))
        return any(self._package.named(module, node) in wanted for node in names)

    def with_any(self, module: Module, function: Function, *, written_out: bool = False) -> bool:
        """Whether a signature has it, in a parameter or in what is returned."""
        given = function.args
        parameters = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        annotations = [function.returns, *(parameter.annotation for parameter in parameters if parameter)]
        return any(
            self.mentions_any(module, annotation, written_out=written_out) for annotation in annotations if annotation
        )

    def report(self) -> dict[str, Any]:
        """How many signatures have it, and which public ones."""
        package = self._package
        every = [(module, function) for module in package.modules.values() for _, function in functions_of(module.tree)]
        owners = {id(function): module for module, function in every}
        public = package.public()
        return {
            "functions": len(every),
            "with_any": sum(self.with_any(*one) for one in every),
            "written_out": sum(self.with_any(*one, written_out=True) for one in every),
            "aliases": self.aliases,
            "public": len(public),
            "public_with_any": [
                name for name, found in public.items() if any(self.with_any(owners[id(f)], f) for f in found)
            ],
        }


def bases(package: Package, node: tuple[Module, ast.ClassDef]) -> list[str]:
    """The bases of a class, by dotted name."""
    module, definition = node
    return [package.named(module, base) for base in definition.bases]


def lineage(package: Package, name: str) -> set[str]:
    """A class of the package and all of its ancestors in the package."""
    if name not in package.classes:
        return set()
    return {name}.union(*(lineage(package, base) for base in bases(package, package.classes[name])))


def roots(package: Package, *methods: set[str]) -> set[str]:
    """The classes that define one of these sets of methods, and have no ancestor that does."""
    defining = {
        name
        for name, (_, node) in package.classes.items()
        if any(wanted <= {part.name for part in node.body if isinstance(part, Function)} for wanted in methods)
    }
    return {name for name in defining if not (lineage(package, name) - {name}) & defining}


def concrete(package: Package) -> dict[str, str]:
    """The classes that derive from the base of links or of storages, without the bases themselves: name -> of which."""
    found: dict[str, str] = {}
    for kind, methods in BASES.items():
        base = roots(package, *methods)
        found |= {name: kind for name in package.classes if name not in base and lineage(package, name) & base}
    return found


def class_tests(package: Package) -> dict[str, list[str]]:
    """File -> the tests for concrete classes in it: `isinstance`, `issubclass`, `type(x) is`, `case Class()`."""
    known = concrete(package)
    found: dict[str, list[str]] = {}
    for module in package.modules.values():
        tested = functools.partial(_named_in, package, module)
        lines = [
            f"{line}: {', '.join(sorted(name.rsplit('.', 1)[-1] for name in names))}"
            for line, expression in sorted(_tests(module.tree), key=lambda test: test[0])
            if (names := tested(expression) & known.keys())
        ]
        if lines:
            found[module.file] = lines
    return found


def _tests(tree: ast.AST) -> Iterator[tuple[int, ast.expr]]:
    """The line of every test for a class, and the expression of what is tested for."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, expression]):
                yield node.lineno, expression
            case ast.Compare(left=ast.Call(func=ast.Name(id="type"), args=[_]), comparators=[expression]):
                yield node.lineno, expression
            case ast.MatchClass(cls=expression):
                yield expression.lineno, expression
            case _:
                pass


def _named_in(package: Package, module: Module, expression: ast.expr) -> set[str]:
    """The classes of a tuple or a union."""
    if isinstance(expression, ast.Tuple | ast.List | ast.Set):
        return set[str]().union(*(_named_in(package, module, part) for part in expression.elts))
    if isinstance(expression, ast.BinOp):
        return _named_in(package, module, expression.left) | _named_in(package, module, expression.right)
    return {package.named(module, expression)}
