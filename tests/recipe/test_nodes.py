"""YAML 1.2 values with their places, and everything that a recipe's reader refuses (with its place)."""

from __future__ import annotations

import math
import re
import time

import pytest

from latentsb.errors import RecipeError
from latentsb.recipe.nodes import MAX_BYTES, MAX_DEPTH, dump, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("64e6", 64e6),
        ("64_000_000", 64_000_000),
        ("-3", -3),
        ("+3", 3),
        ("0", 0),
        (".5", 0.5),
        ("5.", 5.0),
        ("1_000.5", 1000.5),
        ("1E+3", 1000.0),
        ("-1.5e-3", -1.5e-3),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("1__0", "1__0"),
        ("_1", "_1"),
        ("e5", "e5"),
        ("1e", "1e"),
        (".", "."),
        ("nan", "nan"),
        ("inf", "inf"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("digits", "digits"),
        ("[1, 2.0, x]", [1, 2.0, "x"]),
        ("{a: {b: c}}", {"a": {"b": "c"}}),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_values_follow_yaml_1_2(text, value):
    found = parse(f"key: {text}", "r").plain()["key"]
    assert found == value
    assert type(found) is type(value)


def test_places_are_those_of_key_and_value():
    root = parse("a: 1\nb:\n  - x\n  - {c: 3}\n", "r.yaml")
    assert root.value["a"].key == "r.yaml:1:1"
    assert root.value["a"].where == "r.yaml:1:4"
    assert root.value["b"].value[1].value["c"].where == "r.yaml:4:9"


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)

