"""Pages of Markdown whose code runs, and prints what the page says that it prints."""

import re
from typing import NamedTuple

BLOCK = re.compile(r"```(\w+)\n(.*?)```", flags=re.DOTALL)
CLAIM = re.compile(r"print\(.*\) +# (.+)$", flags=re.MULTILINE)


class Part(NamedTuple):
    """A section's own text, or that of a subsection, which goes on from the section's code.

    Attributes:
      title: without the hashes.
      before: the code of the section that it belongs to.
      blocks: pairs of language and text, in order.
    """

    title: str
    before: list[str]
    blocks: list[tuple[str, str]]

    @property
    def code(self):
        return [text for language, text in self.blocks if language == "python"]

    def claimed(self):
        """What the code prints, as its comments and the text after a block say."""
        said = []
        for (language, text), following in zip(self.blocks, [*self.blocks[1:], ("", "")], strict=True):
            if language == "python":
                prints = "print(" in text or "migrate(" in text
                said += [following[1]] if following[0] == "text" and prints else CLAIM.findall(text)
        return said


def parts_of(page, inside="###"):
    """Every part of a page that has code.

    Args:
      page: its text.
      inside: the hashes of titles whose parts go on from the code of the one above.
    """
    found, lead = [], []
    for level, title, text in re.findall(r"^(##?#?) (.+?)\n(.*?)(?=^##?#? |\Z)", _outside_of_code(page), re.S | re.M):
        part = Part(title, lead if level == inside else [], BLOCK.findall(text.replace("\0", "")))
        if level != inside:
            lead = part.code
        if part.code:
            found.append(part)
    return {part.title: part for part in found}


def _outside_of_code(text):
    """The text with the hashes that start a line of code hidden from the search for titles."""
    return BLOCK.sub(lambda block: block.group(0).replace("\n#", "\n\0#"), text)


def play(part, found, capsys):
    """Run the code of a part in a namespace, and compare what it prints with what is said."""
    capsys.readouterr()
    for block in part.code:
        exec(compile(block, f"page: {part.title}", "exec"), found)
    printed, said = capsys.readouterr().out, "\n".join(part.claimed())
    message = f"{part.title} prints\n{printed}\nand the page says\n{said}"
    assert "".join(said.split()) == "".join(printed.split()), message


def prepared(part):
    """The namespace that the code of the section above has left behind."""
    found = {"__name__": "page"}
    for block in part.before:
        exec(compile(block, f"page: above {part.title}", "exec"), found)
    return found
