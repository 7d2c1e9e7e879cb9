"""Charts of a standing: performance profiles, and the expected best of k trials. Vega-Lite, as in `charts.py`."""

from collections.abc import Mapping, Sequence
from typing import Any

from velodrome.bench.best_of_k import Best
from velodrome.bench.profile import Step
from velodrome.reports.charts import PALETTE, REFERENCE, altair
from velodrome.reports.race import AXES
from velodrome.reports.words import unit

WIDEST = 16.0  # a profile is drawn up to this multiple: beyond it everything is "much slower"


def profiles(steps: Sequence[Step], reference: str, over: str, axis: str) -> Any:
    """The share of workloads within a multiple of the cost of `over` (the reference, or "the best"); to the left and higher is better."""
    alt = altair()
    ends = [t for s in steps for t in s.tau if t <= WIDEST] or [1.0]
    low, high = min(*ends, 0.9) / 1.05, max(*ends, 2.0) * 1.05
    rows = []
    for s in steps:
        rows.append({"algorithm": s.algorithm, "tau": low, "rho": s.at(low)})
        rows += [{"algorithm": s.algorithm, "tau": t, "rho": r} for t, r in zip(s.tau, s.rho, strict=True) if low < t <= high]
        rows.append({"algorithm": s.algorithm, "tau": high, "rho": s.at(high)})
    ticks = [t for t in (0.125, 0.25, 0.5, 0.7, 1, 1.4, 2, 3, 4, 6, 8, 12, 16) if low <= t <= high]
    x = alt.X(
        "tau:Q",
        title=f"multiple of the {unit(axis)} of {over}",
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(values=ticks, labelExpr="format(datum.value, '~g') + '×'", labelOverlap=True),
    )
    y = alt.Y("rho:Q", title="share of workloads", scale=alt.Scale(domain=[0, 1.02], nice=False), axis=alt.Axis(format="%", tickCount=5))
    tips = ["algorithm:N", alt.Tooltip("tau:Q", title="up to", format=".3~r"), alt.Tooltip("rho:Q", title="share", format=".0%")]
    lines = alt.Chart(alt.NamedData(name="profile")).encode(x, y, colors([s.algorithm for s in steps], reference), tooltip=tips)
    one = alt.Chart(alt.Data(values=[{"tau": 1}])).mark_rule(color=REFERENCE, strokeDash=[5, 4]).encode(x)
    drawn = alt.layer(one, lines.mark_line(interpolate="step-after", strokeWidth=2.2), lines.mark_point(filled=True, size=40, opacity=0.9))
    return drawn.resolve_scale(color="shared").properties(width=520, height=260).properties(datasets={"profile": rows})


def best_of(curves: Mapping[str, Sequence[Best]], reference: str, axis: str) -> Any:
    """Expected cost of the best of k trials of one workload, with ribbons: what tuning would have bought."""
    alt = altair()
    rows = [{"algorithm": a, "k": b.k, "cost": b.cost, "low": b.low, "high": b.high, "hit": b.hit} for a, c in curves.items() for b in c]
    x = alt.X("k:Q", title="trials", scale=alt.Scale(nice=False), axis=alt.Axis(tickMinStep=1, format="d"))
    title = f"expected {AXES.get(axis, unit(axis)).lower()} of the best"
    y = alt.Y("cost:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(format="~s", tickCount=5))
    color = colors(list(curves), reference)
    base = alt.Chart(alt.NamedData(name="best"))
    ribbon = base.mark_area(opacity=0.14).encode(x, alt.Y("low:Q", scale=alt.Scale(zero=False)), alt.Y2("high:Q"), color)
    tips = ["algorithm:N", "k:Q", alt.Tooltip("cost:Q", format=".4~s"), alt.Tooltip("hit:Q", title="chance of a hit", format=".0%")]
    line = base.mark_line(strokeWidth=2.2, point=alt.OverlayMarkDef(filled=True, size=36)).encode(x, y, color, tooltip=tips)
    return alt.layer(ribbon, line).properties(width=520, height=240).properties(datasets={"best": rows})


def colors(algorithms: Sequence[str], reference: str) -> Any:
    """The palette, the reference in grey."""
    alt = altair()
    others = [a for a in algorithms if a != reference]
    shade = {a: PALETTE[i % len(PALETTE)] for i, a in enumerate(others)} | {reference: REFERENCE}
    legend = alt.Legend(orient="top", title=None, columns=3, symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1)
    return alt.Color("algorithm:N", scale=alt.Scale(domain=list(algorithms), range=[shade[a] for a in algorithms]), legend=legend)
