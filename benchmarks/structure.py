"""How the package is built, in numbers: `python benchmarks/structure.py [--root CHECKOUT] [--out FILE]`.

Lines by wing, the longest files and functions, `Any` in signatures, tuple assignments,
circles of imports, tests for concrete classes, and through how many calls an Adam goes.
All but the calls is read off the text, so that every checkout is measured alike.
"""

import argparse
import ast
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import arrows
import classes
from rich.console import Console
from rich.table import Table
from smallest import add_smallest
from source import Package, body_lines, functions_of, lines_of

HERE = pathlib.Path(__file__).parents[1]
NAME = "adam_tx"
LONG_BODY = 40
TOP = "top-level files"


def sizes(package: Package) -> dict[str, Any]:
    """Lines by wing, the largest file, and the functions whose body is long."""
    wings: dict[str, dict[str, int]] = {}
    bodies: dict[str, int] = {}
    files: dict[str, int] = {}
    for module in package.modules.values():
        code, doc = lines_of(module)
        wing = wings.setdefault(module.wing or TOP, {"files": 0, "lines": 0, "code": 0, "doc": 0})
        files[module.file] = len(module.text.splitlines())
        for key, more in {"files": 1, "lines": files[module.file], "code": code, "doc": doc}.items():
            wing[key] += more
        bodies |= {f"{module.file}: {name}": body_lines(function) for name, function in functions_of(module.tree)}
    largest = max(files, key=lambda file: files[file])
    return {
        "wings": dict(sorted(wings.items(), key=lambda item: -item[1]["code"])),
        "package": {key: sum(wing[key] for wing in wings.values()) for key in ("files", "lines", "code", "doc")},
        "largest_file": {largest: files[largest]},
        "long_functions": {name: size for name, size in bodies.items() if size > LONG_BODY},
    }


def is_tuple_assignment(node: ast.AST) -> bool:
    """Whether several things are assigned in one statement, as in `a, b = x, y`."""
    match node:
        case ast.Assign(targets=[*_, ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
            return len(targets) == len(values)
        case _:
            return False


def tuple_assignments(package: Package) -> int:
    """How many there are."""
    return sum(is_tuple_assignment(node) for module in package.modules.values() for node in ast.walk(module.tree))


def read(root: pathlib.Path, name: str = NAME) -> dict[str, Any]:
    """What the text of a checkout's package says."""
    package = Package(root / name)
    found = sizes(package)
    packed = tuple_assignments(package)
    tested = classes.class_tests(package)
    return found | {
        "signatures": classes.Signatures(package).report(),
        "tuple_assignments": packed,
        "tuple_assignments_per_1000": round(1000 * packed / max(1, found["package"]["code"]), 1),
        "imports": arrows.report(package),
        "class_tests": sum(map(len, tested.values())),
        "class_tests_by_file": tested,
        "shadowed_modules": package.shadowed(),
    }


def traced(root: pathlib.Path) -> dict[str, Any]:
    """Through what an Adam of this checkout goes, in a process of its own."""
    script = pathlib.Path(__file__).with_name("calls.py")
    environment = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"calls.py failed for {root}:\n{done.stderr}")
    found = json.loads(done.stdout)
    if pathlib.Path(found.pop("from")) != root / NAME:
        raise RuntimeError(f"calls.py traced another adam_tx than that of {root}.")
    return found


def commit(root: pathlib.Path) -> str:
    """That of the checkout, with a + where files differ from it."""
    git = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Names to the left, numbers to the right."""
    made = Table(title=title)
    for k, name in enumerate(header):
        made.add_column(name, justify="right" if k else "left")
    for row in rows:
        made.add_row(*map(str, row))
    return made


def show(console: Console, found: Mapping[str, Any]) -> None:
    """Print what was found."""
    calls = found["calls"]
    keys = list(calls[NAME]["update"])
    rows = [(f"{of} {name}", *line.values()) for of in (NAME, "optax") for name, line in calls[of].items()]
    console.print(table(f"Calls of an Adam of one leaf, at {found['commit']}", ["", *keys], rows))
    wings = found["wings"] | {"package": found["package"]}
    rows = [(name, *wing.values()) for name, wing in wings.items()]
    console.print(table("Lines", ["", "files", "lines", "code", "doc"], rows))
    console.print(table("In numbers", ["", ""], figures(found)))
    for key in ("circles_of_modules", "circles_of_wings"):
        for circle in found["imports"][key]:
            console.print(
                f"\n{key}: {', '.join(circle['members'])}",
                *circle["arrows"],
                sep="\n  ",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
    for title, listed in lists(found).items():
        console.print(f"\n{title}:", *(listed or ["none"]), sep="\n  ", highlight=False, markup=False, soft_wrap=True)


def figures(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The single numbers, with their names."""
    signatures, imports = found["signatures"], found["imports"]
    ((largest, lines),) = found["largest_file"].items()
    total = signatures["functions"]
    with_any = {key: f"{signatures[key]} of {total}, {100 * signatures[key] / total:.1f} %" for key in classes.WITH_ANY}
    return [
        (f"largest file, {largest}", lines),
        (f"functions whose body has more than {LONG_BODY} lines", len(found["long_functions"])),
        ("signatures with Any, or a name that stands for it", with_any["with_any"]),
        ("signatures with Any written out", with_any["written_out"]),
        ("public ones", f"{len(signatures['public_with_any'])} of {signatures['public']}"),
        ("tuple assignments per 1000 lines of code", found["tuple_assignments_per_1000"]),
        ("tests for concrete classes", found["class_tests"]),
        ("modules that something else of their name hides", len(found["shadowed_modules"])),
        ("imports between modules", imports["arrows"]),
        ("imports between wings", imports["arrows_between_wings"]),
        ("circles of modules", len(imports["circles_of_modules"])),
        ("circles of wings", len(imports["circles_of_wings"])),
        *((f"own imports {when}", count) for when, count in imports["hidden_imports"]["own"].items()),
        *((f"others' imports {when}", count) for when, count in imports["hidden_imports"]["others"].items()),
    ]


def lists(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """What is worth seeing by name."""
    signatures = found["signatures"]
    return {
        "names that stand for Any": [f"{name} = {value}" for name, value in signatures["aliases"].items()],
        "public signatures with Any": signatures["public_with_any"],
        "tests for concrete classes": [
            f"{file}:{line}" for file, lines in found["class_tests_by_file"].items() for line in lines
        ],
        "long functions": [f"{name}, {size} lines" for name, size in found["long_functions"].items()],
        "hidden modules": found["shadowed_modules"],
    }


def main(arguments: Sequence[str]) -> None:
    """Measure a checkout, print it and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, default=HERE, help="the checkout to measure, by default this one")
    parser.add_argument("--out", type=pathlib.Path, help="a JSON file for the numbers")
    parser.add_argument("--label", help="add them to that file under this name, beside what is there")
    add_smallest(parser)
    given = parser.parse_args(arguments)
    root = given.root.resolve()
    found = {"commit": commit(root), "calls": traced(root), **read(root)}
    show(Console(), found)
    if given.out:
        before = json.loads(given.out.read_text()) if given.label and given.out.exists() else {}
        record = before | {given.label: found} if given.label else found
        given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
