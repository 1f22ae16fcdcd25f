"""Docstrings of this project as Sphinx reads them: what a line `name: what it is` says becomes an item of a list."""

import re

from sphinx.application import Sphinx

BAR = re.compile(r"`[^`]*`|\|")  # |x| is no reference, but code stays as it is
ITEM = re.compile(r"(?:^|\n| · )([\w, ]{1,40}): ")


def items(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Rewrite the lines of a docstring, in place; that of a module is prose."""
    if what == "module":
        return
    text = BAR.sub(lambda match: "\\|" if match[0] == "|" else match[0], "\n".join(lines))
    summary, *paragraphs = text.strip().split("\n\n")
    lines[:] = "\n\n".join([summary, *map(itemised, paragraphs)]).split("\n")


def itemised(paragraph: str) -> str:
    """A paragraph, with its items below it."""
    head, *rest = ITEM.split(paragraph)
    told = [f"- **{name}**: {' '.join(text.split())}" for name, text in zip(rest[::2], rest[1::2], strict=True)]
    return "\n\n".join(filter(None, [head.strip(), "\n".join(told)]))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", items)
    return {"parallel_read_safe": True}
