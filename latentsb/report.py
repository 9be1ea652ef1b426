"""One self-contained HTML page of a run: what was asked, how it went, what it makes."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

from latentsb.disk import write_text
from latentsb.run import Run

__all__ = ["write_report"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; border-bottom: 1px solid #ddd; margin-top: 2.5rem }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: 13px }
table { border-collapse: collapse } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top }
figcaption { color: #666; font-size: 13px } img { max-width: 28rem; image-rendering: pixelated }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } pre { background: #242424 } }
"""
HIDDEN = {"images", "seconds", "stage", "phase", "event", "time", "step"}
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may load for the page: nothing."""
UNTOLD = {"inputs", "picture"}
"""Facts that are too long for a table; the JSON has them."""


def write_report(run: Run, path: Path | None = None) -> Path:
    """Write the page; nothing in it is loaded from elsewhere.

    Args:
        run: to report on.
        path: of the page; `report.html` in the run folder if None.
    """
    path = path or run.path / "report.html"
    records = run.records()
    sections = [
        ("Recipe", f"<pre>{escape(read(run.path / 'recipe.yaml'))}</pre>"),
        ("Curves", "".join(curves(records)) or "<p>Nothing has been logged yet.</p>"),
        ("Previews", "".join(map(figure, previews(run.path)))),
        ("Samples", "".join(map(drawn, sorted(run.path.glob("samples/*/grid.png"))))),
        ("Reconstructions and interpolations", "".join(map(figure, results(run.path)))),
        ("Figures", "".join(figures(run.path))),
        ("Every default", f"<details><pre>{escape(json.dumps(run.recipe.resolved(), indent=1))}</pre></details>"),
        ("Environment", f"<pre>{escape(read(run.path / 'environment.json'))}</pre>"),
    ]
    body = "".join(f"<h2>{title}</h2>{content}" for title, content in sections if content)
    page = (
        f"<!doctype html><html lang='en'><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>{escape(run.path.name)}</title>'
        f"<style>{STYLE}</style><h1>{escape(run.path.name)}</h1>{summary(records)}{body}</html>\n"
    )
    write_text(path, page)
    return path


def read(path: Path) -> str:
    """Text of a file, empty if there is none."""
    return path.read_text() if path.exists() else ""


def summary(records: list[dict[str, Any]]) -> str:
    """One sentence on how far the run is."""
    timed = [r for r in records if "images" in r]
    if not timed:
        return ""
    last = timed[-1]
    return f"<p>{int(last['images']):,} images seen in the stage '{escape(str(last.get('stage', 'bridge')))}'.</p>"


def curves(records: list[dict[str, Any]]) -> list[str]:
    """One small plot per logged number, as inline SVG."""
    series: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for record in records:
        for key, value in record.items():
            if key not in HIDDEN and isinstance(value, int | float) and "images" in record:
                series[str(record.get("stage", "")), key].append((record["images"], value))
    return [
        f"<figure>{plot(points)}<figcaption>{escape(f'{stage} {key}'.strip())}</figcaption></figure>"
        for (stage, key), points in series.items()
        if len(points) > 1
    ]


def plot(points: list[tuple[float, float]]) -> str:
    """A line over images seen, as an SVG element."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    out = StringIO()
    with rc_context({"svg.fonttype": "none", "font.size": 8}):
        picture = Figure(figsize=(3.6, 2.2))
        axes = picture.add_subplot()
        axes.plot(*zip(*points, strict=True), lw=1)
        axes.set_xlabel("images")
        axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 4))
        picture.tight_layout()
        picture.savefig(out, format="svg", metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def previews(folder: Path) -> list[Path]:
    """The first and the newest preview of each stage."""
    stages: dict[str, list[Path]] = defaultdict(list)
    for path in sorted((folder / "samples").glob("preview-*.png")):
        stages[path.stem.rpartition("-")[0]].append(path)
    return [path for found in stages.values() for path in dict.fromkeys((found[0], found[-1]))]


def results(folder: Path) -> list[Path]:
    """Pictures that reconstruct and interpolate left."""
    return sorted([*folder.glob("reconstructions/*.png"), *folder.glob("interpolations/*.png")])


def drawn(grid: Path) -> str:
    """A grid of samples, with what its protocol wants said below."""
    beside = read(grid.with_name("samples.json"))
    facts = json.loads(beside) if beside else {}
    told = (
        [f"{facts['count']} samples, {facts['calls']} network calls each"] if {"count", "calls"} <= set(facts) else []
    )
    return figure(grid, *told, *facts.get("notes", []))


def figure(path: Path, *told: str) -> str:
    """A picture as an inline element with its name below."""
    data = base64.b64encode(path.read_bytes()).decode()
    name = "<br>".join(map(escape, (f"{path.parent.name}/{path.stem}", *told)))
    return f"<figure><img src='data:image/png;base64,{data}'><figcaption>{name}</figcaption></figure>"


def figures(folder: Path) -> list[str]:
    """Every JSON of figures as a table."""
    found = [*folder.glob("evaluations/*.json"), *folder.glob("reconstructions/*.json")]
    return [
        f"<h3>{escape(p.parent.name)}/{escape(p.stem)}</h3>{table(json.loads(p.read_text()))}" for p in sorted(found)
    ]


def table(content: Any) -> str:
    """JSON as nested tables."""
    if not isinstance(content, dict):
        return escape(f"{content:.4g}" if isinstance(content, float) else str(content))
    rows = "".join(
        f"<tr><th>{escape(str(k))}</th><td>{table(v)}</td></tr>" for k, v in content.items() if k not in UNTOLD
    )
    return f"<table>{rows}</table>"
