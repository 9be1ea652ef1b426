"""The page is one file that loads nothing, whatever names it shows."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser

import pytest
import torch

from latentsb.pictures import save_image
from latentsb.report import write_report
from latentsb.run import Run

HOSTILE = "<script src=x.js>alert('1')</script><img src=\"x\" onerror=x>"
LOADING = {"src", "href", "xlink:href", "data", "srcset", "poster", "action", "background"}


class Page(HTMLParser):
    """Tags, attributes that could load something, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(k, v or "") for k, v in attrs]

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def page(tiny, tmp_path):
    folder = tmp_path / "x'\"&<b>"
    shutil.copytree(tiny.path, folder, ignore=shutil.ignore_patterns("checkpoints", "step-*"))
    with open(folder / "log.jsonl", "a") as log:
        for images in (700, 800):
            log.write(json.dumps({"stage": HOSTILE, "images": images, HOSTILE: 1.0}) + "\n")
        log.write('{"stage": "cut sh')
    (folder / "recipe.yaml").write_text(f"# {HOSTILE}\n")
    for sub in ("reconstructions", "evaluations", "samples/<i>"):
        (folder / sub).mkdir(exist_ok=True, parents=True)
    for name in ("samples/<i>/grid.png", "reconstructions/<u onclick=x>.png"):
        save_image(torch.zeros(1, 8, 8), folder / name)
    (folder / "samples/<i>/samples.json").write_text(json.dumps({"count": 3, "notes": [HOSTILE]}))
    (folder / "evaluations" / "<s>.json").write_text(json.dumps({HOSTILE: {"a": [HOSTILE]}, "value": 0.123456}))
    return Page(write_report(Run.open(folder)).read_text())


def test_the_page_loads_nothing(page):
    assert page.tags.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form", "video", "audio"})
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in LOADING:
            assert value.startswith(("data:image/png;base64,", "#")), (name, value[:80])
        if "url(" in value:
            assert "url(#" in value
    assert "@import" not in page.text
    assert "url(" not in page.text


def test_names_are_shown_as_text(page):
    # Title, heading, recipe, caption of the curve, note below the samples, table of figures: all as it is written.
    assert page.text.count(HOSTILE) >= 5
    assert page.text.count("x'\"&<b>") >= 2
    assert page.tags.isdisjoint({"b", "i", "u", "s"})
    assert "0.1235" in page.text


def test_the_page_holds_curves_pictures_and_figures(page):
    assert "bridge loss" in page.text
    assert {"svg", "img", "table"} <= page.tags
    pictures = [v for k, v in page.attributes if k == "src"]
    # The first and the last preview, and the two pictures above.
    assert len(pictures) == 4


def test_a_run_without_anything_has_a_page(tiny, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    shutil.copy(tiny.path / "resolved.yaml", folder)
    page = Page(write_report(Run.open(folder)).read_text())
    assert "Nothing has been logged yet." in page.text


def test_the_page_tells_what_was_changed_and_what_the_pictures_are(tiny, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny.path, folder, ignore=shutil.ignore_patterns("checkpoints"))
    for sub in ("reconstructions", "interpolations", "evaluations"):
        (folder / sub).mkdir(exist_ok=True)
        save_image(torch.zeros(1, 8, 8), folder / sub / "x.png")
    with open(folder / "log.jsonl", "a") as log:
        for images in (700, 800):
            log.write(json.dumps({"stage": "bridge", "images": images, "memory": 7, "lr": 0.1, "loss": images}) + "\n")
    (folder / "evaluations/x.json").write_text(json.dumps({"value": 0.25, "floors": {"noise": 0.5}, "real": 9}))
    (folder / "recipe.yaml").write_text(tiny.recipe.text.replace("z_dim: 4", "z_dim: 9"))
    page = Page(write_report(Run.open(folder)).read_text())
    assert "each row: an original, the frames, the other original" in page.text
    assert "rows: originals, autoencoder alone, bridge" in page.text
    assert "bridge memory" not in page.text
    assert "bridge lr" not in page.text
    assert page.text.index("interpolations") < page.text.index("noise") < page.text.index("bridge loss")
    assert page.text.index("bridge loss") < page.text.index("As it was given")
    assert ("Changed when it was started" in page.text) == ("z_dim: 4" in tiny.recipe.text)
    (folder / "recipe.yaml").write_text(tiny.recipe.text)
    assert "Changed when" not in Page(write_report(Run.open(folder)).read_text()).text
