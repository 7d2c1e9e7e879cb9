"""The page of a look inside: findings first, then charts, examples and all readings; one HTML file."""

import base64
import struct
import zlib
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from velodrome.reports import charts
from velodrome.reports.html import figure, page
from velodrome.reports.inside import Chart, Gallery, Inside, Reading, Said, Shown, interval, number

CLASSES = {"sick": "slower", "watch": "watch", "remark": "soft", "fine": "faster"}
MARKS = {"sick": "sick", "watch": "watch", "remark": "remark", "fine": "fine"}


def write(path: Path, inside: Inside) -> Path:
    """Write the page; ValueError without Altair and vl-convert."""
    specs = {chart.name: {"spec": drawn(chart).to_dict()} for chart in inside.charts}
    return page(path, inside.title, body(inside), specs)


def body(inside: Inside) -> str:
    """The page between its frame."""
    cards = "".join(figure(c.name, c.title, c.caption) for c in inside.charts)
    notes = "".join(f'<p class="soft">Note: {escape(note)}.</p>' for note in inside.notes)
    about = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in inside.about.items())
    return "\n".join(
        [
            f'<p class="kicker">{escape(inside.title)} · from {escape(inside.origin)}</p>',
            f"<h1>{escape(inside.answer)}</h1>",
            f'<div class="findings">{"".join(map(_finding, inside.findings))}</div>' if inside.findings else "",
            notes,
            f'<div class="grid">{cards}</div>' if cards else "",
            "".join(map(_gallery, inside.galleries)),
            _readings(inside.readings),
            f"<h2>Do it again</h2><pre>{escape(inside.command)}</pre><dl>{about}</dl>",
        ]
    )


def _finding(said: Said) -> str:
    advice = f' <span class="soft">{escape(said.advice)}</span>' if said.advice else ""
    return f'<p class="finding {said.level}"><b>{MARKS[said.level]}</b> {escape(said.sentence)}{advice}</p>'


def _readings(readings: Sequence[Reading]) -> str:
    if not readings:
        return ""
    head = "".join(f'<th scope="col">{h}</th>' for h in ("", "value", "verdict", "95 % interval or bound", "unit", "from"))
    rows = []
    for topic, group in groupby(readings, key=lambda r: r.topic):
        rows.append(f'<tr class="group"><th colspan="6" scope="rowgroup">{escape(topic)}</th></tr>')
        rows += [_row(r) for r in group]
    text = (
        "Brackets: a 95 % interval. ±: a bound that is proven. Neither: exact but for rounding. A dash: the data do not identify the number, and the "
        "verdict says why. From: how many draws, examples or batches the interval rests on."
    )
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    return f'<h2>All readings</h2><div class="readings">{table}</div><p class="soft">{text}</p>'


def _row(r: Reading) -> str:
    where = f" <small>{escape(r.where)}</small>" if r.where else ""
    verdict = f'<td class="{CLASSES[r.level]} words">{escape(r.verdict or r.note)}</td>'
    source = "" if r.kind == "exact" else f"{r.n:,}"
    cells = f"<td>{number(r.value)}</td>{verdict}<td>{interval(r)}</td><td>{escape(r.unit)}</td><td>{source}</td>"
    return f"<tr><td>{escape(r.what)}{where}</td>{cells}</tr>"


def _gallery(gallery: Gallery) -> str:
    cards = "".join(map(_example, gallery.examples))
    caption = f'<p class="soft">{escape(gallery.caption)}</p>' if gallery.caption else ""
    return f'<h2>{escape(gallery.title)}</h2>{caption}<div class="examples">{cards}</div>'


def _example(shown: Shown) -> str:
    inside = ""
    if shown.picture is not None:
        inside = f'<img src="{escape(shown.picture)}" alt="{escape(shown.label)}">'
    elif shown.text is not None:
        inside = f"<code>{escape(shown.text)}</code>"
    caption = f'<span class="soft">{escape(shown.caption)}</span>' if shown.caption else ""
    return f'<figure class="card example">{inside}<figcaption>{escape(shown.label)} {caption}</figcaption></figure>'


def drawn(chart: Chart) -> Any:
    """The Vega-Lite picture of a chart's data."""
    return {"lines": lines, "points": lines, "dots": dots, "heat": heat}[chart.kind](chart)


