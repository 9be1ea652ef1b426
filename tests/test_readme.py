"""The first page: what it names is there, what is there is named, and every page is one step away."""

import re
from pathlib import Path

import pytest

from latentsb.autoencoder import AUTOENCODERS
from latentsb.bridge import BRIDGES
from latentsb.data.source import SOURCES
from latentsb.metrics.base import METRICS
from latentsb.networks.base import NETWORKS
from latentsb.process.coupling import COUPLINGS
from latentsb.process.reference import REFERENCES
from latentsb.solvers.base import SOLVERS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
LINKS = {link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link}
ROWS = dict(re.findall(r"^\| \[?([a-z]+)\]?(?:\([^)]*\))? \| (.*) \|$", TEXT, flags=re.MULTILINE))
TOYS = {"checkerboard", "eight_gaussians", "gaussian", "mixture", "moons", "swissroll"}
KINDS = {
    "bridges": BRIDGES,
    "couplings": COUPLINGS,
    "references": REFERENCES,
    "solvers": SOLVERS,
    "autoencoders": AUTOENCODERS,
    "networks": NETWORKS,
    "data": SOURCES,
    "figures": METRICS,
}


def test_every_page_is_linked_and_every_link_leads_somewhere():
    assert [link for link in LINKS if not (ROOT / link).exists()] == []
    pages = {p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md")}
    assert pages - LINKS == set()


@pytest.mark.parametrize("kind", KINDS)
def test_every_word_is_named(kind):
    told = set(re.findall(r"`(\w+)`", ROWS[kind]))
    own = {word for word in KINDS[kind].names() if KINDS[kind][word].__module__.startswith("latentsb.")}
    others = {"conv", "dense", "half_unet", "timm"} if kind == "networks" else set()
    assert told - others == own - TOYS


def test_no_page_reads_a_pickle():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert [p.name for p in pages if re.search(r"torch\.load|pickle\.load|weights_only", p.read_text())] == []
