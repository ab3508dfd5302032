"""What `benchmarks/structure.py` counts, in small made-up packages."""

import io
import json
import pathlib
import re
import sys
import textwrap

import arrows
import calls
import classes
import pytest
import structure
from rich.console import Console
from source import Package, body_lines, functions_of, lines_of


@pytest.fixture
def package(tmp_path):
    """Makes a package of files with these texts."""

    def make(**files):
        for name, text in {"__init__": "", **files}.items():
            path = tmp_path / "made" / f"{name.replace('__in__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        return Package(tmp_path / "made")

    return make


def members(found):
    return [circle.members for circle in found]


def test_a_circle_of_modules_is_found_and_how_it_is_hidden(package):
    made = package(
        a="from made.b import x",
        b="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from made import c",
        c="def f():\n    import made.a\n    import json",
        d="from . import a",
    )
    (circle,) = arrows.circles(arrows.arrows(made))
    assert circle.members == ["made.a", "made.b", "made.c"]
    assert circle.arrows == [
        "made.a -> made.b",
        "made.b -> made.c (for types alone)",
        "made.c -> made.a (in a function)",
    ]
    assert arrows.hidden_imports(made) == {
        "own": {arrows.FOR_TYPES: 1, arrows.LATE: 1},
        "others": {arrows.FOR_TYPES: 0, arrows.LATE: 1},
    }


def test_a_circle_of_wings_may_have_no_circle_of_modules(package):
    made = package(
        left__in__a="from made.right.a import x", right__in__a="x = 1", right__in__b="from made.left.a import x"
    )
    found = arrows.arrows(made)
    assert arrows.circles(found) == []
    assert members(arrows.circles(arrows.between_rooms(made, found))) == [["left", "right"]]


def test_a_name_that_a_package_hands_on_is_an_import_of_the_package_not_of_a_module_of_that_name(package):
    made = package(
        part__in____init__="from made.part.thing import thing",
        part__in__thing="def thing(): ...",
        one="from made.part import thing",
        other="from made.part.thing import thing",
    )
    targets = {arrow.source: arrow.target for arrow in arrows.arrows(made)}
    assert targets == {"made.part": "made.part.thing", "made.one": "made.part", "made.other": "made.part.thing"}
    assert made.shadowed() == ["made.part.thing"]


def test_lines_are_code_or_docstrings_or_neither(package):
    text = '''\
    """Above.

    Below.
    """
    # a comment
    X = """a

    string"""
    """What X is."""

    def f(
        a,
    ):
        """Short."""
        return a  # and more
    '''
    module = package(a=text).modules["made.a"]
    assert lines_of(module) == (6, 5)
    assert [(name, body_lines(node)) for name, node in functions_of(module.tree)] == [("f", 1)]


def test_tuple_assignments_are_those_of_a_tuple_to_as_many_names(package):
    assert structure.tuple_assignments(package(a="a, b = 1, 2\nself.x, y = a, b\n")) == 2
    assert structure.tuple_assignments(package(a="a, b = f()\na = 1, 2\n[a] = [1]\na = b = 1\n")) == 0


def test_any_counts_by_its_name_and_by_those_that_stand_for_it(package):
    made = package(
        __init__="""
        from made.a import public, seen, Thing
        __all__ = ["public", "seen", "Thing"]
        """,
        types="from typing import Any\nState = Any\nColumn = list[State]\nNumber = int | float\n",
        a="""
        import typing
        from made import types
        from made.types import Column, Number

        def public(x: Column) -> None:
            def nested(*args: "typing.Any"): ...

        def seen(x: Number) -> int: ...

        class Thing:
            def method(self, x: types.State) -> None: ...
            def _hidden(self) -> typing.Any: ...
        """,
    )
    report = classes.Signatures(made).report()
    assert report["aliases"] == {"made.types.State": "Any", "made.types.Column": "list[State]"}
    assert (report["functions"], report["with_any"], report["written_out"]) == (5, 4, 2)
    assert (report["public"], report["public_with_any"]) == (3, ["made.public", "made.Thing.method"])


def test_tests_for_concrete_classes_are_found_by_what_the_names_stand_for(package):
    made = package(
        base="""
        class Base:
            def begin(self): ...
            def step(self): ...

        class Storage:
            def encode(self): ...
            def decode(self): ...
        """,
        links="""
        from made.base import Base, Storage

        class One(Base): ...
        class Two(One):
            def begin(self): ...
            def step(self): ...
        class Kept(Storage): ...
        """,
        tests="""
        from made import links as l
        from made.base import Base
        from made.links import Two

        isinstance(x, Base), isinstance(x, int)
        isinstance(x, (int, l.One))
        issubclass(x, int | Two)
        type(x) is l.Kept
        match x:
            case Two():
                pass
        """,
    )
    assert classes.concrete(made) == {
        "made.links.One": "links",
        "made.links.Two": "links",
        "made.links.Kept": "storages",
    }
    assert classes.class_tests(made) == {"tests.py": ["7: One", "8: Two", "9: Kept", "11: Two"]}


def traced(work):
    return calls.calls(work, pathlib.Path(__file__).parent)


def test_a_generator_is_one_call_and_a_comprehension_none():
    def one():
        return 1

    def generator():
        yield one()
        yield one()

    assert traced(lambda: [one() for _ in generator()])[:4] == (6, 3, 1, 0)


def test_an_adam_of_ours_and_of_optax_is_traced(standard_promotion):
    found = calls.measure()
    assert found["adam_tx"].keys() - found["optax"].keys() == {"export_state", "import_state"}
    for library in ("adam_tx", "optax"):
        for line in found[library].values():
            assert line["frames"] >= line["calls"] >= line["functions"] >= line["files"] > 1
    assert sys.getprofile() is None


def test_what_is_found_of_this_package_is_printed_and_can_be_written():
    line = calls.Calls(5, 4, 3, 2, 6)._asdict()
    found = structure.read(structure.HERE)
    found |= {"commit": "abc", "calls": {name: {"update": line} for name in ("adam_tx", "optax")}}
    assert json.loads(json.dumps(found)) == found
    console = Console(record=True, width=200, file=io.StringIO())
    structure.show(console, found)
    text = console.export_text()
    for what, count in structure.figures(found):
        assert re.search(rf"{re.escape(what)} +│ +{re.escape(str(count))} ", text), what
    for wing, sizes in found["wings"].items():
        assert sizes["code"] > 0, wing