def lines(chart: Chart) -> Any:
    """Lines with bands where there are lows and highs, over a linear or logarithmic axis, and rules with labels."""
    alt = charts.altair()
    rows = [{"series": "", **row} for row in chart.rows]
    names = list(dict.fromkeys(row["series"] for row in rows))
    scale_x, scale_y = (
        alt.Scale(type="log" if log else "linear", nice=False, zero=False, **({} if log else {"padding": 4}))
        for log in (chart.log_x, chart.log_y)
    )
    x = alt.X(
        "x:Q", title=chart.x, scale=scale_x, axis=alt.Axis(tickCount=5, format="~g" if chart.log_x else "~s", labelOverlap=True, grid=False)
    )
    axis = alt.Axis(tickCount=5, format="~g", labelOverlap=True)
    y = alt.Y("y:Q", title=chart.y, scale=scale_y, axis=axis)
    legend = alt.Legend(orient="top", title=None, columns=2, labelLimit=260) if len(names) > 1 else None
    shades = [charts.PALETTE[i % len(charts.PALETTE)] for i in range(len(names))]
    color = alt.Color("series:N", scale=alt.Scale(domain=names, range=shades), legend=legend)
    tips = [alt.Tooltip("x:Q", title=chart.x, format=".4~g"), alt.Tooltip("y:Q", title=chart.y, format=".4~g")]
    tips += [alt.Tooltip("series:N", title="")] if len(names) > 1 else []
    base = alt.Chart(alt.Data(values=rows))
    layers = []
    if any(row.get("low") is not None for row in rows):
        valid = base.transform_filter("isValid(datum.low) && isValid(datum.high)")
        if chart.kind == "points" or len(rows) < 2 * len(names) + 1:
            layers.append(valid.mark_rule(strokeWidth=2, opacity=0.5).encode(x, alt.Y("low:Q", scale=scale_y), alt.Y2("high:Q"), color))
        else:
            layers.append(valid.mark_area(opacity=0.18).encode(x, alt.Y("low:Q", scale=scale_y), alt.Y2("high:Q"), color))
    if chart.kind == "lines":
        layers.append(base.mark_line(strokeWidth=2).encode(x, y, color))
    size = 60 if chart.kind == "points" or len(rows) <= 60 else 8
    layers.append(base.mark_point(filled=True, size=size, opacity=1).encode(x, y, color, tooltip=tips))
    for rule in chart.rules:
        mark = alt.Chart(alt.Data(values=[dict(rule)]))
        layers.append(mark.mark_rule(strokeDash=[5, 4], color=charts.REFERENCE).encode(alt.Y("y:Q", scale=scale_y)))
        layers.append(
            mark.mark_text(align="left", dx=6, dy=-7, color=charts.REFERENCE).encode(
                alt.Y("y:Q", scale=scale_y), x=alt.value(0), text="label:N"
            )
        )
    return alt.layer(*layers).properties(height=240)


def dots(chart: Chart) -> Any:
    """A dot for each name with a line from low to high; rules stand upright."""
    alt = charts.altair()
    rows = [dict(row) for row in chart.rows]
    scale = alt.Scale(type="log" if chart.log_y else "linear", nice=False, zero=False, padding=12)
    axis = alt.Axis(tickCount=5, format="~g", labelOverlap=True)
    base = alt.Chart(alt.Data(values=rows)).encode(y=alt.Y("name:N", sort=None, title=None, axis=alt.Axis(labelLimit=190, grid=False)))
    tips = [
        alt.Tooltip("name:N", title=""),
        *(alt.Tooltip(f"{k}:Q", format=".3~g", title=t) for k, t in (("y", chart.y), ("low", "low"), ("high", "high"))),
    ]
    blue = alt.value(charts.PALETTE[0])
    layers = []
    if any(row.get("low") is not None for row in rows):
        valid = base.transform_filter("isValid(datum.low) && isValid(datum.high)")
        layers.append(
            valid.mark_rule(strokeWidth=3, opacity=0.35).encode(x=alt.X("low:Q", scale=scale, title=chart.y), x2="high:Q", color=blue)
        )
    layers.append(
        base.mark_point(filled=True, size=70, opacity=1).encode(
            x=alt.X("y:Q", title=chart.y, scale=scale, axis=axis), color=blue, tooltip=tips
        )
    )
    for rule in chart.rules:
        mark = alt.Chart(alt.Data(values=[dict(rule)]))
        layers.append(mark.mark_rule(strokeDash=[5, 4], color=charts.REFERENCE).encode(x=alt.X("y:Q", scale=scale), tooltip=["label:N"]))
    return alt.layer(*layers).properties(height=max(60, 20 * len(rows)))


def heat(chart: Chart) -> Any:
    """A table of layers by quantities; each column has its own shade from its lowest to its highest value, the text says the number."""
    alt = charts.altair()
    rows = [dict(row) for row in chart.rows]
    columns = list(dict.fromkeys(row["column"] for row in rows))
    for column in columns:
        values = [row["value"] for row in rows if row["column"] == column and row["value"] is not None]
        low, high = (min(values), max(values)) if values else (0.0, 0.0)
        for row in rows:
            if row["column"] == column:
                row["shade"] = None if row["value"] is None else 0.5 if high == low else (row["value"] - low) / (high - low)
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X(
            "column:N",
            sort=columns,
            title=None,
            axis=alt.Axis(orient="top", labelAngle=0, domain=False, ticks=False, labelLimit=110, labelPadding=6),
        ),
        y=alt.Y("name:N", sort=None, title=None, axis=alt.Axis(labelLimit=190, domain=False, ticks=False)),
    )
    shade = alt.Opacity("shade:Q", scale=alt.Scale(domain=[0, 1], range=[0.04, 0.55]), legend=None)
    squares = (
        base.transform_filter("isValid(datum.shade)").mark_rect(color=charts.PALETTE[0], cornerRadius=3, stroke=None).encode(opacity=shade)
    )
    words = base.mark_text(fontSize=11).encode(text="text:N")
    return alt.layer(squares, words).properties(height=max(60, 24 * len({row["name"] for row in rows})))


def picture(pixels: Any) -> str:
    """A data URI of a PNG (ISO/IEC 15948) from numbers (height, width) or (height, width, 3), stretched from their least to their greatest."""
    array = np.asarray(pixels, dtype=float)
    low, high = float(array.min()), float(array.max())
    array = np.round(255 * (array - low) / (high - low or 1.0)).astype(np.uint8)
    height, width = array.shape[:2]
    colour = 2 if array.ndim == 3 else 0
    lines_ = b"".join(b"\0" + array[i].tobytes() for i in range(height))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines_, 9)) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"
