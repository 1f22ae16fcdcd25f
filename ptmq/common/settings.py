"""Settings are frozen dataclasses that check themselves when they are made; here they are read from plain values."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from ptmq.common.errors import InputError, one_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")


def from_dict(cls: type[Settings], values: dict[str, Any], where: str) -> Settings:
    """Make a settings dataclass from plain values; `where` names them in error messages.

    Raises InputError for an unknown name or a value of another type than the default's.
    """
    known = {field.name: field for field in fields(cls)}
    converted = {}
    for name, value in values.items():
        one_of(f"{where}: setting", name, known)
        default = known[name].default
        if isinstance(default, float) and not isinstance(value, bool):
            value = _as_float(value)  # YAML reads 1e-3 as text
        if isinstance(default, str) and isinstance(value, int):
            value = str(value)  # `mfm: 3` means case '3'
        if isinstance(default, tuple) and isinstance(value, list | tuple):
            value = tuple(_as_float(v) for v in value)
        items = value if isinstance(value, tuple) else ()
        if type(value) is not type(default) or not all(isinstance(item, float) for item in items):
            kind = type(default).__name__
            raise InputError(f"{where}: setting {name!r} must be {kind}, like its default {default!r}. Got {value!r}.")
        converted[name] = value
    try:
        return cls(**converted)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _as_float(value: Any) -> Any:
    """A number as a float, also from text; anything else as it is."""
    try:
        return float(value) if isinstance(value, int | str) else value
    except ValueError:
        return value
