"""The learning rate against the stability threshold: at it or above it since when, or far below it, or not to be told."""

from collections.abc import Sequence

from velodrome.probes.edge.gauge import Edge
from velodrome.probes.findings.finding import Finding, number, told

FAR_BELOW = 0.1  # of the threshold, by the proven upper bound, at every reading
CALM = 0.02  # of the loss: less than it falls in a window, a run at the edge is where it hovers and no worse


def edge_findings(readings: Sequence[tuple[int, Edge]], diverged: int | None = None) -> list[Finding]:
    """From readings along a run (step, Edge) in their order; `diverged` is the step at which the loss ended, if it did."""
    if not readings:
        return []
    t, last = readings[-1]
    name = "/".join(dict.fromkeys(threshold.name for threshold in last.thresholds))
    evidence = {
        "step": t,
        "ratio": last.ratio.plain(),
        "verdict": last.verdict,
        "readings": [[s, e.ratio.value, e.verdict] for s, e in readings],
    }
    if last.verdict in ("at the edge", "above") or (diverged is not None and last.ratio.value > 1):
        since = first_of_last_stretch(readings)
        stretch = [e.ratio for s, e in readings if s >= since]
        middle = sorted(r.value for r in stretch)[len(stretch) // 2]
        where = f"since step {since:,}" if len(stretch) > 1 else f"at step {t:,}"
        ratio = (
            told(last.ratio)
            if len(stretch) < 2
            else f"{number(middle)} (the {len(stretch)} readings {number(min(r.value for r in stretch))} to {number(max(r.value for r in stretch))})"
        )
        over = last.verdict == "above" and all(e.verdict == "above" for s, e in readings if s >= since)
        end = f", and the loss is gone at step {diverged:,}" if diverged is not None else ""
        sentence = f"The learning rate stands at {ratio} of the stability threshold of {name} {where}{end}."
        if over or diverged is not None:
            safe = last.headroom
            advice = f"Lower it to {number(0.9 * safe)} of what it is, or warm up longer: above 1 an oscillation along the sharpest direction grows."
            return [Finding("above the edge", "sick", sentence, advice, evidence)]
        advice = "Training goes on here, oscillating along the sharpest direction; a larger rate moves to flatter places or breaks it."
        return [Finding("at the edge", "watch", sentence, advice, evidence)]
    if last.verdict == "not separable":
        return [
            Finding(
                "edge not separable",
                "remark",
                f"Whether the learning rate is at the stability threshold cannot be told: {told(last.ratio)} of it at step {t:,}.",
                "Give more examples or products.",
                evidence,
            )
        ]
    if all(e.ratio.high < FAR_BELOW for _, e in readings):
        return [
            Finding(
                "far below the edge",
                "remark",
                f"Not at the edge yet: the learning rate is at {told(last.ratio)} of the stability threshold of {name} at step {t:,}, and never was above "
                f"{number(max(e.ratio.high for _, e in readings))} of it in these steps.",
                "Curvature alone would allow a larger one; noise, the schedule or a warm-up may still be why it is small.",
                evidence,
            )
        ]
    return [
        Finding(
            "below the edge",
            "fine",
            f"Not at the edge yet: the learning rate is at {told(last.ratio)} of the stability threshold of {name} at step {t:,}.",
            "",
            evidence,
        )
    ]


def first_of_last_stretch(readings: Sequence[tuple[int, Edge]]) -> int:
    """The step from which on every reading was at the edge or above."""
    since = readings[-1][0]
    for t, e in reversed(readings):
        if e.verdict not in ("at the edge", "above") and e.ratio.value <= 1 - e.tolerance:
            break
        since = t
    return since
