"""The keys of a profile as rows of a table, from the JSON schema that checks profiles."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ptmq.suite.profile import SCHEMA

NAMES = {"backbones": "<backbone>", "methods": "<method>", "variants": "<variant>"}  # what stands for any name
HEADER = ["key", "value", "default", "what it is"]


def rows() -> list[list[str]]:
    """One row a key: its name with those above it, its value, its default, what it is."""
    return list(_rows(yaml.safe_load(Path(SCHEMA).read_text())))


def _rows(schema: Mapping[str, Any], above: str = "") -> Iterator[list[str]]:
    needed = schema.get("required", [])
    for name, part in schema.get("properties", {}).items():
        if above and "properties" in part:  # shared with the level above, where its own keys stand
            part = {key: value for key, value in part.items() if key != "properties"}
        default = "needed" if name in needed else code(part["default"]) if "default" in part else ""
        yield [
            f"`{above}{name}`",
            value(part),
            default,
            part.get("description", "").replace("<profile>", "`<profile>`"),
        ]
        yield from _rows(part, f"{above}{name}.")
        each = part.get("additionalProperties")
        if name in NAMES and isinstance(each, dict):
            yield from _rows(each, f"{above}{name}.{NAMES[name]}.")


def value(part: Mapping[str, Any]) -> str:
    """What a key takes, in a few words."""
    if "enum" in part:
        return ", ".join(map(code, part["enum"]))
    kinds = part.get("type", "any")
    text = " or ".join([kinds] if isinstance(kinds, str) else kinds)
    return f"{text}, at least {part['minimum']}" if "minimum" in part else text


def code(content: Any) -> str:
    """As it is written in YAML."""
    return f"`{str(content).lower() if isinstance(content, bool) else content}`"
