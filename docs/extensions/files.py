"""Links that lead out of docs/, as they do in the repository: to a page that shows the file, or to the results."""

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import guess_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx.application import Sphinx

PROJECT = Path(__file__).resolve().parent.parent.parent
LINK = re.compile(r"\]\(((?:\.\./)+[^)\s#]+)")
PUBLISHED = Path("results/published")
DRAWN = {".png", ".svg"}  # these Sphinx copies


def linked(text: str, page: Path) -> Iterator[tuple[str, Path]]:
    """Every link of a page that leads out of docs/: as it is written, and the path in the project."""
    for match in LINK.finditer(text):
        path = (page.parent / match[1]).resolve()
        if path.suffix not in DRAWN and path.exists() and not path.is_relative_to(PROJECT / "docs"):
            yield match[1], path.relative_to(PROJECT)


def address(path: Path) -> str:
    """Where the site has it; workflow/scripts/website.py writes the results."""
    if path.is_relative_to(PUBLISHED):
        return "/".join(["results", *path.relative_to(PUBLISHED).parts[:1], "index.html"])
    return f"files/{path.as_posix()}.html"


def rewrite(app: Sphinx, docname: str, source: list[str]) -> None:
    """Make the links of a page lead to these."""
    up = "../" * docname.count("/")
    for written, path in set(linked(source[0], Path(app.env.doc2path(docname)))):
        source[0] = source[0].replace(f"]({written}", f"](file-page:{up}{address(path)}")


def pages(app: Sphinx) -> Iterator[tuple[str, dict[str, str], str]]:
    """The pages of all linked files, and of the files in linked folders."""
    texts = {page: page.read_text() for page in map(Path, map(app.env.doc2path, app.env.found_docs))}
    found = {path for page, text in texts.items() for _, path in linked(text, page)}
    found = {path for path in found if not path.is_relative_to(PUBLISHED)}
    for folder in [path for path in found if (PROJECT / path).is_dir()]:
        found |= {each.relative_to(PROJECT) for each in (PROJECT / folder).iterdir() if each.is_file()}
    for path in sorted(found):
        body = listing(path) if (PROJECT / path).is_dir() else shown(path)
        yield address(path).removesuffix(".html"), {"title": path.as_posix(), "body": body}, "page.html"


def listing(folder: Path) -> str:
    """The files of a folder."""
    names = sorted(each.name for each in (PROJECT / folder).iterdir() if each.is_file())
    rows = "".join(f'<li><a href="{folder.name}/{escape(name)}.html">{escape(name)}</a></li>' for name in names)
    return f"<h1>{escape(folder.as_posix())}</h1><ul>{rows}</ul>"


def shown(path: Path) -> str:
    """A file as it is, in colours where its language is known."""
    text = (PROJECT / path).read_text()
    try:
        body = highlight(text, guess_lexer_for_filename(path.name, text), HtmlFormatter())
    except ClassNotFound:
        body = f"<pre>{escape(text)}</pre>"
    return f"<h1>{escape(path.as_posix())}</h1>{body}"


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", rewrite)
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": True}