REFUSED = {
    "alias bomb": (BOMB, "values"),
    "recursive alias": ("a: &x [1, *x]", "r:1:11.*inside"),
    "unknown alias": ("a: *x", "r:1:4.*&x"),
    "deep flow": ("a: " + "[" * 3000, "r:1:.*levels"),
    "deep block": ("\n".join(" " * i + "a:" for i in range(40)), "levels"),
    "deep by alias": ("a: &x " + "[" * 20 + "]" * 20 + "\nb: " + "[" * 20 + "*x" + "]" * 20, "r:2:.*levels"),
    "tab": ("a:\n\tb: 1", "r:2:1.*tab"),
    "byte order mark": ("\ufeffa: 1", "r:1:1.*byte order"),
    "byte order mark inside": ("a: \ufeff1", "r:1:4.*byte order"),
    "NUL": ("a: 1\nb: \0", r"r:2:4.*U\+0000"),
    "escape": ("a: \x1b[31m", r"r:1:4.*U\+001B"),
    "not UTF-8": (b"a: 1\nb: \xff", "r:2:4.*UTF-8"),
    "UTF-16": ("a: 1".encode("utf-16"), "r:1:1.*UTF-8"),
    "large": ("#" * (MAX_BYTES + 1), "bytes"),
    "50 MB": (b"a" * 50_000_000, "bytes"),
    "many values": ("a: [" + "1," * 30_000 + "]", "r:1:.*values"),
    "python tag": ("a: !!python/object/apply:os.system ['true']", "r:1:4.*tags"),
    "python name": ("a: !!python/name:os.system x", "r:1:4.*tags"),
    "own tag": ("a: !mine 3", "r:1:4.*tags"),
    "int tag": ("a: !!int 3", "r:1:4.*!!int"),
    "str tag": ("a: !!str 3", "r:1:4.*!!str"),
    "tag on mapping": ("a: !!map {b: 1}", "r:1:4.*tags"),
    "tag on list": ("a: !!set [b]", "r:1:4.*tags"),
    "tag on key": ("!!str a: 1", "r:1:1.*tags"),
    "tag directive": ("%TAG ! tag:x,2000:\n---\na: !b 1", "r:3:4.*tags"),
    "duplicate key": ("a: 1\nb: 2\na: 3", "r:3:1.*second time.*r:1:1"),
    "duplicate in flow": ("a: {b: 1, b: 2}", "r:1:11.*second"),
    "duplicate by quotes": ("a: 1\n'a': 2", "r:2:1.*second"),
    "merge key": ("a: &x {b: 1}\nc:\n  <<: *x", "r:3:3.*extends"),
    "number as key": ("1: a", "r:1:1.*key"),
    "float as key": ("1e4: a", "r:1:1.*key"),
    "true as key": ("true: a", "r:1:1.*key"),
    "null as key": ("null: a", "r:1:1.*key"),
    "empty key": ("? \n: a", "r:1:.*key"),
    "list as key": ("[a]: b", "r:1:1.*key"),
    "mapping as key": ("? {a: 1}\n: b", "key"),
    "alias as key": ("a: &x b\n*x : c", "r:2:1.*key"),
    "nan": ("a: .nan", "r:1:4.*finite"),
    "NaN": ("a: .NaN", "r:1:4.*finite"),
    "inf": ("a: .inf", "r:1:4.*finite"),
    "-Inf": ("a: -.Inf", "r:1:4.*finite"),
    "1e999": ("a: 1e999", "r:1:4.*finite"),
    "-1e999": ("a: -1e999", "r:1:4.*finite"),
    "octal": ("a: 012", "r:1:4.*decimal"),
    "octal 1.2": ("a: 0o14", "r:1:4.*decimal"),
    "hexadecimal": ("a: 0x1f", "r:1:4.*decimal"),
    "binary": ("a: 0b11", "r:1:4.*decimal"),
    "leading zero": ("a: 007", "r:1:4.*decimal"),
    "huge integer": ("a: " + "9" * 6000, "r:1:4.*large"),
    "two documents": ("a: 1\n---\nb: 2", "one document"),
    "nothing": ("", "no value"),
    "comment only": ("# a\n", "no value"),
    "unclosed flow": ("a: [1, 2", "r:1:.*YAML"),
    "unclosed quote": ("a: 'x", "r:1:.*YAML"),
    "bad indentation": ("a: 1\n  b: 2", "r:2:.*YAML"),
    "bad escape": ('a: "\\q"', "r:1:.*YAML"),
    "two colons": ("a: b: c", "r:1:5.*YAML"),
    "reserved": ("a: @x", "r:1:4.*YAML"),
    "percent": ("a: %x", "r:1:4.*YAML"),
    "surrogate": ('a: "\\ud800"', r"r:1:4.*U\+D800"),
    "escaped NUL": ('a: "\\0"', r"r:1:4.*U\+0000"),
    "escaped terminal code": ('"\\e": 1', r"r:1:1.*U\+001B"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_be_read_in_two_ways_is_refused_with_its_place(name):
    text, message = REFUSED[name]
    began = time.process_time()
    with pytest.raises(RecipeError) as caught:
        parse(text, "r")
    assert time.process_time() - began < 1
    told = str(caught.value)
    assert re.search(message, told), told
    assert re.match(r"r:\d+:\d+: ", told)
    assert len(told) < 1000


def test_all_problems_are_told_at_once():
    with pytest.raises(RecipeError) as caught:
        parse("a: .nan\nb: 012\na: 1\n2: x\nc: !x 1", "r")
    assert [p.where for p in caught.value.problems] == ["r:1:4", "r:2:4", "r:3:1", "r:4:1", "r:5:4"]


def test_depth_up_to_the_limit_is_read():
    assert parse("a: " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1), "r").depth == MAX_DEPTH


def test_aliases_within_the_limits_are_values():
    assert parse("a: &x {b: 1}\nc: *x", "r").plain() == {"a": {"b": 1}, "c": {"b": 1}}


TEXTS = [
    "yes",
    "1e-4",
    "012",
    ".nan",
    "null",
    "",
    "~",
    "a: b",
    "#",
    "- x",
    "1:30",
    "é✓",
    "two\nlines",
    " x ",
    "0x1f",
    "<<",
]


@pytest.mark.parametrize("value", [*TEXTS, 1e-5, 64e6, 3, -0.0, math.pi, True, None, [1, [2]], {"a": []}, {}])
def test_what_dump_writes_is_read_as_the_same(value):
    found = parse(dump({"a": value}), "r").plain()["a"]
    assert found == value
    assert type(found) is type(value)
