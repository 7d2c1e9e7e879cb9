"""Speed-ups against scale on a page: a chart for each workload that was raced at several scales, one over all of them, and a table that says the same."""

from collections.abc import Sequence
from typing import Any

from velodrome.bench.scale import Change, Ladder, Rung
from velodrome.reports.cards import figure, table
from velodrome.reports.charts import REFERENCE, altair, ratio_ticks
from velodrome.reports.standing_charts import colors
from velodrome.reports.words import MISSING, joined, quantity, ratio, times

APART = 1.06  # algorithms beside each other, so that their intervals can be told apart
OVERALL = "All of them"


def chart(rungs: Sequence[Rung], algorithms: Sequence[str], reference: str, axis: str) -> Any:
    """The speed-up with its interval over the parameters of the models, or over the scale where these are not known; a line for each algorithm."""
    alt = altair()
    known = all(r.parameters for r in rungs)
    middle = (len(algorithms) - 1) / 2
    rows = [
        {
            "algorithm": s.algorithm,
            "size": (r.parameters if known else r.scale) * APART ** (list(algorithms).index(s.algorithm) - middle),
            "speedup": s.speedup,
            "low": s.speedup if s.low is None else s.low,
            "high": s.speedup if s.high is None else s.high,
            "bound": s.bound,
            "scale": f"{r.scale}x",
            "parameters": quantity(r.parameters),
            "text": times(s),
            "verdict": s.verdict,
        }
        for r in rungs
        if (s := r.speedup).speedup is not None
    ]
    sizes = sorted({(r.parameters or r.scale) if known else r.scale for r in rungs})
    ends = [float(e) for row in rows for e in (row["low"], row["high"])] or [1.0]
    low, high = min(*ends, 0.8) / 1.08, max(*ends, 1.25) * 1.08
    x = alt.X(
        "size:Q",
        title="parameters" if known else "scale",
        scale=alt.Scale(type="log", domain=[sizes[0] / 1.5, sizes[-1] * 1.5], nice=False),
        axis=alt.Axis(values=sizes, labelExpr="format(datum.value, '.3~s')" if known else "datum.value + '×'", grid=False),
    )
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    y_axis = alt.Axis(values=ratio_ticks(low, high), labelExpr="format(datum.value, '~g') + '×'", labelOverlap=True)
    y = alt.Y("speedup:Q", title=f"speed-up over {reference} ({axis})", scale=scale, axis=y_axis)
    color = colors(algorithms, reference)
    base = alt.Chart(alt.NamedData(name="rungs"))
    titles = {"algorithm": "algorithm", "scale": "scale", "parameters": "parameters", "text": "speed-up", "verdict": "verdict"}
    tips = [alt.Tooltip(f"{name}:N", title=title) for name, title in titles.items()]
    one = alt.Chart(alt.Data(values=[{"speedup": 1}])).mark_rule(color=REFERENCE, strokeDash=[5, 4]).encode(y)
    bars = base.mark_rule(strokeWidth=3, strokeCap="round", opacity=0.55).encode(x, alt.Y("low:Q", scale=scale), alt.Y2("high:Q"), color)
    lines = base.mark_line(strokeWidth=2).encode(x, y, color)
    shapes = alt.Scale(domain=["", "<", ">", "?"], range=["circle", "triangle-down", "triangle-up", "diamond"])
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        x, y, color, tooltip=tips, shape=alt.Shape("bound:N", scale=shapes, legend=None)
    )
    return alt.layer(one, bars, lines, points).properties(width=520, height=260, datasets={"rungs": rows})


def specs(ladder: Ladder, reference: str, axis: str) -> dict[str, Any]:
    """The charts by the names that `sections` gave them."""
    names = _algorithms(ladder)
    return {
        f"scale-{i}": {"spec": chart([r for r in ladder.rungs if r.base == base], names, reference, axis).to_dict(), "switches": False}
        for i, base in enumerate(_bases(ladder))
    }


def sections(ladder: Ladder) -> str:
    """HTML, with places for the charts of `specs`."""
    cards = "".join(figure(f"scale-{i}", base or OVERALL, _caption(ladder, base)) for i, base in enumerate(_bases(ladder)))
    return "\n".join(
        [
            "<h2>Does it survive scale?</h2>",
            f'<div class="grid">{cards}</div>',
            table(*rows(ladder)),
            '<p class="soft">The same definitions with 4 and 16 times the parameters and the examples, and the same learning rates: an advantage may fade '
            "because a rate does not suit the size. Triangles are bounds, where a run missed its target. The change is that from the smallest to the "
            "largest scale, with a 95 % interval; the runs at two scales are different runs, so their spreads add.</p>",
        ]
    )


def rows(ladder: Ladder) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """(headings, rows): speed-ups by algorithm and workload over the scales, and the change of each algorithm."""
    scales = sorted({r.scale for r in ladder.rungs})
    found: list[list[str]] = []
    for algorithm in _algorithms(ladder):
        for base in _bases(ladder):
            own = {r.scale: times(r.speedup) for r in ladder.rungs if r.base == base and r.speedup.algorithm == algorithm}
            found.append([algorithm, base or OVERALL.lower(), *(own.get(s, MISSING) for s in scales), ""])
        found[-1][-1] = next(size(c) for c in ladder.changes if c.algorithm == algorithm)
    return ("algorithm", "workload", *(f"{s}x" for s in scales), "change"), found


def size(c: Change) -> str:
    """A change with its interval, as far as there is one: 0.93× [0.80, 1.08]."""
    if c.change is None:
        return MISSING
    return f"{ratio(c.change)}×" + (f" [{ratio(c.low)}, {ratio(c.high)}]" if c.low is not None and c.high is not None else "")


def notes(ladder: Ladder) -> list[str]:
    """A sentence for each algorithm."""
    return [
        f"From {c.first}x to {c.last}x the speed-up of {c.algorithm} on {joined(c.bases)} changes by {size(c)}: {c.verdict}."
        for c in ladder.changes
        if c.change is not None
    ]


def _bases(ladder: Ladder) -> list[str | None]:
    return list(dict.fromkeys(r.base for r in ladder.rungs))


def _algorithms(ladder: Ladder) -> list[str]:
    return list(dict.fromkeys(r.speedup.algorithm for r in ladder.rungs))


def _caption(ladder: Ladder, base: str | None) -> str:
    own = {r.scale: r.parameters for r in ladder.rungs if r.base == base}
    if base is None:
        scales = {r.scale for r in ladder.rungs}
        whole = [b for b in _bases(ladder) if b and {r.scale for r in ladder.rungs if r.base == b} == scales]
        return f"Geometric means over {joined(whole)}, which were raced at every scale."
    return "; ".join(f"{s}x: {quantity(p)} parameters" for s, p in own.items() if p)
