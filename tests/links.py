"""What an HTML page names: the addresses that it leads to, and the places in it that others may lead to."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote


class Named(HTMLParser):
    """addresses: of links, images and scripts, without data in place of an address · places: the ids of the page."""

    def __init__(self, page: Path):
        super().__init__()
        self.addresses: list[str] = []
        self.places: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag, attrs):
        given = {name: value for name, value in attrs if value}
        self.places |= {given["id"]} if "id" in given else set()
        found = [unquote(given[name]) for name in ("href", "src") if name in given]
        self.addresses += [address for address in found if not address.startswith("data:")]
