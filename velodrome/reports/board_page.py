"""A board as one HTML file: the table, the chart, every workload, all pairs, variants, tuning, and how to repeat it."""

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from velodrome.bench.profile import Step
from velodrome.reports import charts, html, standing_page, tuned
from velodrome.reports.board import RULES, Board, board_rows, cell_rows, named, order
from velodrome.reports.board_charts import overall
from velodrome.reports.board_words import counted, leader, reading
from velodrome.reports.cards import figure, table
from velodrome.reports.race import Race
from velodrome.reports.standing import Standing

DRAWN = len(charts.PALETTE)  # lines of a chart that colours can tell apart, beside the reference


def write(path: Path, b: Board) -> Path:
    """Write the page; errors as `html.write`."""
    few = drawn(b)
    return html.page(path, b.race.title, _body(b, few), _specs(b, few))


def drawn(b: Board) -> Race:
    """The race with the reference and the fastest algorithms alone, as many as have a colour of their own: what the charts of lines show."""
    names = {b.race.score.reference, *(s.algorithm for s in order(b)[:DRAWN])}
    kept = [a for a in b.race.algorithms if a in names]
    told = b.race.standing
    return replace(
        b.race,
        algorithms=kept,
        curves=[c for c in b.race.curves if c.algorithm in names],
        trials=[t for t in b.race.trials if t.algorithm in names],
        standing=None if told is None else _profiled(told, kept),
    )


def _profiled(s: Standing, names: Sequence[str]) -> Standing:
    def kept(steps: Sequence[Step]) -> list[Step]:
        return [x for x in steps if x.algorithm in names]

    best = {key: curve for key, curve in s.best.items() if key[1] in names}
    return replace(s, over_reference=kept(s.over_reference), over_best=kept(s.over_best), best=best)


def _body(b: Board, few: Race) -> str:
    race, score = b.race, b.race.score
    counts = [(len(race.algorithms), "algorithm"), (len(race.workloads), "workload"), (len({t.seed for t in race.trials}), "seed")]
    kicker = " · ".join([race.title, RULES.get(b.rules, b.rules), *(counted(n, what) for n, what in counts)])
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in race.notes)
    cards = "".join(
        figure(f"curves-{i}", w.name, f"{w.summary.rstrip('. ')}. Budget {w.budget:,} steps.") for i, w in enumerate(race.workloads)
    )
    timed = {s.workload for s in race.splits}
    splits = "".join(figure(f"split-{i}", w.name, "") for i, w in enumerate(race.workloads) if w.name in timed)
    shown = "the reference and the fastest algorithms" if len(few.algorithms) < len(race.algorithms) else "all algorithms"
    told = race.standing
    sections = standing_page.sections(replace(told, best=few.standing.best if few.standing else {})) if told else ""
    entries = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in race.environment.items())
    return "\n".join(
        [
            f'<p class="kicker">{escape(kicker)}</p>',
            f"<h1>{escape(leader(b))}</h1>",
            table(*board_rows(b)),
            *(f'<p class="soft">{escape(line)}</p>' for line in reading(b)),
            f'<div class="grid">{figure("board", "", "95 % intervals. Right of 1×: faster. Triangles are bounds, where a run missed its target.")}</div>',
            "<h2>Workload by workload</h2>",
            table(*cell_rows(b)),
            f'<p class="soft">Speed-up in {escape(named(score.axis))}. ≤ and ≥: bounds, where a run missed; —: all missed, or no cost.</p>',
            "<h2>On the way to the target</h2>",
            html.switch(race),
            f'<div class="grid">{cards}</div>',
            f'<p class="soft">Drawn: {shown}. Bold: median while all seeds run. Dots: where a seed reached the target.</p>',
            tuned.section(race.tuning) if race.tuning else "",
            sections,
            f'<h2>Where the time went</h2><div class="grid">{splits}</div>' if splits else "",
            "<h2>Notes</h2>" + notes if notes else "",
            f"<h2>Do it again</h2><pre>{escape(race.command)}</pre><dl>{entries}</dl>",
        ]
    )


def _specs(b: Board, few: Race) -> dict[str, Any]:
    race = b.race
    specs: dict[str, Any] = {"board": {"spec": overall(b).to_dict(), "switches": False}}
    specs |= {f"curves-{i}": {"spec": charts.curves(few, w).to_dict(), "switches": True} for i, w in enumerate(race.workloads)}
    timed = {s.workload for s in race.splits}
    specs |= {f"split-{i}": {"spec": charts.time_split(race, w).to_dict()} for i, w in enumerate(race.workloads) if w.name in timed}
    return specs | (standing_page.specs(few.standing) if few.standing else {})
