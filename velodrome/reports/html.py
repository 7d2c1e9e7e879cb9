"""One self-contained HTML file per race: the answer, the table, interactive charts, how to repeat it. It opens without a network.

The Vega scripts are written into the file (from vl-convert), and a content security policy allows exactly these scripts, by hash, and no
connection to anywhere (W3C Content Security Policy Level 3, https://www.w3.org/TR/CSP3/). Text of the user enters only escaped.
"""

import base64
import contextlib
import hashlib
import json
from functools import cache
from html import escape
from importlib.metadata import version as version_of
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

from velodrome.bench.score import Row, Speedup
from velodrome.data.folder import cache as cache_folder
from velodrome.records.disk import replace
from velodrome.reports import beside, charts, resources, scale, standing_page, tuned
from velodrome.reports.cards import figure
from velodrome.reports.race import AXES, Race
from velodrome.reports.words import MISSING, SHORT, answer, digits, joined, median, times, unit

HEADINGS = ("", "speed-up", "verdict", "P(faster)", "hits", "steps", "examples", "FLOP", "time", "final metric")


def write(path: str | Path, race: Race) -> Path:
    """Write the report of a race to `path` (about 1 MB) and return the path.

    ValueError without Altair and vl-convert, naming the extra to install; OSError where the file cannot be written.
    """
    return page(path, race.title, _body(race), _specs(race))


def page(path: str | Path, title: str, body: str, specs: dict[str, Any]) -> Path:
    """Write one self-contained page: `body` is HTML with an empty `<div class="chart" id="…">` for each chart named in `specs`, which holds
    {"spec": Vega-Lite, "switches": whether the buttons for the cost axis apply}. Errors as `write`."""
    path = Path(path)
    scripts = [bundle(), _resource("page.js")]
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_digest, scripts))}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    data = {
        "charts": specs,
        "themes": {"light": charts.theme(False), "dark": charts.theme(True)},
        "axes": charts.axes(),
        "night": charts.NIGHT,
    }
    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_resource("page.css")}</style>
</head>
<body>
<main>
{body}
</main>
<script type="application/json" id="charts">{_json(data)}</script>
<script>{scripts[0]}</script>
<script>{scripts[1]}</script>
</body>
</html>
"""
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


def _specs(race: Race) -> dict[str, Any]:
    axis = _axes(race)[0]
    specs = {f"curves-{i}": {"spec": charts.curves(race, w, axis).to_dict(), "switches": True} for i, w in enumerate(race.workloads)}
    if _estimates(race):
        specs["intervals"] = {"spec": charts.intervals(race).to_dict(), "switches": False}
    timed = {s.workload for s in race.splits}
    specs |= {f"split-{i}": {"spec": charts.time_split(race, w).to_dict()} for i, w in enumerate(race.workloads) if w.name in timed}
    specs |= scale.specs(race.scale, race.score.reference, race.score.axis) if race.scale else {}
    return specs | (standing_page.specs(race.standing) if race.standing else {})


def _body(race: Race) -> str:
    seeds = len({t.seed for t in race.trials})
    names = [w.name for w in race.workloads]
    kicker = f"{race.title} · {len(race.algorithms)} algorithms · {joined(names)} · {seeds} seed{'s' if seeds != 1 else ''}"
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in race.notes)
    estimates = f"<h2>Speed-up over {escape(race.score.reference)}</h2>{_intervals(race)}" if _estimates(race) else ""
    timed = {s.workload for s in race.splits}
    splits = "".join(figure(f"split-{i}", w.name, "") for i, w in enumerate(race.workloads) if w.name in timed)
    return "\n".join(
        [
            f'<p class="kicker">{escape(kicker)}</p>',
            f"<h1>{escape(answer(race.score))}</h1>",
            notes,
            _table(race),
            '<p class="soft">Medians over seeds of the cost to the target. ≥ and ≤ mark numbers that rest on a run that missed its target.</p>',
            "<h2>On the way to the target</h2>",
            switch(race),
            f'<div class="grid">{"".join(_curves(race))}</div>',
            '<p class="soft">Bold: median while all seeds run, with a ribbon from lowest to highest. Thin: single seeds, to their end. Dots: where a seed '
            "reached the target. Click a name to highlight it; Alt + scroll zooms, drag moves, double click resets.</p>",
            estimates,
            scale.sections(race.scale) if race.scale else "",
            beside.section(race.beside),
            tuned.section(race.tuning) if race.tuning else "",
            standing_page.sections(race.standing) if race.standing else "",
            f'<h2>Where the time went</h2><div class="grid">{splits}</div>' if splits else "",
            resources.section(race.resources),
            _reading(race),
            _repeat(race),
        ]
    )


def _curves(race: Race) -> list[str]:
    return [
        figure(f"curves-{i}", w.name, f"{w.summary.rstrip('. ')}{'.' if w.summary else ''} Budget {w.budget:,} steps.".strip())
        for i, w in enumerate(race.workloads)
    ]


def _intervals(race: Race) -> str:
    caption = f"{race.score.level:.0%} intervals. Right of 1×: faster. Triangles are bounds, where a run missed its target."
    return f'<div class="grid">{figure("intervals", "", caption)}</div>'


def switch(race: Race) -> str:
    """The buttons that choose the charts' cost axis."""
    buttons = "".join(
        f'<label><input type="radio" name="axis" value="{a}"{" checked" if i == 0 else ""}><span>{AXES[a]}</span></label>'
        for i, a in enumerate(_axes(race))
    )
    return f"<fieldset><legend>Horizontal axis</legend>{buttons}</fieldset>"


