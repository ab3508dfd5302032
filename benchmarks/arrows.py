"""Which parts of a package import which, and the circles among them."""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from source import Function, Module, Package

AT_ONCE, FOR_TYPES, LATE = "", "for types alone", "in a function"


class Arrow(NamedTuple):
    """An import.

    Attributes:
      source: the module that imports.
      target: the module that is imported; a package's own `__init__.py` where a name is taken from there.
      when: "", "for types alone" under TYPE_CHECKING, or "in a function".
    """

    source: str
    target: str
    when: str

    def __str__(self) -> str:
        """As it is listed."""
        return f"{self.source} -> {self.target}" + (f" ({self.when})" if self.when else "")


class Circle(NamedTuple):
    """Parts of which each leads to every other, and the imports among them."""

    members: list[str]
    arrows: list[str]


def arrows(package: Package) -> list[Arrow]:
    """All imports of the package from itself. That a package's `__init__.py` runs ahead of its modules is none."""
    found = [
        Arrow(module.name, target, when)
        for module in package.modules.values()
        for node, when in imports(module)
        for target in targets(package, module, node)
    ]
    return [arrow for arrow in dict.fromkeys(found) if arrow.source != arrow.target]


def imports(module: Module) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """All imports in a module, and when they are made."""
    yield from _imports(module.tree.body, AT_ONCE)


def _imports(nodes: Iterable[ast.AST], when: str) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, when
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from _imports(node.body, FOR_TYPES)
            yield from _imports(node.orelse, when)
        else:
            yield from _imports(ast.iter_child_nodes(node), LATE if isinstance(node, Function) else when)


def targets(package: Package, module: Module, node: ast.Import | ast.ImportFrom) -> set[str]:
    """The modules of the package that an import names."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names} & package.modules.keys()
    origin = module.origin(node)
    named = {f"{origin}.{alias.name}": package.followed(f"{origin}:{alias.name}") for alias in node.names}
    taken = {name if name == found and name in package.modules else origin for name, found in named.items()}
    return taken & package.modules.keys()


def between_rooms(package: Package, found: Iterable[Arrow]) -> list[Arrow]:
    """The arrows from one wing to another; a file that is in no wing is a room of its own."""
    rooms = {name: module.room for name, module in package.modules.items()}
    crossing = [Arrow(rooms[one], rooms[other], when) for one, other, when in found]
    return [arrow for arrow in dict.fromkeys(crossing) if arrow.source != arrow.target]


def circles(found: Iterable[Arrow]) -> list[Circle]:
    """The largest sets of parts that all lead to one another."""
    found = list(found)
    leads_to: dict[str, set[str]] = defaultdict(set)
    for arrow in found:
        leads_to[arrow.source].add(arrow.target)
    reached = {part: _reached(part, leads_to) for part in list(leads_to)}
    groups = {
        tuple(sorted(other for other in reach if part in reached.get(other, ()))) for part, reach in reached.items()
    }
    return [
        Circle(list(group), sorted(str(arrow) for arrow in found if {arrow.source, arrow.target} <= set(group)))
        for group in sorted(groups)
        if group
    ]


def _reached(part: str, leads_to: Mapping[str, set[str]]) -> set[str]:
    """All parts that this one leads to, itself if it is in a circle."""
    reached: set[str] = set()
    waiting = [part]
    while waiting:
        for target in leads_to.get(waiting.pop(), ()):
            if target not in reached:
                reached.add(target)
                waiting.append(target)
    return reached


def hidden_imports(package: Package) -> dict[str, dict[str, int]]:
    """How many imports of the package's own, and of others', are for types alone or in functions."""
    counts = {owner: {FOR_TYPES: 0, LATE: 0} for owner in ("own", "others")}
    for module in package.modules.values():
        for node, when in imports(module):
            if when:
                counts["own" if targets(package, module, node) else "others"][when] += 1
    return counts


def report(package: Package) -> dict[str, Any]:
    """What is written of a package."""
    found = arrows(package)
    crossing = between_rooms(package, found)
    return {
        "arrows": len(found),
        "arrows_between_wings": len({(arrow.source, arrow.target) for arrow in crossing}),
        "circles_of_modules": [circle._asdict() for circle in circles(found)],
        "circles_of_wings": [circle._asdict() for circle in circles(crossing)],
        "hidden_imports": hidden_imports(package),
    }
