"""One self-contained HTML page of a run: what it makes, how good that is, how it went, what was asked."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

from latentsb.bridge import EncodingBridge
from latentsb.disk import write_text
from latentsb.errors import Error
from latentsb.recipe import Recipe
from latentsb.results import SHOWN
from latentsb.run import Run

__all__ = ["write_report"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 90rem; margin: 2rem auto; padding: 0 2rem; color: #222; }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; border-bottom: 1px solid #ddd; margin-top: 2.5rem }
h3 { font-size: 1rem; margin: 1rem 0 .3rem }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: 13px }
table { border-collapse: collapse } td, th { padding: .2rem 1.2rem .2rem 0; text-align: left; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums } thead th { border-bottom: 1px solid #bbb }
.row { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start }
figure { margin: 0; max-width: 100% } figcaption { color: #666; font-size: 13px; max-width: 44rem }
img { max-width: 100%; image-rendering: pixelated } details { margin: .5rem 0; color: #666; font-size: 13px }
@media (prefers-color-scheme: dark) {
  body { background: #181818; color: #ddd } pre { background: #242424 } svg { background: #ddd }
}
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may load for the page: nothing."""
HIDDEN = {"images", "seconds", "stage", "phase", "event", "time", "step", "skipped", "memory", "lr", "data_wait"}
"""Logged numbers that are no curve: the axis, and what matters only where something is wrong."""
HELD_OUT = "held_out_loss"
"""Drawn over the curve of the loss."""
LEFT, RIGHT = ("loss",), ("grad_norm", "images_per_second")
"""Curves that come first, and last; the terms of the loss and the figures stand between."""
NAMES = {"psnr": "PSNR (dB)", "ssim": "SSIM", "mse": "MSE on [0, 1]", "grad_norm": "norm of the gradient"}
NAMES |= {"images_per_second": "images per second"}
"""Logged names that are not words."""
UNTOLD = set("inputs picture places z_moves_by notes figures value floors tables confusion per_class".split())
"""Facts that are too long for a table, or stand elsewhere; the JSON has them."""


def write_report(run: Run, path: Path | None = None) -> Path:
    """Write the page; nothing in it is loaded from elsewhere.

    Args:
        run: to report on.
        path: of the page; `report.html` in the run folder if None.
    """
    path = path or run.path / "report.html"
    records = run.records()
    sections = [
        ("Samples, reconstructions, interpolations, edits", row(pictures(run.path))),
        ("Previews", row(previews(run))),
        ("Figures", row(figures(run.path))),
        ("Curves", row(curves(records)) or "<p>Nothing has been logged yet.</p>"),
        ("Recipe", recipe(run)),
        ("Environment", f"<details><pre>{escape(read(run.path / 'environment.json'))}</pre></details>"),
    ]
    body = "".join(f"<h2>{title}</h2>{content}" for title, content in sections if content)
    page = (
        f"<!doctype html><html lang='en'><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>{escape(run.path.name)}</title>'
        f"<style>{STYLE}</style><h1>{escape(run.path.name)}</h1>{summary(run, records)}{body}</html>\n"
    )
    write_text(path, page)
    return path


def read(path: Path) -> str:
    """Text of a file, empty if there is none."""
    return path.read_text() if path.exists() else ""


def facts_of(path: Path) -> dict[str, Any]:
    """The JSON that lies beside a picture, or nothing."""
    content: dict[str, Any] = json.loads(read(path) or "{}")
    return content


def row(parts: Any) -> str:
    """Parts side by side, as many as the page is wide; empty if there are none."""
    content = "".join(parts)
    return f"<div class='row'>{content}</div>" if content else ""


def summary(run: Run, records: list[dict[str, Any]]) -> str:
    """What the run is, and how far."""
    about = f"<p>{escape(run.recipe.about)}</p>" if run.recipe.about else ""
    stages: dict[str, dict[str, Any]] = {}
    for record in records:
        if "images" in record:
            stages.setdefault(str(record.get("stage", "bridge")), {}).update(record)
    told = []
    for stage, last in stages.items():
        loss = f", loss {last['loss']:.4g}" if "loss" in last else ""
        loss += f", on held-out data {last[HELD_OUT]:.4g}" if HELD_OUT in last else ""
        told.append(f"<li>stage '{escape(stage)}': {int(last['images']):,} images seen{loss}</li>")
    return about + (f"<ul>{''.join(told)}</ul>" if told else "")


def recipe(run: Run) -> str:
    """The recipe as it was given, what the run has otherwise, and every default."""
    given, resolved = read(run.path / "recipe.yaml"), json.dumps(run.recipe.resolved(), indent=1)
    lines = "".join(
        f"<tr><th>{escape(key)}</th><td>{escape(asked)}</td><td>{escape(had)}</td></tr>"
        for key, asked, had in changes(run, given)
    )
    table = f"<h3>Changed when it was started</h3><table>{heads('', 'in the recipe', 'in this run')}{lines}</table>"
    return (
        f"{table if lines else ''}<h3>As it was given</h3><pre>{escape(given)}</pre>"
        f"<details><summary>every default</summary><pre>{escape(resolved)}</pre></details>"
    )


