"""Charts of a race as Vega-Lite specifications (Altair 6, Vega-Lite 6): validation curves, speed-up intervals, time split; PNG and SVG by suffix.

Colours: Okabe and Ito 2008, "Color Universal Design", https://jfly.uni-koeln.de/color/, distinguishable with every common colour blindness; the
reference is grey. Zooming needs the Alt key and a mouse, so that scrolling and swiping over a chart move the page.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from velodrome.reports.race import AXES, Curve, Race, Task
from velodrome.reports.words import MISSING, digits, ratio, times, unit

PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
NIGHT = {"#0072B2": "#3F97DB"}  # the palette's blue has a contrast of 3.2 on a dark page, this one of 5
REFERENCE = "#8a8a8a"
PARTS = {"data": "#56B4E9", "gradient": "#8a8f99", "optimizer": "#E69F00"}
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
OVERALL = "overall"


def altair() -> Any:
    """The altair module; a ValueError naming the extra where it is not installed."""
    try:
        import altair as alt
        import vl_convert  # noqa: F401  (PNG, SVG and the page's scripts come from it)
    except ImportError as e:
        raise ValueError(f'charts need {e.name}, which is not installed: pip install "velodrome[report]".') from e
    return alt


def curves(race: Race, task: Task, axis: str = "steps") -> Any:
    """Validation metric over one cost axis: one thin line per seed, median and min-max ribbon while all seeds run, target line, hits as dots."""
    alt = altair()
    if axis not in AXES:
        raise ValueError(f"unknown axis {axis!r}: choose one of {', '.join(AXES)}.")
    runs = [c for c in race.curves if c.workload == task.name]
    x = alt.X(
        f"{axis}:Q",
        title=AXES[axis],
        axis=alt.Axis(format=_tick(axis), tickCount=5, labelOverlap=True),
        scale=alt.Scale(nice=False, zero=True),
    )
    scale = alt.Scale(nice=False, **_window(runs, task))
    y = alt.Y("valid:Q", title=task.metric, scale=scale, axis=alt.Axis(tickCount=6, format="~r"))
    color = _color(
        alt, race, legend=alt.Legend(orient="top", title=None, symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1, columns=4)
    )
    chosen = alt.selection_point(name="chosen", fields=["algorithm"], bind="legend")
    zoom = alt.selection_interval(
        name="zoom",
        bind="scales",
        zoom="wheel![event.altKey]",
        translate="[mousedown, window:mouseup] > window:mousemove!",
    )

    def shown(full: float, faint: float = 0.06) -> Any:
        return alt.condition(chosen, alt.value(full), alt.value(faint))

    middle = alt.Chart(alt.NamedData(name="median"))
    names = ("algorithm", *(a for a in AXES if any(len(getattr(c, a)) for c in runs)), "valid", "lowest", "highest", "seeds")
    titles = {"valid": f"median {task.metric}"} | {a: title.lower() for a, title in AXES.items()}
    kind = {"algorithm": "nominal"}
    tips = [alt.Tooltip(n, title=titles.get(n, n), type=kind.get(n, "quantitative"), format=_tip(n)) for n in names]
    ribbon = middle.mark_area(clip=True).encode(x, alt.Y("lowest:Q", scale=scale), alt.Y2("highest:Q"), color, opacity=shown(0.16))
    median = middle.mark_line(clip=True, strokeWidth=2.4).encode(x, y, color, opacity=shown(1)).add_params(chosen, zoom)
    hover = middle.mark_point(clip=True, filled=True, size=140).encode(x, y, color, opacity=alt.value(0), tooltip=tips)
    seeds = alt.Chart(alt.NamedData(name="seeds")).mark_line(clip=True, strokeWidth=1)
    each = seeds.encode(x, y, color, detail="seed:N", opacity=shown(0.45))
    goal = alt.Chart(alt.NamedData(name="target"))
    line = goal.mark_rule(strokeDash=[5, 4], color=REFERENCE).encode(alt.Y("valid:Q", scale=scale))
    label = goal.mark_text(align="left", dx=6, dy=10 if task.lower_is_better else -8, color=REFERENCE).encode(
        alt.Y("valid:Q", scale=scale), x=alt.value(0), text="label:N"
    )
    hits = [
        {"algorithm": t.algorithm, "seed": t.seed, "valid": task.target, **t.cost}
        for t in race.trials
        if t.workload == task.name and t.reached
    ]
    spent = [alt.Tooltip(a, title=AXES[a].lower(), format=_tip(a), type="quantitative") for a in AXES if any(a in hit for hit in hits)]
    tips = [alt.Tooltip("algorithm:N", title="target reached by"), alt.Tooltip("seed:N"), *spent]
    dots = alt.Chart(alt.NamedData(name="hits")).mark_point(filled=True, size=60, stroke="white", strokeWidth=1, clip=True)
    marks = dots.encode(x, y, color, tooltip=tips, opacity=shown(1))
    tables = {
        "median": list(_median(race, runs)),
        "seeds": list(_seeds(runs)),
        "target": [{"valid": task.target, "label": f"target {digits(task.target)}"}],
        "hits": hits,
    }
    return alt.layer(ribbon, each, line, label, median, hover, marks, datasets=tables).properties(width=520, height=300)


def intervals(race: Race) -> Any:
    """Speed-up over the reference with its interval, per workload and overall, on a log axis with a line at 1; triangles are one-sided bounds."""
    alt = altair()
    rows = [
        {
            "workload": s.workload or OVERALL,
            "algorithm": s.algorithm,
            "speedup": s.speedup,
            "low": s.speedup if s.low is None else s.low,
            "high": s.speedup if s.high is None else s.high,
            "bound": s.bound,
            "text": times(s),
            "p": MISSING if s.p_faster is None else f"{s.p_faster:.3f}",
            "verdict": s.verdict,
        }
        for s in (*race.score.cells, *race.score.overall)
        if s.speedup is not None
    ]
    order = [*(t.name for t in race.workloads), OVERALL]
    others = [a for a in race.algorithms if a != race.score.reference]
    ends = [float(e) for r in rows for e in (r["low"], r["high"]) if isinstance(e, float)] or [1.0]
    low, high = min(*ends, 0.8) / 1.08, max(*ends, 1.25) * 1.08
    ticks = ratio_ticks(low, high)
    axis = alt.Axis(values=ticks, format="~g", labelExpr="format(datum.value, '~g') + '×'", labelOverlap=True)
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    x = alt.X("speedup:Q", title=f"speed-up over {race.score.reference} ({unit(race.score.axis)} to target)", scale=scale, axis=axis)
    y = alt.Y(
        "workload:N",
        sort=order,
        title=None,
        scale=alt.Scale(paddingInner=0.35, paddingOuter=0.15),
        axis=alt.Axis(ticks=False, domain=False, labelPadding=10, labelFontSize=13),
    )
    offset = alt.YOffset("algorithm:N", sort=others)
    titles = {"algorithm": "algorithm", "workload": "workload", "text": "speed-up", "p": "P(faster)", "verdict": "verdict"}
    tips = [alt.Tooltip(f"{name}:N", title=title) for name, title in titles.items()]
    color = _color(alt, race, legend=alt.Legend(orient="top", title=None, columns=4, values=others, symbolType="circle"))
    base = alt.Chart(alt.NamedData(name="speedups"))
    one = alt.Chart(alt.Data(values=[{"speedup": 1}])).mark_rule(color=REFERENCE, strokeDash=[5, 4]).encode(x)
    bars = base.mark_rule(strokeWidth=3, strokeCap="round").encode(
        x=alt.X("low:Q", scale=scale), x2="high:Q", y=y, yOffset=offset, color=color
    )
    shapes = alt.Scale(domain=["", "<", ">", "?"], range=["circle", "triangle-left", "triangle-right", "diamond"])
    points = base.mark_point(filled=True, size=110, opacity=1).encode(
        x, y, color, yOffset=offset, tooltip=tips, shape=alt.Shape("bound:N", scale=shapes, legend=None)
    )
    return alt.layer(one, bars, points, datasets={"speedups": rows}).properties(
        width=520, height=max(80, len(order) * (len(others) * 18 + 16))
    )


def time_split(race: Race, task: Task) -> Any:
    """Milliseconds per step spent waiting for data, on the gradient and in the optimizer, stacked, one bar per algorithm."""
    alt = altair()
    rows = [
        {"algorithm": s.algorithm, "part": part, "order": i, "ms": 1000 * getattr(s, part) / s.steps}
        for s in race.splits
        if s.workload == task.name and s.steps > 0
        for i, part in enumerate(PARTS)
    ]
    color = alt.Color(
        "part:N",
        scale=alt.Scale(domain=list(PARTS), range=list(PARTS.values())),
        legend=alt.Legend(orient="top", title=None, symbolType="square"),
    )
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_bar(height={"band": 0.72})
        .encode(
            x=alt.X("ms:Q", title="milliseconds per step", axis=alt.Axis(tickCount=5, format="~r")),
            y=alt.Y("algorithm:N", sort=list(race.algorithms), title=None, axis=alt.Axis(ticks=False, domain=False, labelPadding=8)),
            color=color,
            order="order:Q",
            tooltip=["algorithm:N", "part:N", alt.Tooltip("ms:Q", title="ms per step", format=".3~g")],
        )
        .properties(width=520, height=28 * len(race.algorithms) + 8)
    )


def save(chart: Any, path: str | Path) -> Path:
    """Write a chart as .png (2 x), .svg or .json, by suffix; ValueError for another suffix."""
    path = Path(path)
    if path.suffix not in (".png", ".svg", ".json"):
        raise ValueError(f"cannot write a chart as {path.suffix or path.name!r}: use a name that ends in .png, .svg or .json.")
    chart = chart.configure(**theme(dark=False) | {"background": "white"})
    if path.suffix == ".png":
        chart.save(str(path), scale_factor=2)
    else:
        chart.save(str(path))
    return path


def theme(dark: bool) -> dict[str, Any]:
    """Vega configuration for a light or a dark page: no frames, faint grid, the page's font and text colours."""
    text, faint, grid = ("#d6d9de", "#9aa0aa", "#2c3038") if dark else ("#22262c", "#646b76", "#e9ebee")
    return {
        "background": "transparent",
        "font": FONT,
        "view": {"stroke": None},
        "axis": {"labelColor": faint, "titleColor": faint, "gridColor": grid, "domainColor": grid, "tickColor": grid}
        | {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal", "titlePadding": 8},
        "axisY": {"labelColor": text},
        "legend": {"labelColor": text, "labelFontSize": 12, "symbolSize": 120, "offset": 8, "columnPadding": 16, "labelLimit": 140},
        "text": {"fontSize": 11, "color": text},
    }


def axes() -> dict[str, dict[str, str]]:
    """Title and tick format of every cost axis, for the page's axis switch."""
    return {axis: {"title": title, "format": _tick(axis)} for axis, title in AXES.items()}


def _color(alt: Any, race: Race, legend: Any) -> Any:
    others = [a for a in race.algorithms if a != race.score.reference]
    shade = {a: PALETTE[i % len(PALETTE)] for i, a in enumerate(others)} | {race.score.reference: REFERENCE}
    domain = list(race.algorithms)
    return alt.Color("algorithm:N", scale=alt.Scale(domain=domain, range=[shade.get(a, REFERENCE) for a in domain]), legend=legend)


def _window(runs: Sequence[Curve], task: Task) -> dict[str, Any]:
    """Metric range: from the best value to the worst first evaluation, logarithmic where a positive, lower-is-better metric spans a factor of 3."""
    values = np.concatenate([np.asarray(c.valid, dtype=float) for c in runs] + [np.array([task.target])])
    starts = [c.valid[0] for c in runs if len(c.valid) and np.isfinite(c.valid[0])] + [task.target]
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), max(starts)) if task.lower_is_better else (min(starts), float(values.max()))
    if task.lower_is_better and low > 0 and high > 3 * low:
        return {"type": "log", "domain": [low / 1.06, high * 1.02]}
    pad = 0.03 * (high - low) or 1.0
    return {"type": "linear", "zero": False, "domain": [low - pad, high + pad]}


