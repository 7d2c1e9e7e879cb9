r"""AlgoPerf's score as its competition defined it, from raw logs, and how far it can be trusted (Dahl et al. 2023, https://arxiv.org/abs/2306.07179;
results: Kasimbeg et al. 2025, https://arxiv.org/abs/2502.15015).

Of every study the fastest trial counts, of every workload the median over studies, a miss being infinite. With $r_{a,w} = t_{a,w} / \min_b t_{b,w}$
an entrant's score is $\frac13 \int_1^4 \rho_a(\tau)\,d\tau$, $\rho_a(\tau)$ the share of base workloads with $r_{a,w} \le \tau$, by the trapezoid rule
on 100 points. In version 0.5 a base workload counts only if its held-out variants were solved too, within four times the fastest of those who solved
the base.

Every number here depends on who else entered: `leave_one_out` shows how much, `resampled` what five studies leave open, and `ratios` is the comparison
with one reference, which does not.
"""

import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Literal

import numpy as np

Fastest = Literal["evaluations", "seconds"]
CUT = 4.0  # a time beyond this multiple of the fastest counts as a miss
POINTS = 100
# Seconds on eight V100 that a trial of version 0.5 may take (its documentation, table of workloads); self-tuning has three times as much.
BUDGETS = {
    "criteo1tb": 7703.0,
    "fastmri": 8859.0,
    "imagenet_resnet": 63008.0,
    "imagenet_vit": 77520.0,
    "librispeech_conformer": 61068.0,
    "librispeech_deepspeech": 55506.0,
    "ogbg": 18477.0,
    "wmt": 48151.0,
}
REFERENCE = "baseline"


@dataclass(frozen=True)
class Attempt:
    """One trial: the number of the evaluation that first met the target and the seconds until then; None and infinity for a miss."""

    algorithm: str
    workload: str
    study: str
    trial: str
    evaluation: int | None
    seconds: float


@dataclass(frozen=True)
class Suite:
    """Base workloads, their held-out variants (a variant's name begins with its base's), and the budget of each base in seconds."""

    base: tuple[str, ...]
    held_out: tuple[str, ...] = ()
    budget: Mapping[str, float] | None = None

    def base_of(self, workload: str) -> str:
        """The base workload of a variant, or of itself."""
        found = [b for b in self.base if workload == b or workload.startswith(b + "_")]
        if not found:
            raise ValueError(f"{workload!r} is no variant of a base workload: these are {', '.join(self.base)}.")
        return max(found, key=len)


@dataclass(frozen=True)
class Times:
    """Seconds to target `seconds[a, w, k]` of algorithm a on workload w (base, then held-out) in study k; infinite for a miss, NaN where not run."""

    suite: Suite
    algorithms: tuple[str, ...]
    seconds: np.ndarray

    @property
    def workloads(self) -> tuple[str, ...]:
        """In the order of the second axis."""
        return self.suite.base + self.suite.held_out

    def median(self) -> np.ndarray:
        """[a, w]: over studies; what was never run counts as missed."""
        return medians(self.seconds)

    def without(self, *, algorithm: str | None = None, workload: str | None = None) -> "Times":
        """The same competition without an entrant, or without a base workload and its variants."""
        suite = Suite(
            tuple(b for b in self.suite.base if b != workload),
            tuple(h for h in self.suite.held_out if self.suite.base_of(h) != workload),
            self.suite.budget,
        )
        keep = [self.workloads.index(w) for w in suite.base + suite.held_out]
        rows = [i for i, a in enumerate(self.algorithms) if a != algorithm]
        return Times(suite, tuple(self.algorithms[i] for i in rows), self.seconds[np.ix_(rows, keep)])


