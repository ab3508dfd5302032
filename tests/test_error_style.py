"""Every error of the package names its place, says what came and how to mend it, in one style."""

import ast
import re
from pathlib import Path

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
    """Where errors are made, file and line, and with what text."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            made = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ERRORS and node.args
            if made and (text := template(node.args[0])) is not None:
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", text


def begins_with_its_place(text):
    """Who speaks: "link: argument …", "leaf path …", an argument or what is filled in."""
    return re.match(
        r"\{\}|[a-zA-Z0-9_.]+(\(\))?: |leaf \{\}"
        r"|(the dtype of|the link has|updates|mask|tx|config|params|a transformation|a mask)\b",
        text,
    )


def says_what_came(text):
    """What is filled in, or that nothing came, or not what was needed."""
    return "{}" in text or re.search(r"\b(no|empty|needs|not|otherwise)\b|which is|is the", text)


def says_the_way_out(text):
    """What to do, or what is allowed."""
    return re.search(
        r"\b(must|needs?|give|call|put|make|mask|use|say|leave|choose|return|take|pass|write|mend|allowed|may|only"
        r"|install|name|takes|annotate|remove|append|add|there are|so)\b|adam_tx\.|=",
        text,
        re.IGNORECASE,
    )


def ends_as_a_sentence(text):
    return text.rstrip().endswith((".", "{}", ")"))


FORM = begins_with_its_place, says_what_came, says_the_way_out, ends_as_a_sentence
WINGS = {"interop", "links", "state", "storage", "training"}


def test_every_message_names_its_place_what_came_and_the_way_out():
    # one that ends in what another error said hands that on
    said = [(place, text) for place, text in messages() if not text.endswith(": {}")]
    assert len(said) > 120
    assert {place.split("/")[0] for place, _ in said} >= WINGS
    lacking = [f"{place}, not {rule.__name__}: {text}" for place, text in said for rule in FORM if not rule(text)]
    assert not lacking, "\n".join(lacking)
