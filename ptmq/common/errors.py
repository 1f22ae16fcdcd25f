"""The one exception a user's mistake raises."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class InputError(ValueError):
    """Wrong input, told in one sentence: the field, the rule, the value, the way out."""


def one_of(field: str, value: str, known: Iterable[str]) -> str:
    """Return `value` when it is among the `known` names, else raise InputError with the nearest name."""
    names = sorted(known)
    if value in names:
        return value
    near = get_close_matches(str(value), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise InputError(f"{field} {value!r} is unknown.{hint} Known: {', '.join(names)}.")


def require(condition: bool, name: str, rule: str, value: Any) -> None:
    """Raise InputError 'name must be rule. Got value.' unless the condition holds."""
    if not condition:
        raise InputError(f"{name} must be {rule}. Got {value!r}.")
