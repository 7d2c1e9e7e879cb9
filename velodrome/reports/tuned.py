"""What external tuning bought and cost, in both prices: the fastest trial of each study, and all of its trials together."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from velodrome.bench.rules.studies import fastest, paid, studies
from velodrome.bench.score import Score, Trial, speedups
from velodrome.reports.cards import table
from velodrome.reports.words import times


@dataclass(frozen=True)
class Tuning:
    """External tuning: of each study at `most` this many trials; `trials` and `hits` by algorithm; speed-ups by the fastest trial and by what all
    trials of a study cost together (`paid`); `winners` are (workload, seed, recipe, number) of the trials that counted."""

    most: int
    trials: Mapping[str, int]
    hits: Mapping[str, int]
    fastest: Score
    paid: Score
    winners: Sequence[tuple[str, int, str, int]] = ()

    def to_json(self) -> dict[str, Any]:
        """Dictionaries, lists, strings and numbers."""
        return {
            "trials_per_study": self.most,
            "trials": dict(self.trials),
            "hits": dict(self.hits),
            "fastest": [asdict(s) for s in self.fastest.overall],
            "all": [asdict(s) for s in self.paid.overall],
            "winners": [{"workload": w, "seed": s, "recipe": r, "trial": t} for w, s, r, t in self.winners],
        }


def tuning(every: Sequence[Trial], recipes: Mapping[int, str], reference: str, axis: str) -> Tuning | None:
    """From all trials; None where nothing was tuned. `recipes` has the recipe of each trial by id."""
    if all(t.trial is None for t in every):
        return None
    first = fastest(every, axis)
    counts: dict[str, list[Trial]] = {}
    for t in every:
        counts.setdefault(t.algorithm, []).append(t)
    return Tuning(
        most=max(len(study) for study in studies(every).values()),
        trials={a: len(ts) for a, ts in counts.items()},
        hits={a: sum(t.reached for t in ts) for a, ts in counts.items()},
        fastest=speedups(first, reference, axis),
        paid=speedups(paid(every), reference, axis),
        winners=[(t.workload, t.seed, recipes[id(t)], t.trial or 1) for t in first],
    )


def rows_of(tuning: Tuning) -> tuple[Sequence[str], list[list[str]]]:
    """(headings, rows): trials, hits, and the speed-up by the fastest trial and by all together."""
    first, paid = ({s.algorithm: s for s in score.overall} for score in (tuning.fastest, tuning.paid))
    reference = tuning.fastest.reference
    rows = [
        [a, str(n), str(tuning.hits[a]), *(("1 (reference)",) * 2 if a == reference else (times(first[a]), times(paid[a])))]
        for a, n in tuning.trials.items()
    ]
    return ("tuning", "trials", "hits", f"fastest of {tuning.most}", f"all {tuning.most} paid"), rows


def said(tuning: Tuning) -> str:
    """What the two prices are, in a sentence."""
    return (
        f"External tuning: of each seed's {tuning.most} trials the fastest counts. All paid: speed-up in what all of them cost together, each until its "
        "target, or its budget where it missed."
    )


def section(tuning: Tuning) -> str:
    """The part of a page."""
    return f'<h2>What tuning cost</h2>{table(*rows_of(tuning))}<p class="soft">{escape(said(tuning))}</p>'
