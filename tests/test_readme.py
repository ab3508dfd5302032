"""Every Python block of the README runs, in order and in one namespace per section."""

import pathlib
import re

import family_table
import pytest

from adam_tx import optimizers

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
SECTIONS = {
    title: re.findall(r"```python\n(.*?)```", body, flags=re.DOTALL)
    for title, body in re.findall(r"^##? (.+?)\n(.*?)(?=^##? |\Z)", README, flags=re.DOTALL | re.MULTILINE)
}


@pytest.mark.parametrize("title", [title for title, blocks in SECTIONS.items() if blocks])
def test_the_code_of_a_section_runs(title, standard_promotion):
    namespace = {}
    for block in SECTIONS[title]:
        exec(compile(block, f"README.md: {title}", "exec"), namespace)


def test_the_table_of_the_family_is_what_the_code_says():
    assert family_table.BEGIN + family_table.render() + family_table.END in README


def test_the_table_has_every_optimizer():
    assert set(family_table.CHECKED) == {name for name in dir(optimizers) if callable(getattr(optimizers, name))}


def test_the_readme_has_code_to_run():
    assert sum(map(len, SECTIONS.values())) == README.count("```python") > 0