def changes(run: Run, given: str) -> Iterator[tuple[str, str, str]]:
    """Keys that the run has otherwise than its recipe says, with both values."""
    try:
        asked = Recipe.parse(given, imports=run.recipe.imports, folder=run.path)
    except Error:
        return  # it refers to files that lay beside it
    for key, (ours, theirs) in run.recipe.differences(asked).items():
        same_file = all(isinstance(v, str) for v in (ours, theirs)) and Path(ours).name == Path(theirs).name
        if not same_file and key.partition(".")[0] != "imports":
            yield key, json.dumps(theirs, ensure_ascii=False), json.dumps(ours, ensure_ascii=False)


def curves(records: list[dict[str, Any]]) -> list[str]:
    """One small plot per logged number that says how training went, as inline SVG."""
    series: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for record in records:
        for key, value in record.items():
            if key not in HIDDEN and isinstance(value, int | float) and "images" in record:
                series[str(record.get("stage", "")), key].append((record["images"], value))
    stages = list(dict.fromkeys(stage for stage, _ in series))
    held = {(stage, key): series.pop((stage, key)) for stage, key in list(series) if key.endswith(HELD_OUT)}

    def place(item: tuple[tuple[str, str], Any]) -> tuple[int, int]:
        stage, key = item[0]
        return stages.index(stage), -1 if key in LEFT else 1 + RIGHT.index(key) if key in RIGHT else 0

    found = []
    for (stage, key), points in sorted(series.items(), key=place):
        beside = held.get((stage, key.removesuffix("loss") + HELD_OUT), []) if key.endswith("loss") else []
        told = f"{stage} {NAMES.get(key, key)}".strip() + (" (dots: on held-out data)" if beside else "")
        if len(points) > 1:
            found.append(f"<figure>{plot(points, beside)}<figcaption>{escape(told)}</figcaption></figure>")
    return found


