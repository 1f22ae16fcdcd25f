"""Links to what is no page of docs/, as they are in the repository: to a page that shows the file, or the results."""

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
LINK = re.compile(r"(?<=\]\()[^)\s#:]+(?=[)#])")
PUBLISHED = Path("results/published")
SPHINX = {".png", ".svg", ".onnx"}  # these it copies by itself
PAGES = {".md", ".ipynb"}


def linked(written: str, page: Path) -> Path | None:
    """The path in the project of a file or a folder that a link leads to; None where it is for Sphinx."""
    path = (page.parent / written).resolve()
    if not path.exists() or not path.is_relative_to(PROJECT) or path.suffix in SPHINX:
        return None
    return None if path.is_relative_to(PROJECT / "docs") and path.suffix in PAGES else path.relative_to(PROJECT)


def address(path: Path) -> str:
    """Where the site has it; workflow/scripts/website.py writes the results."""
    if path.is_relative_to(PUBLISHED):
        return "/".join(["results", *path.relative_to(PUBLISHED).parts[:1], "index.html"])
    return f"files/{path.as_posix()}.html"


def rewrite(app: Sphinx, docname: str, source: list[str]) -> None:
    """Make the links of a page lead to these."""
    page, up = Path(app.env.doc2path(docname)), "../" * docname.count("/")

    def led(match: re.Match) -> str:
        path = linked(match[0], page)
        return f"file-page:{up}{address(path)}" if path else match[0]

    source[0] = LINK.sub(led, source[0])


def pages(app: Sphinx) -> Iterator[tuple[str, dict[str, str], str]]:
    """The pages of all linked files, and of the files in linked folders."""
    found: set[Path] = set()
    for page in map(Path, map(app.env.doc2path, app.env.found_docs)):
        found |= {path for written in LINK.findall(page.read_text()) if (path := linked(written, page))}
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