def _axes(race: Race) -> list[str]:
    """Cost axes that some run measured; steps always."""
    return [a for a in AXES if a == "steps" or any(len(getattr(c, a)) for c in race.curves)]


def _estimates(race: Race) -> bool:
    return any(s.speedup is not None for s in race.score.overall)


def _table(race: Race) -> str:
    cells = {(c.workload, c.algorithm): c for c in race.score.cells}
    targets = {w.name: w for w in race.workloads}
    body = []
    for workload, rows in groupby(sorted(race.summary, key=lambda r: r.workload), key=lambda r: r.workload):
        task = targets.get(workload)
        goal = f" <small>{escape(task.metric)} {'≤' if task.lower_is_better else '≥'} {digits(task.target)}</small>" if task else ""
        body.append(f'<tr class="group"><th colspan="{len(HEADINGS)}" scope="rowgroup">{escape(workload)}{goal}</th></tr>')
        body += [_row(row, cells.get((workload, row.algorithm)), race.score.reference) for row in rows]
    if race.score.overall:
        body.append(f'<tr class="group"><th colspan="{len(HEADINGS)}" scope="rowgroup">overall <small>geometric mean</small></th></tr>')
        for s in race.score.overall:
            body.append(_line(s.algorithm, [f"{s.hits}/{s.trials}", "", "", "", "", ""], s))
    head = "".join(f'<th scope="col">{h}</th>' for h in HEADINGS)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _row(row: Row, cell: Speedup | None, reference: str) -> str:
    costs = [median(axis, row.cost.get(axis)).removesuffix("FLOP") for axis in AXES]
    final = MISSING if row.final_mean is None else digits(row.final_mean) + ("" if row.final_sd is None else f" ± {row.final_sd:.2g}")
    return _line(row.algorithm, [f"{row.hits}/{row.trials}", *costs, final], cell, is_reference=row.algorithm == reference)


def _line(algorithm: str, values: list[str], s: Speedup | None, is_reference: bool = False) -> str:
    numbers = "".join(f"<td>{v}</td>" for v in values)
    if s is None:
        rest = f'<td>{"1" if is_reference else MISSING}</td><td class="soft">{"reference" if is_reference else ""}</td><td></td>'
    else:
        p = (
            MISSING
            if s.p_faster is None
            else "&gt; 0.999"
            if s.p_faster > 0.999
            else "&lt; 0.001"
            if s.p_faster < 0.001
            else f"{s.p_faster:.3f}"
        )
        style = s.verdict if s.verdict in ("faster", "slower") else "soft"
        rest = f'<td>{times(s)}</td><td class="{style}">{escape(SHORT.get(s.verdict, s.verdict))}</td><td>{p}</td>'
    return f"<tr><td>{escape(algorithm)}</td>{rest}{numbers}</tr>"


def _reading(race: Race) -> str:
    score = race.score
    scope = score.overall[0].scope if score.overall else "these workloads"
    lost = {
        "pairs in which both missed the target": sum(s.both_missed for s in score.overall),
        "seeds without a partner": sum(s.unpaired for s in score.overall),
        "pairs without a usable cost": sum(s.unusable for s in score.overall),
    }
    left_out = joined([f"{n} {what}" for what, n in lost.items() if n]) or "nothing"
    like = "workloads are resampled with all their pairs" if scope == "workloads like these" else "pairs are resampled within each workload"
    return f"""<h2>How to read this</h2>
<p>Every algorithm starts from the same initial weights and sees the same data in the same order for each seed, so runs are compared in pairs.
The cost to the target is read off the best validation value so far, interpolated between the two evaluations around the crossing; evaluation itself is
not on the clock. The speed-up is the cost of {escape(score.reference)} divided by the cost of the algorithm in {escape(unit(score.axis))}, averaged
geometrically over pairs and then over workloads.</p>
<p>The interval is a {score.level:.0%} hierarchical bootstrap with {score.resamples:,} draws: {like}, and every draw is widened for the
uncertainty of a spread estimated from few pairs, which makes it Student's t for normal noise. It is a statement about {scope}. An interval that contains 1
means that this race cannot tell the two apart, not that they are equal.</p>
<p>A run that misses its target within the budget counts at its budget, which turns the ratio into a bound (≤ or ≥) and leaves one end of the interval
open. Left out here: {left_out}. What this does not show: other hyper-parameters, other scales, other hardware, and with few seeds any strong skew
between runs; on one workload with strongly skewed noise 95 % intervals were measured to hold the truth in 88 to 91 % of simulated races.</p>"""


def _repeat(race: Race) -> str:
    command = f"<pre>{escape(race.command)}</pre>" if race.command else ""
    entries = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in race.environment.items())
    return f"<h2>Do it again</h2>{command}<dl>{entries}</dl>" if command or entries else ""


@cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script; made in three seconds, and so kept in the user's cache folder."""
    alt = charts.altair()
    import vl_convert

    kept = cache_folder() / f"vega-{alt.SCHEMA_VERSION}-{version_of('vl-convert-python')}.js"
    if kept.is_file():
        return kept.read_text(encoding="utf-8")
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])  # the Vega-Lite for which Altair writes
    scripts = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)

    # The parser of HTML normalises line ends before hashing, and would end the script at a closing tag inside it.
    scripts = scripts.replace("\r\n", "\n").replace("\r", "\n").replace("</script", "<\\/script")
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        replace(kept, scripts.encode())
    return scripts


def _resource(name: str) -> str:
    return files("velodrome.reports").joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _json(value: Any) -> str:
    """JSON that cannot end or open a tag inside a script element."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
