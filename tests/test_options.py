from __future__ import annotations

import dataclasses
import math
from typing import Literal

import pytest

from shoal.core import errors, options


@dataclasses.dataclass(frozen=True)
class Config:
    count: int = options.number(5, low=1)
    share: float = options.number(0.5, low=0.0, high=1.0)
    sizes: tuple[int, ...] = options.number((64, 64), low=1)
    mode: Literal["sum", "mean"] = "sum"
    on: bool = False
    limit: int | None = None
    name: str = "x"
    free: float = 1.0


def refusal(given, base=None):
    with pytest.raises(errors.Refused) as caught:
        options.build(Config, given, "part", base)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_plain_data_becomes_a_config():
    given = {"count": 7, "share": 1, "sizes": [3, 4], "mode": "mean", "on": True, "limit": 9, "name": "y"}
    built = options.build(Config, given, "part")
    assert built == Config(7, 1.0, (3, 4), "mean", True, 9, "y")
    assert isinstance(built.share, float)
    assert isinstance(built.sizes, tuple)
    assert options.build(Config, {}, "part") == Config()
    assert options.build(Config, {"limit": None}, "part").limit is None


def test_what_is_not_given_comes_from_the_base():
    base = Config(count=9, mode="mean")
    assert options.build(Config, {"mode": "sum"}, "part", base) == Config(count=9)
    assert base.mode == "mean"


def test_json_and_back():
    config = Config(sizes=(1, 2), limit=3)
    assert options.build(Config, dataclasses.asdict(config), "part") == config


def test_an_unknown_key_names_the_nearest():
    assert refusal({"cuont": 3}).startswith("unknown config key 'part.cuont'; did you mean 'part.count'?")
    assert "part.sizes" in refusal({"zzz": 3})


def test_an_unknown_choice_names_what_is_allowed():
    message = refusal({"mode": "maen"})
    assert "part.mode" in message
    assert "did you mean 'mean'?" in message
    assert "sum" in message


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("count", 1.5, "int"),
        ("count", "3", "int"),
        ("count", True, "int"),
        ("count", None, "int"),
        ("share", "half", "float"),
        ("share", True, "float"),
        ("on", 1, "bool"),
        ("on", "yes", "bool"),
        ("name", 3, "str"),
        ("sizes", 64, "not a list"),
        ("sizes", "64", "not a list"),
        ("sizes", [64, "a"], "int"),
        ("limit", "a", "int"),
        ("mode", 3, "unknown value"),
        ("mode", ["sum"], "unknown value"),
    ],
)
def test_a_wrong_type_is_refused(name, value, wanted):
    message = refusal({name: value})
    assert f"part.{name}" in message
    assert wanted in message


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("count", 0, "at least 1"),
        ("share", -0.1, "between 0 and 1"),
        ("share", 1.1, "between 0 and 1"),
        ("share", math.inf, "between 0 and 1"),
        ("sizes", [64, 0], "at least 1"),
        ("free", math.nan, "not a number"),
        ("share", math.nan, "not a number"),
    ],
)
def test_a_value_out_of_bounds_is_refused(name, value, allowed):
    message = refusal({name: value})
    assert f"part.{name}" in message
    assert allowed in message


@pytest.mark.parametrize("given", [{"count": 1}, {"share": 0.0}, {"share": 1.0}, {"sizes": [1]}, {"sizes": []}])
def test_bounds_are_inclusive(given):
    options.build(Config, given, "part")


def test_a_config_built_elsewhere_is_checked_too():
    with pytest.raises(errors.Refused, match=r"part\.share=2"):
        options.check(Config(share=2.0), "part")


def test_a_base_out_of_bounds_is_refused():
    assert "part.count=0" in refusal({"mode": "mean"}, Config(count=0))
