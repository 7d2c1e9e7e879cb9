"""What `velodrome train --watch` wrote while the run trained: its series as charts, and where they lead."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from velodrome.commands.inside.failures import ahead
from velodrome.commands.inside.part import Part, Scene
from velodrome.probes.failures.blow_up import LIMITS
from velodrome.probes.findings.growth import growth_findings
from velodrome.probes.watching.sinks import read
from velodrome.reports.inside import Chart

FILE = "watch.jsonl"
ATTENTION = "layers/attention/"
FEWEST = 3  # rows that make a line
SHOWN = 6  # lines of one chart
Series = dict[str, list[tuple[int, dict[str, Any]]]]

# chart -> title, axis, names of the series (a prefix where it ends in a slash), logarithmic
CHARTS: dict[str, tuple[str, str, Sequence[str], bool]] = {
    "watched_edge": ("Learning rate over stability threshold, as watched", "ratio", ("sharpness/ratio", "sharpness/critical"), False),
    "watched_attention": ("Largest attention logit, as watched", "logit", (ATTENTION,), False),
    "watched_log_z": ("Logarithm of the softmax's sum, as watched", "log Z, nats", ("layers/log_z",), False),
    "watched_noise": ("Gradient noise scale, as watched", "examples", ("noise/smoothed", "noise/scale"), True),
    "watched_update": (
        "Change over norm of the weights, as watched",
        "relative update",
        ("update/relative_largest", "update/relative", "update/relative_smallest"),
        True,
    ),
}


def recorded(scene: Scene) -> Part:
    """Nothing where the run was not watched. Rows past the step opened are the record's own future: they are drawn and not judged."""
    part, folder = Part(), scene.subject.folder
    series = grouped(read(folder / FILE)) if folder is not None else {}
    if not series:
        return part
    last = max(t for rows in series.values() for t, _ in rows)
    part.notes.append(f"{FILE} holds {sum(map(len, series.values())):,} numbers up to step {last:,}, watched while the run trained")
    for name, (title, unit, wanted, log) in CHARTS.items():
        rows = lines(series, wanted, log)
        if rows:
            caption = "Numbers of the run's own batches, written by --watch while it trained."
            rules = [{"y": 1, "label": "threshold"}] if name == "watched_edge" else []
            part.charts.append(Chart(name, "lines", title, caption, "step", unit, rows, log_y=log, rules=rules))
    part += growing(series, scene.step)
    return part


def grouped(rows: Sequence[Mapping[str, Any]]) -> Series:
    """Steps and rows by name, in order; rows without a number are left out."""
    series: Series = {}
    for row in rows:
        value = row.get("value")
        if isinstance(row.get("name"), str) and isinstance(value, int | float) and isfinite(value):
            series.setdefault(row["name"], []).append((row["step"], dict(row)))
    return series


def lines(series: Series, wanted: Sequence[str], log: bool) -> list[dict[str, Any]]:
    """Rows of one chart; of many series those that end highest."""
    chosen = [n for n in series if any(n == w or (w.endswith("/") and n.startswith(w)) for w in wanted) and len(series[n]) >= FEWEST]
    chosen = sorted(chosen, key=lambda n: -series[n][-1][1]["value"])[:SHOWN]
    found = []
    for name in chosen:
        for t, row in series[name]:
            y, low, high = row["value"], row.get("low"), row.get("high")
            if log and y <= 0:
                continue
            one = {"x": t, "y": y, "series": name.removeprefix(ATTENTION)}
            if low is not None and high is not None and low < high and not (log and low <= 0):
                one |= {"low": low, "high": high}
            found.append(one)
    return found


def growing(series: Series, until: int) -> Part:
    """Attention and output logits on their way to the limit of float16, over the whole of the run so far."""
    part = Part()
    what = {n: f"The largest attention logit of {n.removeprefix(ATTENTION)}" for n in series if n.startswith(ATTENTION)}
    for name, words in what.items():
        seen = [(t, row["value"]) for t, row in series[name] if t <= until]
        steps, values = [t for t, _ in seen], [y for _, y in seen]
        said, found = growth_findings(words, steps, values, LIMITS["float16"], "the largest number of float16")
        part.findings += said
        if said and found is not None and found.step.identified and not part.charts:
            part.charts.append(ahead(name.removeprefix(ATTENTION), steps, values, found))
    return part


def with_record(whole: Part, record: Part) -> Part:
    """Both; of what grows in the window and in the record the record's word, which is about more steps."""
    told = {f.evidence["what"] for f in record.findings}
    whole.findings = [f for f in whole.findings if f.kind != "growth" or f.evidence.get("what") not in told]
    if any(c.name == "growth" for c in record.charts):
        whole.charts = [c for c in whole.charts if c.name != "growth"]
    return whole + record
