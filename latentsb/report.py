"""One self-contained HTML page of a run: what was asked, how it went, what it makes."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

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
HIDDEN = {"images", "seconds", "stage", "phase", "event", "time"}


def write_report(run: Run, path: Path | None = None) -> Path:
    """Write the page; nothing in it is loaded from elsewhere.

    Args:
        run: to report on.
        path: of the page; `report.html` in the run folder if None.
    """
    path = path or run.path / "report.html"
    records = read_log(run.path / "log.jsonl")
    sections = [
        ("Recipe", f"<pre>{escape(run.recipe.text)}</pre>"),
        ("Curves", "".join(curves(records)) or "<p>Nothing has been logged yet.</p>"),
        ("Previews", "".join(map(figure, previews(run.path)))),
        ("Samples", "".join(map(figure, sorted(run.path.glob("samples/*/grid.png"))))),
        ("Reconstructions and interpolations", "".join(map(figure, results(run.path)))),
        ("Figures", "".join(figures(run.path))),
        ("Every default", f"<details><pre>{escape(json.dumps(run.recipe.resolved(), indent=1))}</pre></details>"),
        ("Environment", f"<pre>{escape(read(run.path / 'environment.json'))}</pre>"),
    ]
    body = "".join(f"<h2>{title}</h2>{content}" for title, content in sections if content)
    page = (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escape(run.path.name)}</title>"
        f"<style>{STYLE}</style><h1>{escape(run.path.name)}</h1>{summary(records)}{body}</html>\n"
    )
    path.write_text(page)
    return path


def read(path: Path) -> str:
    """Text of a file, empty if there is none."""
    return path.read_text() if path.exists() else ""


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records of a log, one object per line; a last line cut short by a kill is left out."""
    records = []
    for line in read(path).splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


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
    from matplotlib.figure import Figure

    picture = Figure(figsize=(3.6, 2.2))
    axes = picture.add_subplot()
    axes.plot(*zip(*points, strict=True), lw=1)
    axes.set_xlabel("images")
    axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 4))
    picture.tight_layout()
    out = StringIO()
    picture.savefig(out, format="svg", transparent=False)
    text = out.getvalue()
    return text[text.index("<svg") :]


def previews(folder: Path) -> list[Path]:
    """The first and the newest preview grids."""
    found = sorted((folder / "samples").glob("*.png"))
    return found if len(found) <= 4 else [found[0], *found[-3:]]


def results(folder: Path) -> list[Path]:
    """Pictures that reconstruct and interpolate left."""
    return sorted([*folder.glob("reconstructions/*.png"), *folder.glob("interpolations/*.png")])


def figure(path: Path) -> str:
    """A picture as an inline element with its name below."""
    data = base64.b64encode(path.read_bytes()).decode()
    name = escape(f"{path.parent.name}/{path.stem}")
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
    rows = "".join(f"<tr><th>{escape(str(k))}</th><td>{table(v)}</td></tr>" for k, v in content.items())
    return f"<table>{rows}</table>"
