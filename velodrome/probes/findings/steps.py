"""What in a report of effective steps looks sick, in words with the numbers."""

from collections.abc import Callable
from typing import Any

from velodrome.probes.findings.finding import listed
from velodrome.probes.updates.steps import Numbers, Report

HALF = 0.5  # a share from which on a tensor is mostly like this
LARGE = 0.1  # a matrix that changes by a tenth of its norm in one step forgets itself in ten
FAR = 2.0  # times the equilibrium, either way; averages over few steps scatter by less
NARROW = ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")


def findings(report: Report) -> list[str]:
    """One sentence for each thing that looks sick, the worst tensor first; empty for healthy steps."""
    return [
        sentence
        for sentence in (
            _said(
                report,
                _eps,
                "eps is larger than the root of the second moment in {} of the elements of {}: there it, not the gradient's size, sets the step",
            ),
            _said(
                report,
                _stuck,
                "{} of the weights of {} stayed where they were although told to move: their format has no number so near, float32 has",
            ),
            _said(report, _still, "{1} did not move at all although it had a gradient"),
            _said(report, _large, "one step changes {1} by {0} of its norm: the learning rate is large for it"),
            *_balance(report, early=False, words=("faster",)),
        )
        if sentence
    ]


def remarks(report: Report) -> list[str]:
    """What is worth knowing and no reason to worry: matrices that have not had the time to reach their equilibrium, or that turn less than in it."""
    return _balance(report, early=True) + _balance(report, early=False, words=("slower",))


def _eps(numbers: Numbers, about: dict[str, Any]) -> float | None:
    share = numbers["eps_share"]
    # A bias before a normalisation has a gradient of rounding alone, and no step of it matters.
    return share if share is not None and share > HALF and len(about["shape"]) > 1 else None


def _stuck(numbers: Numbers, about: dict[str, Any]) -> float | None:
    share = numbers["unmoved"]
    return share if share is not None and HALF < share < 1 and about["dtype"] in NARROW else None


def _still(numbers: Numbers, about: dict[str, Any]) -> float | None:
    return 1.0 if numbers["rms_update"] == 0 and numbers["unmoved"] == 1 else None


def _large(numbers: Numbers, about: dict[str, Any]) -> float | None:
    change = numbers["relative_update"]
    # Vectors, tables of single numbers among them, often start at zero, where every step is large.
    matrix = len(about["shape"]) > 1 and min(about["shape"]) > 1
    return change if change is not None and change > LARGE and matrix else None


def _said(report: Report, judge: Callable[[Numbers, dict[str, Any]], float | None], text: str) -> str | None:
    """The sentence about all tensors for which `judge` gives a number, with the largest one."""
    found = {name: value for name, numbers in report.parameters.items() if (value := judge(numbers, report.about[name])) is not None}
    if not found:
        return None
    names = sorted(found, key=lambda name: -found[name])
    sentence = text.format(("up to " if len(names) > 1 else "") + f"{found[names[0]]:.0%}", listed(names))
    return sentence[0].upper() + sentence[1:] + "."


def _balance(report: Report, early: bool, words: tuple[str, ...] = ("faster", "slower")) -> list[str]:
    """How far the matrices rotate from their equilibrium, of those that have not yet had twice its time, or of those that have."""
    known = {
        n: x
        for n, x in report.parameters.items()
        if x["equilibrium"]
        and x["neuron_rotation"]
        and (t := report.about[n]["t"]) is not None
        and (t < 2 * (x["balance_steps"] or 0)) == early
    }
    said = []
    for word, far in (("faster", lambda r: r > FAR), ("slower", lambda r: r < 1 / FAR)):
        ratios = {n: r for n, x in known.items() if far(r := (x["neuron_rotation"] or 0.0) / (x["equilibrium"] or 1.0))}
        if not ratios or word not in words:
            continue
        worst = max(ratios, key=lambda n: abs(ratios[n] - 1))
        x, t = known[worst], report.about[worst]["t"]
        times = ratios[worst] if word == "faster" else 1 / ratios[worst]
        why = "its norm has not settled, or its gradients are no noise: look whether a normalisation follows it"
        if early:
            why = f"balance takes some {x['balance_steps']:,.0f} steps, and {t:,} are made"
        names = listed(sorted(ratios, key=lambda n: -abs(ratios[n] - 1)))
        angles = f"{x['neuron_rotation']:.2g} instead of {x['equilibrium']:.2g} radians a step"
        said.append(f"{names} rotate{'s' if len(ratios) == 1 else ''} {times:.1f} times {word} than in equilibrium ({angles}): {why}.")
    return said
