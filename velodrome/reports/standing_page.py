"""The sections of a page that a standing fills: three targets, profile, misses, all pairs, variants, tuning; and a page of them alone."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from velodrome.reports import standing_charts as charts
from velodrome.reports.cards import figure, table
from velodrome.reports.standing import Standing
from velodrome.reports.standing_words import duel_rows, level_rows, reached_rows, robust_rows
from velodrome.reports.words import unit

CURVES = 8  # charts of the best of k


def sections(s: Standing) -> str:
    """HTML, with places for the charts of `specs`."""
    axis, reference = escape(s.score.axis), escape(s.score.reference)
    parts = []
    if len(s.levels) > 1:
        parts += [
            "<h2>Three targets</h2>",
            table(*level_rows(s)),
            '<p class="soft">The same runs, read at an easy, a medium and a hard value of the metric. The hard target is the one that counts; a '
            "workload with fewer targets takes part where it has one.</p>",
        ]
    if s.over_best and len(s.over_best) > 1:
        names = (
            figure("profile-reference", f"Over {s.score.reference}", "Independent of who else entered."),
            figure(
                "profile-best",
                "Over the best",
                "The best on each workload: a line moves when somebody else enters, so this is a picture and no score.",
            ),
        )
        parts += ["<h2>On how many workloads</h2>", f'<div class="grid">{"".join(names)}</div>']
    parts += [
        "<h2>Hits and misses</h2>",
        table(*reached_rows(s)),
        f'<p class="soft">Restricted mean: the {unit(axis)} spent until the target within the horizon, as far as all algorithms of the workload are known; '
        "a miss counts as the horizon (Kaplan and Meier). Hit rates with 95 % intervals (Wilson).</p>",
    ]
    if s.duels:
        parts += [
            "<h2>Every algorithm against every other</h2>",
            table(*duel_rows(s)),
            f'<p class="soft">{len(s.duels)} comparisons: p-values are adjusted by Holm\'s procedure, so that the chance of any false call among them is '
            "at most 5 %. A miss counts at the budget and against who missed; — where both missed somewhere.</p>",
        ]
    if s.robust:
        parts += [
            "<h2>On variants of the workloads</h2>",
            table(*robust_rows(s)),
            f'<p class="soft">Speed-up over {reference} on the variants over that on their bases; below 1 the advantage is lost where the workload changes.'
            "</p>",
        ]
    if s.best:
        cards = "".join(figure(f"best-{i}", w, "") for i, w in enumerate(_tuned(s)))
        parts += [
            "<h2>What tuning buys</h2>",
            f'<div class="grid">{cards}</div>',
            '<p class="soft">Expected cost of the best of k trials drawn from those that were run, misses counting as the budget; all k have to be paid '
            "for. For k near the number of trials the ribbon is too narrow.</p>",
        ]
    return "\n".join(parts)


def specs(s: Standing) -> dict[str, Any]:
    """The charts by the names that `sections` gave them."""
    found: dict[str, Any] = {}
    if s.over_best and len(s.over_best) > 1:
        for name, steps, over in (("reference", s.over_reference, s.score.reference), ("best", s.over_best, "the best")):
            found[f"profile-{name}"] = {"spec": charts.profiles(steps, s.score.reference, over, s.score.axis).to_dict(), "switches": False}
    for i, w in enumerate(_tuned(s)):
        curves = {a: c for (workload, a), c in s.best.items() if workload == w}
        found[f"best-{i}"] = {"spec": charts.best_of(curves, s.score.reference, s.score.axis).to_dict(), "switches": False}
    return found


def _tuned(s: Standing) -> Sequence[str]:
    return list(dict.fromkeys(w for w, _ in s.best))[:CURVES]


def body(s: Standing, title: str, answer: str, speedups: tuple[Sequence[str], Sequence[Sequence[str]]], command: str) -> str:
    """A page of a score alone, without curves."""
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in s.notes)
    again = f"<h2>Do it again</h2><pre>{escape(command)}</pre>" if command else ""
    return f'<p class="kicker">{escape(title)}</p><h1>{escape(answer)}</h1>{notes}{table(*speedups)}{sections(s)}{again}'


def place(path: str | Path) -> str:
    """The title of a page about a file or folder."""
    return f"Velodrome score · {Path(path).name}"
