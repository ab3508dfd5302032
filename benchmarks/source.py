"""A package as its text says it: modules, what their names stand for, lines and functions. Nothing is imported."""

import ast
import functools
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

Function = ast.FunctionDef | ast.AsyncFunctionDef
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


@dataclass(frozen=True)
class Module:
    """A file of the package.

    Attributes:
      name: as it is imported, such as `adam_tx.links.rms`; that of an `__init__.py` is its folder's.
      file: its path below the package, such as `links/rms.py`.
      text: what is in it.
    """

    name: str
    file: str
    text: str

    @property
    def is_package(self) -> bool:
        """Whether it is the `__init__.py` of a folder."""
        return self.file.endswith("__init__.py")

    @property
    def wing(self) -> str:
        """The folder of the package that it lies in; "" for what lies in none."""
        return self.file.split("/")[0] if "/" in self.file else ""

    @property
    def room(self) -> str:
        """Its wing; a file that lies in none is a room of its own."""
        return self.wing or self.file.removesuffix(".py")

    @functools.cached_property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.text)

    @functools.cached_property
    def definitions(self) -> set[str]:
        """The names that it defines itself."""
        return {name for statement in self.tree.body for name in defined(statement)}

    @functools.cached_property
    def imported(self) -> dict[str, str]:
        """What its imported names stand for: name -> `module:name`, or `module:` for a module."""
        found: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom):
                found |= {alias.asname or alias.name: f"{self.origin(node)}:{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                named = [(alias.asname, alias.name) for alias in node.names]
                found |= {
                    short or name.split(".")[0]: f"{name if short else name.split('.')[0]}:" for short, name in named
                }
        return found

    def origin(self, node: ast.ImportFrom) -> str:
        """The module that `from … import` names, a relative one too."""
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        kept = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*kept, node.module] if node.module else kept)


def defined(statement: ast.stmt) -> list[str]:
    """The names that a statement of a module defines."""
    if isinstance(statement, Function | ast.ClassDef):
        return [statement.name]
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]


class Package:
    """All modules of a package, by name."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self.modules: dict[str, Module] = {}
        for path in sorted(folder.rglob("*.py")):
            file = path.relative_to(folder)
            parts = [folder.name, *file.with_suffix("").parts]
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            self.modules[name] = Module(name, file.as_posix(), path.read_text())

    def followed(self, name: str) -> str:
        """Under which dotted name `module:name` is defined, through all imports between."""
        while True:
            owner, _, path = name.partition(":")
            first, _, rest = path.partition(".")
            dotted = f"{owner}.{path}" if path else owner
            if not path or owner not in self.modules or first in self.modules[owner].definitions:
                return dotted
            inside = f"{owner}.{first}"
            imported = self.modules[owner].imported
            stands_for = imported.get(first, f"{owner}:{first}")
            if first not in imported and first in self.exported(all_of := imported.get("*", "").removesuffix(":*")):
                stands_for = f"{all_of}:{first}"
            if stands_for == f"{owner}:{first}":  # a module of this package, or nothing that the text tells
                if inside not in self.modules:
                    return dotted
                stands_for = f"{inside}:"
            name = stands_for + ("" if stands_for.endswith(":") or not rest else ".") + rest

    def named(self, module: Module, node: ast.expr) -> str:
        """What a name or an attribute in this module stands for; "" for another expression."""
        if isinstance(node, ast.Name):
            return self.followed(f"{module.name}:{node.id}")
        if isinstance(node, ast.Attribute) and (owner := self.named(module, node.value)):
            return self.followed(f"{owner}:{node.attr}") if owner in self.modules else f"{owner}.{node.attr}"
        return ""

    @functools.cached_property
    def classes(self) -> dict[str, tuple[Module, ast.ClassDef]]:
        """Those that stand in a module, by dotted name."""
        every = ((m, node) for m in self.modules.values() for node in m.tree.body if isinstance(node, ast.ClassDef))
        return {f"{module.name}.{node.name}": (module, node) for module, node in every}

    def shadowed(self) -> list[str]:
        """The modules whose name stands for something else in the package that they are in, as a function does."""
        apart = {name: name.rpartition(".") for name in self.modules}
        return [
            name for name, (parent, _, last) in apart.items() if parent and self.followed(f"{parent}:{last}") != name
        ]

    def exported(self, name: str) -> list[str]:
        """What `__all__` of a module lists, with what it takes from another module's."""
        listed: list[str] = []
        if name in self.modules and "__all__" in self.modules[name].imported:
            listed += self.exported(self.modules[name].imported["__all__"].removesuffix(":__all__"))
        for statement in self.modules[name].tree.body if name in self.modules else ():
            if isinstance(statement, ast.Assign) and defined(statement) == ["__all__"]:
                listed += cast(list[str], ast.literal_eval(statement.value))
            elif isinstance(statement, ast.AugAssign) and ast.unparse(statement.target) == "__all__":
                listed += self.exported(self.named(self.modules[name], statement.value).removesuffix(".__all__"))
        return listed

    def public(self) -> dict[str, list[Function]]:
        """What `__all__` gives of functions and of classes' methods, in public modules too: name -> its signatures."""
        return dict(self._public(self.modules[self.name]))

    def _public(self, module: Module) -> Iterator[tuple[str, list[Function]]]:
        for name in self.exported(module.name):
            dotted = self.followed(f"{module.name}:{name}")
            owner, _, defined_as = dotted.rpartition(".")
            if dotted in self.modules:
                yield from self._public(self.modules[dotted])
            elif owner in self.modules:
                yield from _signatures(f"{module.name}.{name}", self.modules[owner].tree.body, defined_as)


def _signatures(label: str, body: list[ast.stmt], wanted: str) -> Iterator[tuple[str, list[Function]]]:
    """Of a function its overloads, or itself; of a class those of its public methods and constructor."""
    functions = [node for node in body if isinstance(node, Function) and node.name == wanted]
    if functions:
        yield label, functions[:-1] or functions
    for owner in body:
        if isinstance(owner, ast.ClassDef) and owner.name == wanted:
            for method in owner.body:
                if isinstance(method, Function) and (method.name == "__init__" or not method.name.startswith("_")):
                    yield f"{label}.{method.name}", [method]


def functions_of(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """All functions in a tree with their qualified names, nested ones and methods too."""
    for child in ast.iter_child_nodes(node):
        inside = prefix
        if isinstance(child, Function | ast.ClassDef):
            inside = f"{prefix}{child.name}."
        if isinstance(child, Function):
            yield inside[:-1], child
        yield from functions_of(child, inside)


def body_lines(function: Function) -> int:
    """The lines of a function's body, from the first statement after its docstring to the last."""
    body = function.body[ast.get_docstring(function) is not None :]
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def lines_of(module: Module) -> tuple[int, int]:
    """How many lines have code, and how many have docstrings; blank ones and comments are neither."""
    blank = {k for k, line in enumerate(module.text.splitlines(), 1) if not line.strip()}
    doc: set[int] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            doc |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type not in NO_CODE:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - doc - blank), len(doc - blank)
