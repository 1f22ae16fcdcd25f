"""Settings from plain values: which are taken, which are told."""

from dataclasses import dataclass

import pytest

from ptmq.common.errors import InputError, one_of, require
from ptmq.common.settings import from_dict


@dataclass(frozen=True)
class Example:
    """One setting of each type."""

    count: int = 3
    rate: float = 0.1
    case: str = "3"
    on: bool = False
    weights: tuple = (0.5, 0.5)

    def __post_init__(self):
        require(self.count >= 1, "count", "at least 1", self.count)


@pytest.mark.parametrize("values", [
    {"count": 5, "rate": 1, "case": 2, "on": True, "weights": [1, 0]},
    {"rate": "1e-3", "weights": ["0.25", "0.75"]},
    {},
])  # fmt: skip
def test_values_get_the_types_of_the_defaults(values):
    settings = from_dict(Example, values, "example")
    assert [type(getattr(settings, name)) for name in ("count", "rate", "case", "on")] == [int, float, str, bool]
    for name, value in values.items():
        expected = tuple(map(float, value)) if name == "weights" else type(getattr(Example, name))(value)
        assert getattr(settings, name) == expected


@pytest.mark.parametrize("values, message", [
    ({"cuont": 1}, "example: setting 'cuont' is unknown. Did you mean 'count'?"),
    ({"count": "many"}, "example: setting 'count' must be int, like its default 3. Got 'many'."),
    ({"count": True}, "setting 'count' must be int"),
    ({"on": 1}, "setting 'on' must be bool"),
    ({"rate": "fast"}, "setting 'rate' must be float"),
    ({"rate": False}, "setting 'rate' must be float"),
    ({"case": [3]}, r"setting 'case' must be str, like its default '3'. Got \[3\]."),
    ({"weights": [0.5, "x"]}, "setting 'weights' must be tuple"),
    ({"count": 0}, "example: count must be at least 1. Got 0."),
])  # fmt: skip
def test_what_does_not_fit_is_said(values, message):
    with pytest.raises(InputError, match=message):
        from_dict(Example, values, "example")


def test_a_name_is_taken_or_the_nearest_one_is_told():
    assert one_of("fruit", "pear", ["apple", "pear"]) == "pear"
    with pytest.raises(InputError, match="fruit 'aple' is unknown. Did you mean 'apple'. Known: apple, pear."):
        one_of("fruit", "aple", ["pear", "apple"])
    with pytest.raises(InputError, match="fruit 'xyz' is unknown. Known: apple."):
        one_of("fruit", "xyz", ["apple"])
