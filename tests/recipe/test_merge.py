"""`extends` and overrides: what merges, what replaces, and the grammar."""

from __future__ import annotations

import re

import pytest

from latentsb.errors import RecipeError
from latentsb.recipe.merge import merge, override
from latentsb.recipe.nodes import parse

BASE = "b: {name: x, k: 1, r: {name: v, m: 2}, s: short}\nl: [1, {a: 2}, 3]\nt: {lr: 1}\nname: me\nn: null"


def changed(*overrides: str, text: str = BASE):
    return override(parse(text, "r"), overrides).plain()


@pytest.mark.parametrize(
    ("child", "expected"),
    [
        ("{b: {k: 2}}", {"name": "x", "k": 2, "r": {"name": "v", "m": 2}}),
        ("{b: {name: x, k: 2}}", {"name": "x", "k": 2, "r": {"name": "v", "m": 2}}),
        ("{b: {name: y}}", {"name": "y"}),
        ("{b: y}", "y"),
        ("{b: x}", {"name": "x", "k": 1, "r": {"name": "v", "m": 2}}),
        ("{b: {r: w}}", {"name": "x", "k": 1, "r": "w"}),
        ("{b: {r: {name: w, q: 1}}}", {"name": "x", "k": 1, "r": {"name": "w", "q": 1}}),
        ("{b: {run: runs/a, part: bridge}}", {"run": "runs/a", "part": "bridge"}),
        ("{b: null}", None),
        ("{b: [1]}", [1]),
    ],
)
def test_a_child_changes_keys_and_another_name_replaces_the_part(child, expected):
    parent = parse("b: {name: x, k: 1, r: {name: v, m: 2}}", "p")
    assert merge(parent, parse(child, "c")).plain()["b"] == expected


def test_the_recipes_own_name_replaces_nothing():
    assert merge(parse("{name: a, seed: 1}", "p"), parse("{name: b}", "c")).plain() == {"name": "b", "seed": 1}


def test_a_short_name_takes_keys_of_the_child():
    assert merge(parse("b: x", "p"), parse("b: {k: 1}", "c")).plain()["b"] == {"name": "x", "k": 1}


def test_places_are_kept_through_merging():
    both = merge(parse("b: {name: x, k: 1}", "p"), parse("b: {m: 2}", "c"))
    assert both.value["b"].value["k"].where == "p:1:17"
    assert both.value["b"].value["m"].where == "c:1:8"


GOOD = [
    ("b.k=2", lambda r: r["b"]["k"] == 2),
    ("b.k=1e-4", lambda r: r["b"]["k"] == 1e-4),
    ("b.k=a=b=c", lambda r: r["b"]["k"] == "a=b=c"),
    ("b.k==", lambda r: r["b"]["k"] == "="),
    ("b.k=é✓", lambda r: r["b"]["k"] == "é✓"),
    ("b.é=1", lambda r: r["b"]["é"] == 1),
    ("b.k=null", lambda r: r["b"]["k"] is None),
    ("b.k=[1, 2]", lambda r: r["b"]["k"] == [1, 2]),
    ("b.k={c: d}", lambda r: r["b"]["k"] == {"c": "d"}),
    ("b.k='x y'", lambda r: r["b"]["k"] == "x y"),
    ("b.k= 3 ", lambda r: r["b"]["k"] == 3),
    ("b.new.deep=3", lambda r: r["b"]["new"] == {"deep": 3}),
    ("new.deep.er=3", lambda r: r["new"] == {"deep": {"er": 3}}),
    ("b.name=y", lambda r: r["b"] == {"name": "y"}),
    ("b=y", lambda r: r["b"] == "y"),
    ("b.name=x", lambda r: r["b"]["k"] == 1),
    ("b.r.m=3", lambda r: r["b"]["r"] == {"name": "v", "m": 3}),
    ("b.r.name=w", lambda r: r["b"]["r"] == {"name": "w"} and r["b"]["k"] == 1),
    ("b.s.q=1", lambda r: r["b"]["s"] == {"name": "short", "q": 1}),
    ("n.a=1", lambda r: r["n"] == {"a": 1}),
    ("l.0=7", lambda r: r["l"] == [7, {"a": 2}, 3]),
    ("l.1.a=7", lambda r: r["l"] == [1, {"a": 7}, 3]),
    ("l=[4]", lambda r: r["l"] == [4]),
    ("name=you", lambda r: r["name"] == "you" and r["t"] == {"lr": 1}),
    ("~b.k", lambda r: "k" not in r["b"] and r["b"]["name"] == "x"),
    ("~b", lambda r: "b" not in r),
    ("~l.0", lambda r: r["l"] == [{"a": 2}, 3]),
    ("~l.1.a", lambda r: r["l"] == [1, {}, 3]),
]


@pytest.mark.parametrize(("text", "holds"), GOOD, ids=[text for text, _ in GOOD])
def test_overrides_of_the_grammar(text, holds):
    assert holds(changed(text))


BAD = [
    ("", "expected key=value or ~key"),
    ("a", "expected key=value"),
    ("=", "expected key=value or ~key"),
    ("=3", "expected key=value or ~key"),
    ("~", "expected key=value or ~key"),
    (".k=1", "words joined by dots"),
    ("b..k=1", "words joined by dots"),
    ("b.=1", "words joined by dots"),
    ("b. k=1", "words joined by dots"),
    ("b.k=", "no value"),
    ("b.k=   ", "no value"),
    ("~b.k=1", "takes no value"),
    ("~b.q", "no key 'b.q'"),
    ("~b.nme", "Did you mean 'name'"),
    ("~x.y", "no key 'x'"),
    ("~l.9", "list of 3"),
    ("~t.lr.x", "no key 't.lr.x'"),
    ("t.lr.x=1", "'t.lr' is 1, which has no keys"),
    ("l.3=1", "list of 3"),
    ("l.-1=1", "list of 3"),
    ("l.x=1", "list of 3"),
    ("l.²=1", "list of 3"),
    ("l." + "9" * 5000 + "=1", "list of 3"),
    ("b.k=[1", "not YAML"),
    ("b.k={a: 1, a: 2}", "second time"),
    ("b.k=!!int 3", "tags"),
    ("b.k=.nan", "finite"),
    ("b.k=012", "decimal"),
    ("b.k=a: b", None),
    ("b.k=*x", "&x"),
    ("b.k=\0", r"U\+0000"),
    ("b.k=@", "not YAML"),
    ("b.k=" + "[" * 100, "levels"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_overrides_outside_the_grammar_are_told_as_overrides(text, message):
    if message is None:
        assert changed(text)["b"]["k"] == {"a": "b"}
        return
    with pytest.raises(RecipeError) as caught:
        changed(text)
    problem = caught.value.problems[0]
    assert problem.where == f"override '{text}'"
    assert re.search(message, problem.message), problem


def test_overrides_apply_in_their_order_and_all_mistakes_are_told():
    assert changed("b.k=2", "b.k=3")["b"]["k"] == 3
    assert changed("b.name=y", "b.q=3")["b"] == {"name": "y", "q": 3}
    with pytest.raises(RecipeError) as caught:
        changed("a", "b.k=", "b.k=3", "~q")
    assert len(caught.value.problems) == 3