def plot(points: list[tuple[float, float]], dots: list[tuple[float, float]]) -> str:
    """A line over images seen, and dots, as an SVG element."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    out = StringIO()
    with rc_context({"svg.fonttype": "none", "font.size": 8}):
        picture = Figure(figsize=(3.6, 2.2))
        axes = picture.add_subplot()
        axes.plot(*zip(*points, strict=True), lw=1)
        if dots:
            axes.plot(*zip(*dots, strict=True), "o-", ms=3, lw=0.5)
        axes.set_xlabel("images")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        if max(abs(value) for _, value in [*points, *dots]) >= 1000:
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        picture.tight_layout()
        picture.savefig(out, format="svg", metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def previews(run: Run) -> Iterator[str]:
    """The first and the newest preview of each stage."""
    encodes = issubclass(run.recipe.bridge.cls, EncodingBridge)
    stages: dict[str, list[Path]] = defaultdict(list)
    for path in sorted((run.path / "samples").glob("preview-*.png")):
        stages[path.stem.rpartition("-")[0]].append(path)
    for name, found in stages.items():
        stage = name.split("-", 2)[-1]
        rows = "samples, originals, autoencoder alone, bridge" if encodes else "samples"
        if stage == "autoencoder":
            rows = "originals, what the autoencoder makes of them"
        for path in dict.fromkeys((found[0], found[-1])):
            seen = path.stem.rpartition("-")[2]
            after = f"{int(seen):,}" if seen.isdigit() else seen
            yield figure(path, f"stage '{stage}' after {after} images", f"rows: {rows}")


def pictures(folder: Path) -> Iterator[str]:
    """What the commands on the run left."""
    yield from map(drawn, sorted(folder.glob("samples/*/grid.png")))
    yield from map(reconstructed, sorted(folder.glob("reconstructions/*.png")))
    yield from map(interpolated, sorted(folder.glob("interpolations/*.png")))
    yield from map(edited, sorted(folder.glob("edits/*.png")))


def drawn(grid: Path) -> str:
    """A grid of samples, with what its protocol wants said below."""
    facts = facts_of(grid.with_name("samples.json"))
    told = []
    if {"count", "calls"} <= facts.keys():
        first = (
            f"the first {SHOWN} of " if facts["count"] > SHOWN and not grid.with_name("samples.npz").exists() else ""
        )
        told = [f"{first}{facts['count']:,} samples, {facts['calls']} network calls each"]
    if "seed" in facts:
        told += [f"row by row from seed {facts['seed']} on"]
    if facts.get("label") is not None:
        told += [f"all of class {facts['label']}"]
    if facts.get("guidance", 1.0) != 1.0:
        told += [f"guidance {facts['guidance']:g}"]
    return figure(grid, f"samples{after(facts)}", *told, *facts.get("notes", []), facts=facts)


def reconstructed(path: Path) -> str:
    """Rows of originals and what was made of them."""
    facts = facts_of(path.with_suffix(".json"))
    how = {"faithful": "faithful: the mean of all images with this code", "perceptual": "perceptual: one draw each"}
    modes = list(how) if facts.get("mode") == "both" else [facts.get("mode")]
    told = [how[mode] for mode in modes if mode in how]
    rows = "rows: originals, autoencoder alone, bridge (of vectors: bridge over originals in grey)"
    return figure(path, f"reconstructions{after(facts)}", rows, *told, facts=facts)


def interpolated(path: Path) -> str:
    """A row of frames per pair."""
    facts = facts_of(path.with_suffix(".json"))
    sheet = isinstance(facts.get("frames"), list)
    size = " × ".join(map(str, facts["frames"])) if sheet else facts.get("frames")
    told = [f"{size} frames, mixed in {facts['along']}"] if {"frames", "along"} <= facts.keys() else []
    rows = "a sheet between four originals, which stand beside its corners"
    rows = rows if sheet else "each row: an original, the frames, the other original"
    return figure(path, f"interpolations{after(facts)}", rows, *told, facts=facts)


def edited(path: Path) -> str:
    """A row of strengths per image."""
    facts = facts_of(path.with_suffix(".json"))
    rows = "each row: an original, and its code moved along the direction by strengths in standard deviations"
    worth = facts.get("worth") or {}
    told = [f"{worth['figure']} {worth['value']:.3f} of the direction on {worth['measured_on']}"] if worth else []
    return figure(path, f"edits of '{facts.get('attribute', '')}'{after(facts)}", rows, *told, facts=facts)


def after(facts: Mapping[str, Any]) -> str:
    """` after step 2,500 (ema weights)`, as far as it is known."""
    return f" after step {facts['step']:,} ({facts['weights']} weights)" if {"step", "weights"} <= facts.keys() else ""


def many(facts: Mapping[str, Any]) -> str:
    """`, n = 256`: of how many samples a figure is, as far as it is known."""
    metric = facts.get("metric")
    n = facts.get("count", metric.get("images") if isinstance(metric, dict) else None)
    return f", n = {n:,}" if isinstance(n, int) else ""


def figure(path: Path, *told: str, facts: Mapping[str, Any] | None = None) -> str:
    """A picture as an inline element, what it shows below, and its protocol to unfold."""
    data = base64.b64encode(path.read_bytes()).decode()
    words = "<br>".join(map(escape, told))
    return (
        f"<figure><img alt='{escape(told[0], quote=True)}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{words}</figcaption>{protocol(facts or {})}</figure>"
    )


def protocol(facts: Mapping[str, Any]) -> str:
    """Everything that a figure or a picture depends on, folded away."""
    return f"<details><summary>protocol</summary>{nested(dict(facts))}</details>" if facts else ""


def figures(folder: Path) -> Iterator[str]:
    """Figures beside their floors: a table for each JSON."""
    for path in sorted(folder.glob("evaluations/*.json")):
        facts = facts_of(path)
        metric = facts.get("metric")
        name = str(metric["name"]) if isinstance(metric, dict) and "name" in metric else path.stem
        of = facts.get("of", "samples")
        lines = {f"{facts['count']:,} {of}" if of == "samples" and "count" in facts else of: facts.get("value")}
        yield measured(
            f"{name}{after(facts)}{many(facts)}", [name], {k: [v] for k, v in (lines | floors(facts)).items()}, facts
        )
        for table in facts.get("tables", ()):
            rows = {str(row): values for row, values in table["rows"]}
            yield measured(table["title"], table["columns"][1:], rows, {})
        if path.with_suffix(".png").exists():
            yield figure(path.with_suffix(".png"), name)
    for path in sorted(folder.glob("reconstructions/*.json")):
        facts = facts_of(path)
        rows = facts.get("figures", {})
        columns = list(dict.fromkeys(key for row in rows.values() for key in row))
        values = {name: [row.get(key) for key in columns] for name, row in rows.items()}
        title = f"{facts.get('mode', '')} reconstructions of {facts.get('images', '')} images{after(facts)}".strip()
        yield measured(title, [NAMES.get(key, key) for key in columns], values, facts)


def floors(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The same figure of other samples."""
    found = facts.get("floors")
    return found if isinstance(found, dict) else {}


def measured(title: str, columns: list[str], lines: Mapping[str, list[Any]], facts: Mapping[str, Any]) -> str:
    """A table of numbers with a title."""
    body = "".join(f"<tr><th>{escape(name)}</th>{cells(values)}</tr>" for name, values in lines.items())
    return f"<div><h3>{escape(title)}</h3><table>{heads('', *columns)}{body}</table>{protocol(facts)}</div>"


def cells(values: list[Any]) -> str:
    """Numbers in a row."""
    return "".join(f"<td class='number'>{number(v)}</td>" for v in values)


def heads(*columns: str) -> str:
    """The head of a table."""
    return f"<thead><tr>{''.join(f'<th>{escape(c)}</th>' for c in columns)}</tr></thead>"


def number(value: Any) -> str:
    """Four digits; a dash for what cannot be told."""
    if value is None:
        return "–"
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def nested(content: Any) -> str:
    """JSON as nested tables."""
    if not isinstance(content, dict):
        return number(content)
    rows = "".join(
        f"<tr><th>{escape(str(k))}</th><td>{nested(v)}</td></tr>" for k, v in content.items() if k not in UNTOLD
    )
    return f"<table>{rows}</table>"
