"""How the package is built: what `tests/test_arrows.py` does not say of imports, and how large its pieces are."""

import ast

import arrows
import classes
import structure
from test_arrows import PACKAGE, part_of, said

MOST_LINES = 400
OPTIONAL = {
    "h5py",
    "matplotlib",
    "keras",
    "llvmlite",
    "torch",
}  # may be missing, so imported late
SLOW = {"jax.experimental.pallas", "jax.experimental.pallas.tpu"}  # few have a use for it
KNOWS_CLASSES = ("describe/visit.py", "_core/")


def test_a_part_imports_only_what_stands_above_it_in_the_table():
    order = {part: place for place, part in enumerate(said())}
    crossing = [(part_of(one), part_of(other)) for one, other, _ in arrows.arrows(PACKAGE)]
    upward = [pair for pair in crossing if "" not in pair and order[pair[0]] < order[pair[1]]]
    assert not upward
    assert not arrows.circles(arrows.between_rooms(PACKAGE, arrows.arrows(PACKAGE)))


def test_only_what_may_be_missing_or_is_slow_is_imported_late():
    late = [
        f"{module.file}:{node.lineno}"
        for module in PACKAGE.modules.values()
        for node, when in arrows.imports(module)
        if when
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if name.partition(".")[0] not in OPTIONAL and name not in SLOW
    ]
    assert not late


def test_only_the_visitor_and_the_core_ask_for_the_class_of_a_link():
    """All others ask for a fact, or call a method, so that a class which is added behaves as they expect."""
    found = classes.class_tests(PACKAGE)
    assert "describe/visit.py" in found
    assert not {file: tests for file, tests in found.items() if not file.startswith(KNOWS_CLASSES)}


def test_no_module_is_hidden_by_a_function_of_its_name():
    assert not PACKAGE.shadowed()


def test_a_file_and_a_function_are_short():
    longest = {module.file: len(module.text.splitlines()) for module in PACKAGE.modules.values()}
    assert not {file: lines for file, lines in longest.items() if lines > MOST_LINES}
    assert not structure.sizes(PACKAGE)["long_functions"]
