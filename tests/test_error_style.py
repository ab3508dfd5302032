"""Every error of the package names its place, says what came and how to mend it, in one style."""

import ast
import re
from pathlib import Path

import pytest

import adam_tx

PACKAGE = Path(adam_tx.__file__).parent
ERRORS = {"ValueError", "TypeError", "ImportError", "FloatingPointError", "AttributeError", "RuntimeError", "KeyError"}


def template(node):
    """The text of a message, with {} for what is filled in; None for what is no text."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=values):
            return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return f"{template(left) or '{}'}{template(right) or '{}'}"
        case ast.BinOp(left=left, op=ast.Mult()):
            return template(left)
    return None


def messages():
    """All texts that errors are made with, by file and line."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            made = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ERRORS and node.args
            if made and (text := template(node.args[0])) is not None:
                found[f"{path.relative_to(PACKAGE)}:{node.lineno}"] = text
    return found


# one that ends in what another error said hands that on
MESSAGES = {place: text for place, text in messages().items() if not text.endswith(": {}")}

# who speaks: "link: argument …", "leaf path …", an argument or what is filled in, at the beginning
PLACE = re.compile(
    r"^(\{\}|[a-zA-Z0-9_.]+(\(\))?: |leaf \{\}|(the dtype of|the link has|updates|mask|tx|config|params"
    r"|a transformation|a mask)\b)"
)
# where nothing came, or not what was needed
NOTHING_CAME = re.compile(r"\b(no|empty|needs|not|otherwise)\b|which is|is the")
# what to do, or what is allowed
WAY_OUT = re.compile(
    r"\b(must|needs?|give|call|put|make|mask|use|say|leave|choose|return|take|pass|write|mend|allowed|may|only|install"
    r"|name|takes|annotate|remove|append|add|there are|so)\b|adam_tx\.|=",
    re.IGNORECASE,
)


@pytest.mark.parametrize("place", MESSAGES)
def test_a_message_names_its_place_and_the_way_out(place):
    text = MESSAGES[place]
    assert PLACE.search(text), text
    assert "{}" in text or NOTHING_CAME.search(text), f"says nothing of what came: {text}"
    assert WAY_OUT.search(text), f"says no way out: {text}"
    assert text.rstrip().endswith((".", "{}", ")")), text


def test_there_are_messages_in_every_part_of_the_package():
    assert len(MESSAGES) > 120
    parts = {re.split("[/:]", place)[0] for place in MESSAGES}
    assert parts >= {"_core", "chain.py", "config.py", "interop", "link.py", "links", "training"}