def _seeds(runs: Sequence[Curve]) -> Iterator[dict[str, Any]]:
    for c in runs:
        costs = {a: getattr(c, a) for a in AXES if len(getattr(c, a))}
        for i, v in enumerate(c.valid):
            if not np.isfinite(v):
                break
            yield {"algorithm": c.algorithm, "seed": c.seed, "valid": _short(v), **{a: _short(cost[i]) for a, cost in costs.items()}}


def _median(race: Race, runs: Sequence[Curve]) -> Iterator[dict[str, Any]]:
    for algorithm in race.algorithms:
        mine = [c for c in runs if c.algorithm == algorithm and len(c.valid)]
        for i in range(min((len(c.valid) for c in mine), default=0)):
            values = [c.valid[i] for c in mine]
            if not np.isfinite(values).all():
                break  # a median over the seeds that survived would flatter the algorithm
            costs = {a: _short(np.median([getattr(c, a)[i] for c in mine])) for a in AXES if all(len(getattr(c, a)) for c in mine)}
            ends = {"lowest": _short(min(values)), "highest": _short(max(values))}
            yield {"algorithm": algorithm, "valid": _short(np.median(values)), **ends, "seeds": len(mine), **costs}


def _short(x: Any) -> float:
    return float(f"{x:.5g}")


def _tick(axis: str) -> str:
    """d3-format: SI prefixes for counts, plain numbers for seconds (0.2 rather than 200m; "g" would write 1e+1 where ticks are coarse)."""
    return "~r" if axis == "seconds" else "~s"


def _tip(name: str) -> Any:
    return "" if name == "algorithm" else "d" if name == "seeds" else ".4" + (_tick(name) if name in AXES else "~g")


def ratio_ticks(low: float, high: float) -> list[float]:
    """Ratios a reader recognises; on a wide axis powers of two only."""
    fine = [0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 1.75, 2]
    coarse = [float(ratio(2.0**k)) for k in range(-10, 11)]
    return [t for t in (fine if high / low < 4 else coarse) if low <= t <= high]
