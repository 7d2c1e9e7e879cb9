"""The chart of a board: a row per algorithm, its speed-up on each cost with the interval. Rows carry the names, so that no colour has to."""

from typing import Any

from velodrome.reports.board import Board, named, order
from velodrome.reports.charts import REFERENCE, altair
from velodrome.reports.words import times

SHADES = ("#0072B2", "#E69F00", "#009E73")  # Okabe and Ito, as in charts.py
SHAPES = {"": "circle", "<": "triangle-left", ">": "triangle-right", "?": "diamond"}


def overall(b: Board) -> Any:
    """Speed-ups over the reference, fastest first, on a log axis with a line at 1; triangles are bounds, where a run missed its target."""
    alt = altair()
    scores = {b.race.score.axis: b.race.score} | dict(b.also)
    rows = [
        {
            "algorithm": s.algorithm,
            "cost": named(axis),
            "speedup": s.speedup,
            "low": s.speedup if s.low is None else s.low,
            "high": s.speedup if s.high is None else s.high,
            "bound": s.bound,
            "text": times(s),
        }
        for axis, score in scores.items()
        for s in score.overall
        if s.speedup is not None
    ]
    ends = [float(e) for r in rows for e in (r["low"], r["high"]) if isinstance(e, float)] or [1.0]
    low, high = min(*ends, 0.8) / 1.08, max(*ends, 1.25) * 1.08
    ticks = [t for t in (0.03, 0.06, 0.125, 0.25, 0.5, 0.7, 1, 1.4, 2, 3, 4, 8, 16) if low <= t <= high]
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    axis = alt.Axis(values=ticks, labelExpr="format(datum.value, '~g') + '×'", labelOverlap=True)
    x = alt.X("speedup:Q", title=f"speed-up over {b.race.score.reference}", scale=scale, axis=axis)
    labels = alt.Axis(ticks=False, domain=False, labelPadding=10, labelFontSize=13, labelLimit=220)
    y = alt.Y("algorithm:N", sort=[s.algorithm for s in order(b)], title=None, scale=alt.Scale(paddingInner=0.3), axis=labels)
    costs = [named(axis) for axis in scores]
    offset = alt.YOffset("cost:N", sort=costs)
    legend = alt.Legend(orient="top", title=None, symbolType="circle")
    color = alt.Color("cost:N", scale=alt.Scale(domain=costs, range=list(SHADES[: len(costs)])), legend=legend, sort=costs)
    base = alt.Chart(alt.NamedData(name="board"))
    one = alt.Chart(alt.Data(values=[{"speedup": 1}])).mark_rule(color=REFERENCE, strokeDash=[5, 4]).encode(x)
    bars = base.mark_rule(strokeWidth=3, strokeCap="round").encode(
        x=alt.X("low:Q", scale=scale), x2="high:Q", y=y, yOffset=offset, color=color
    )
    tips = [alt.Tooltip("algorithm:N"), alt.Tooltip("cost:N"), alt.Tooltip("text:N", title="speed-up")]
    shapes = alt.Scale(domain=list(SHAPES), range=list(SHAPES.values()))
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        x, y, color, yOffset=offset, tooltip=tips, shape=alt.Shape("bound:N", scale=shapes, legend=None)
    )
    height = max(80, 34 * len(b.race.score.overall))
    return alt.layer(one, bars, points, datasets={"board": rows}).properties(width=620, height=height)