def read_hits(path: Path) -> dict[str, list[Attempt]]:
    """Trials by ruleset, from a table of first hits: submission, workload, ruleset, study, trial, hit_eval (-1: never), hit_score_s."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    with io.StringIO(text, newline="") as file:
        table = csv.DictReader(file)
        need = {"ruleset", "submission", "workload", "study", "trial", "hit_eval", "hit_score_s"}
        lacking = need - set(table.fieldnames or ())
        if lacking:
            raise ValueError(f"{path} is no table of AlgoPerf hits: it lacks {', '.join(sorted(lacking))}.")
        found: dict[str, list[Attempt]] = {}
        for row in table:
            hit = int(row["hit_eval"])
            seconds = float(row["hit_score_s"]) if hit >= 0 else inf
            attempt = Attempt(row["submission"], row["workload"], row["study"], row["trial"], hit if hit >= 0 else None, seconds)
            found.setdefault(row["ruleset"], []).append(attempt)
    if not found:
        raise ValueError(f"{path} has no rows.")
    return found


def read_suite(path: Path, ruleset: str) -> Suite:
    """The suite in a file of targets (base_workloads, held_out_workloads)."""
    told = json.loads(path.read_text(encoding="utf-8"))
    factor = 3.0 if ruleset == "self" else 1.0
    return Suite(tuple(told["base_workloads"]), tuple(told["held_out_workloads"]), {w: factor * s for w, s in BUDGETS.items()})


def times(attempts: Sequence[Attempt], suite: Suite, fastest: Fastest = "evaluations") -> Times:
    """Of every study its fastest trial. The published scores take the one with fewest *evaluations*; "seconds" takes the least time."""
    algorithms = tuple(sorted({a.algorithm for a in attempts}))
    studies = sorted({a.study for a in attempts})
    workloads = suite.base + suite.held_out
    best: dict[tuple[str, str, str], tuple[float, float]] = {}
    for a in attempts:
        key = a.algorithm, a.workload, a.study
        rank = (inf if a.evaluation is None else a.evaluation) if fastest == "evaluations" else a.seconds
        best[key] = min(best.get(key, (inf, inf)), (rank, a.seconds))
    limit = {w: (suite.budget or {}).get(suite.base_of(w), inf) for w in workloads}
    seconds = np.full((len(algorithms), len(workloads), len(studies)), np.nan)
    for i, algorithm in enumerate(algorithms):
        for j, w in enumerate(workloads):
            for k, study in enumerate(studies):
                if (algorithm, w, study) in best:
                    spent = best[algorithm, w, study][1]
                    seconds[i, j, k] = spent if spent <= limit[w] else inf
    return Times(suite, algorithms, seconds)


def medians(seconds: np.ndarray) -> np.ndarray:
    """Median over the last axis, of the studies that there are; infinite where there are none, or where a miss is in the middle."""
    count = np.isfinite(seconds).sum(-1) + np.isposinf(seconds).sum(-1)
    ordered = np.sort(np.where(np.isnan(seconds), inf, seconds), axis=-1)
    low, high = (np.take_along_axis(ordered, np.maximum(k, 0)[..., None], -1)[..., 0] for k in ((count - 1) // 2, count // 2))
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, (low + high) / 2, inf)


def counted(suite: Suite, median: np.ndarray) -> np.ndarray:
    """[…, a, base]: the ratios to the fastest, infinite where the workload does not count for the entrant."""
    base, held = len(suite.base), suite.held_out
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = median[..., :base] / median[..., :base].min(-2, keepdims=True)
    ratio = np.where(np.isnan(ratio) | (ratio > CUT), inf, ratio)
    for j, name in enumerate(held):
        w = suite.base.index(suite.base_of(name))
        variant = median[..., base + j]
        solvers = np.where(np.isfinite(median[..., w]), variant, inf)
        passed = np.isfinite(variant) & (variant <= CUT * solvers.min(-1, keepdims=True))
        ratio[..., w] = np.where(passed, ratio[..., w], inf)
    return ratio


def profile(ratio: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    r"""($\tau$ [points], $\rho$ [a, points]): share of the workloads with a ratio up to $\tau$."""
    tau = np.linspace(1.0, CUT, points)
    return tau, (ratio[..., None] <= tau).mean(-2)


def scores(suite: Suite, median: np.ndarray) -> np.ndarray:
    """[…, a]: the normalised area under the profile, 0 to 1."""
    tau, rho = profile(counted(suite, median))
    return ((rho[..., 1:] + rho[..., :-1]) / 2 * np.diff(tau)).sum(-1) / (CUT - 1)


def resampled(t: Times, resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """[resamples, a]: scores of competitions whose studies are drawn anew from those of each (entrant, workload)."""
    rng = np.random.default_rng(seed)
    a, w, k = t.seconds.shape
    drawn = np.empty((resamples, a))
    for i in range(resamples):
        picks = rng.integers(0, k, (a, w, k))
        drawn[i] = scores(t.suite, medians(np.take_along_axis(t.seconds, picks, -1)))
    return drawn


def leave_one_out(t: Times) -> dict[str, dict[str, float]]:
    """Scores without one entrant or one base workload, by what was left out."""
    found = {}
    for name in t.algorithms:
        rest = t.without(algorithm=name)
        found[f"without {name}"] = dict(zip(rest.algorithms, scores(rest.suite, rest.median()).tolist(), strict=True))
    for name in t.suite.base:
        rest = t.without(workload=name)
        found[f"without {name}"] = dict(zip(rest.algorithms, scores(rest.suite, rest.median()).tolist(), strict=True))
    return found


def ratios(t: Times, reference: str = REFERENCE) -> dict[str, float]:
    """Geometric mean over base workloads of time over the reference's, a miss counting one second more than its budget; below 1 is faster."""
    if reference not in t.algorithms:
        raise ValueError(f"the reference {reference!r} is not among the entrants: there are {', '.join(t.algorithms)}.")
    base = len(t.suite.base)
    limit = np.array([(t.suite.budget or {}).get(w, inf) for w in t.suite.base])
    spent = np.minimum(t.median()[:, :base], limit + 1)
    logs = np.log(spent).mean(1)
    return dict(zip(t.algorithms, np.exp(logs - logs[t.algorithms.index(reference)]).tolist(), strict=True))
