"""Imports go one way, as the table in CONTRIBUTING.md says."""

import pathlib
import re

import arrows
from source import Package

import adam_tx

PACKAGE = Package(pathlib.Path(adam_tx.__file__).parent)
CONTRIBUTING = pathlib.Path(__file__).parents[1] / "CONTRIBUTING.md"


def said():
    """What each part imports of the others, by the table."""
    table = CONTRIBUTING.read_text().partition("| part | imports |")[2].partition("\n\n")[0]
    rows = [row.split("|")[1:3] for row in table.splitlines()[2:]]
    return {part: set(re.findall("`(.*?)`", of)) for parts, of in rows for part in re.findall("`(.*?)`", parts)}


def part_of(module):
    return module.split(".")[1] if "." in module else ""


def test_a_part_imports_what_contributing_says_and_no_more():
    found = {name: set() for name in said()}
    for arrow in arrows.arrows(PACKAGE):
        source, target = part_of(arrow.source), part_of(arrow.target)
        if source and source != target:
            found[source].add(target)
    assert found == said()


def test_no_modules_import_each_other_in_a_circle_and_none_is_hidden():
    """Hidden is an import within the package that is made for types alone, or late, in a function."""
    assert not arrows.circles(arrows.arrows(PACKAGE))
    assert set(arrows.hidden_imports(PACKAGE)["own"].values()) == {0}
