r"""When will a recorded number pass a limit, at the rate at which it grows now? Instabilities predicted before they emerge (Wortsman et al. 2023).

    found = blow_up(steps, largest_logits, limit=LIMITS["float16"])
    print(found.form, found.step.value, found.step.low, found.step.high, found.doubling)

Three forms are fitted to the series by least squares, $\log y = a + bt$ (exponential), $\log y = a + b\log t$ (power of t) and $y = a + bt$ (linear), with
residuals that resemble their neighbours (`updates.series`). The interval of the step at which the limit is passed holds all steps whose fitted line cannot
be told from the limit (inverse regression, Fieller 1954), over all forms that the likelihood does not part. A fit knows nothing of a rate that will fall.
`across_sizes` is the same over model sizes: Wortsman et al. (https://arxiv.org/abs/2309.14322, section 3.3) extrapolate the largest attention logit in N.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from velodrome.probes.estimate import Estimate, between, exact, unidentified
from velodrome.probes.updates.series import Line, line

Form = Literal["exponential", "power of t", "linear"]
Verdict = Literal["passed", "growing", "not growing", "not identifiable"]

# Largest finite numbers of formats; and the attention logit above which all runs of Wortsman et al. 2023 (section 3.3) diverged.
LIMITS = {"float16": 65504.0, "bfloat16": 3.3895e38, "float32": 3.4028e38, "attention logit": 1e4}
FARTHEST = 1e4  # times the recorded span; beyond that the answer is "not in sight"
ODDS = 20.0  # likelihood ratio under which a form is not ruled out
SHAPES: dict[Form, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "exponential": (lambda t: t, np.log),
    "power of t": (np.log, np.log),
    "linear": (lambda t: t, lambda y: y),
}


@dataclass(frozen=True)
class BlowUp:
    """`step` at which `limit` is passed, a 95 % interval whose upper end may be infinite; `forms` that the series does not rule out, the likeliest first.

    `verdict`: "passed" already (`step` is the first recorded one), "growing", "not growing" (the interval of the rate holds 0 or less) or "not
    identifiable" (too short, not positive, or out of sight). `doubling`: steps in which an exponential series doubles, at its end for other forms.
    """

    verdict: Verdict
    step: Estimate
    limit: float
    forms: tuple[Form, ...]
    doubling: Estimate

    @property
    def form(self) -> Form | None:
        """The likeliest."""
        return self.forms[0] if self.forms else None


def blow_up(steps: Sequence[float], values: Sequence[float], limit: float, unit: str = "step") -> BlowUp:
    """When `values` recorded at rising `steps` (above 0 for powers) pass `limit` from below; give 1/value and 1/limit for a number that falls."""
    t, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    if t.shape != y.shape or t.ndim != 1 or (np.diff(t) <= 0).any():
        raise ValueError(f"steps must rise, one for each value, got {len(t)} steps and {len(y)} values.")
    if not math.isfinite(limit):
        raise ValueError(f"limit must be a finite number, got {limit!r}: see LIMITS.")
    over = np.flatnonzero(~(y < limit))  # what is NaN or infinite has passed every limit
    if len(over):
        return BlowUp("passed", exact(float(t[over[0]]), unit, n=len(t)), limit, (), unidentified(unit, "passed already"))
    lines = fits(t, y)
    if not lines:
        return nowhere(
            "not identifiable", limit, unit, f"five values above 0 are needed to see growth, got {int((y > 0).sum())} of {len(y)}", len(y)
        )
    first = next(iter(lines.values()))
    if first.slope - first.quantile * float(first.covariance[1, 1]) ** 0.5 <= 0:
        return nowhere("not growing", limit, unit, "the interval of the rate holds 0 or less", len(y))
    found = {form: crossed(fit, form, t, limit) for form, fit in lines.items()}
    steps_ = [v for v, _, _ in found.values() if v is not None]
    rates = doubling(first, next(iter(lines)), t, unit)
    low, high = min(x for _, x, _ in found.values()), max(x for _, _, x in found.values())
    if not steps_ or low > t[-1] + FARTHEST * np.ptp(t):
        return BlowUp("growing", unidentified(unit, "the limit is not in sight", n=len(y)), limit, tuple(lines), rates)
    value = next(iter(found.values()))[0] or steps_[0]
    note = "" if len(lines) == 1 else f"{', '.join(lines)} growth cannot be told apart yet"
    return BlowUp("growing", between(value, low, high, unit, len(y), note=note), limit, tuple(lines), rates)


def nowhere(verdict: Verdict, limit: float, unit: str, why: str, n: int) -> BlowUp:
    """The answer without a step."""
    return BlowUp(verdict, unidentified(unit, why, n=n), limit, (), unidentified(unit, why, n=n))


def fits(t: np.ndarray, y: np.ndarray) -> dict[Form, Line]:
    """The forms that are not ruled out, the likeliest first, with noise in proportion to the value for all of them."""
    there = np.isfinite(y) & (y > 0)
    t, y = t[there], y[there]
    if len(y) < 5:
        return {}
    lines, squares = {}, {}
    for form, (x_of, y_of) in SHAPES.items():
        if form == "power of t" and not (t > 0).all():
            continue
        fit = line(x_of(t), y_of(y))
        made = fit.at(x_of(t))
        made = made if form == "linear" else np.exp(made)
        lines[form] = fit
        squares[form] = float(np.square(np.log(y) - np.log(np.maximum(made, 1e-12 * y))).sum())
    order = sorted(squares, key=lambda form: squares[form])
    floor = 1e-24 * len(y)
    n = lines[order[0]].dof + 2
    return {f: lines[f] for f in order if n / 2 * math.log((squares[f] + floor) / (squares[order[0]] + floor)) < math.log(ODDS)}


def crossed(fit: Line, form: Form, t: np.ndarray, limit: float) -> tuple[float | None, float, float]:
    """(step at which the line meets the limit or None, the earliest and the latest that cannot be told from it), not before the last record."""
    x_of, y_of = SHAPES[form]
    last, span = float(t[-1]), float(np.ptp(t))
    goal = float(y_of(np.array([limit]))[0])
    ahead = np.concatenate([[0.0], np.geomspace(1e-4, 10 * FARTHEST, 4000)]) * span + last
    x = x_of(ahead)
    middle, reach = fit.at(x), fit.quantile * fit.error(x)
    value, low, high = (first_over(ahead, y, goal) for y in (middle, middle + reach, middle - reach))
    return value, math.inf if low is None else low, math.inf if high is None else high


def first_over(t: np.ndarray, y: np.ndarray, goal: float) -> float | None:
    """Where y, between its points, first reaches the goal."""
    over = np.flatnonzero(y >= goal)
    if not len(over):
        return None
    i = int(over[0])
    return float(t[0]) if i == 0 else float(t[i - 1] + (t[i] - t[i - 1]) * (goal - y[i - 1]) / (y[i] - y[i - 1]))


def doubling(fit: Line, form: Form, t: np.ndarray, unit: str) -> Estimate:
    """Steps to twice the fitted value at the last record, at the rate there."""
    half = fit.quantile * float(fit.covariance[1, 1]) ** 0.5
    scale = {"exponential": math.log(2), "power of t": math.log(2) * float(t[-1]), "linear": float(fit.at(float(t[-1])))}[form]
    value, low, high = (scale / s if s > 0 else math.inf for s in (fit.slope, fit.slope + half, fit.slope - half))
    return between(value, low, high, unit, fit.n)


def across_sizes(
    sizes: Sequence[float], values: Sequence[float], limit: float, size: float, degree: Literal[1, 2] = 1
) -> tuple[Estimate, BlowUp]:
    r"""(the value at a larger `size` with a 95 % prediction interval, the size at which `limit` is passed), over runs of `degree` + 3 sizes or more.

    $\log y$ is a polynomial of $\log N$: a power law for degree 1; Wortsman et al. fit a quadratic (block 0, one learning rate, an early step).
    """
    n, y = np.asarray(sizes, dtype=float), np.asarray(values, dtype=float)
    if degree not in (1, 2):
        raise ValueError(f"degree must be 1 or 2, got {degree!r}.")
    if len(np.unique(n)) < degree + 3 or n.shape != y.shape or not ((n > 0) & (y > 0)).all():
        raise ValueError(f"degree {degree} needs values above 0 at {degree + 3} sizes or more, got {len(np.unique(n))} sizes.")
    middle = float(np.log(n).mean())
    columns = lambda m: np.vander(np.log(np.atleast_1d(m)) - middle, degree + 1)  # noqa: E731
    X = columns(n)
    beta, dof = np.linalg.lstsq(X, np.log(y), rcond=None)[0], len(n) - degree - 1
    variance = float(np.square(np.log(y) - X @ beta).sum()) / dof
    covariance, quantile = variance * np.linalg.inv(X.T @ X), float(stats.t.ppf(0.975, dof))

    def spread(rows: np.ndarray) -> np.ndarray:
        return quantile * np.sqrt(np.einsum("ij,jk,ik->i", rows, covariance, rows))

    at = columns(size)
    fitted, half = float((at @ beta)[0]), math.hypot(float(spread(at)[0]), quantile * variance**0.5)
    value = between(math.exp(fitted), math.exp(fitted - half), math.exp(fitted + half), "value at that size", len(n))
    last = float(n.max())
    slope = (columns(last * 1.001) - columns(last / 1.001)) / (2 * math.log(1.001))
    if float((slope @ beta)[0] - spread(slope)[0]) <= 0:
        return value, nowhere("not growing", limit, "parameters", "the interval of the exponent holds 0 or less", len(n))
    ahead = np.geomspace(last, FARTHEST * last, 4000)
    rows = columns(ahead)
    line_, reach, goal = rows @ beta, spread(rows), math.log(limit)
    found, low, high = (first_over(ahead, curve, goal) for curve in (line_, line_ + reach, line_ - reach))
    if found is None or low is None:
        where = unidentified("parameters", "the limit is not in sight", n=len(n))
    else:
        where = between(found, low, math.inf if high is None else high, "parameters", len(n))
    twice = first_over(ahead, line_, float(line_[0]) + math.log(2))
    more = unidentified("parameters", "not in sight", n=len(n)) if twice is None else exact(twice - last, "parameters", n=len(n))
    return value, BlowUp("growing", where, limit, (), more)
