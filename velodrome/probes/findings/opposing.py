"""Two groups of examples that share a large feature and disagree on it: what one gains the other loses, step after step."""

from velodrome.probes.findings.finding import Finding, number, told
from velodrome.probes.statistics.opposing import Groups, Opposition

ANTIPHASE = -0.5  # the upper end of the correlation's interval
EXCESS = 10.0  # of the groups' inputs along their common direction, over the others'
MATTERS = 0.2  # of the mean loss, that a group gains or loses in one step


def opposing_findings(groups: Groups, found: Opposition, loss: float, step: int) -> list[Finding]:
    """Silent unless the groups move in anti-phase by a share of the loss that matters, and pull the weights apart along a large feature."""
    c = groups.correlation
    against = c.identified and c.high < ANTIPHASE and found.cosine.identified and found.cosine.value < 0
    large = min(groups.rise, -groups.fall) > MATTERS * loss and found.excess.identified and found.excess.value > EXCESS
    if not (against and large):
        return []
    k = len(groups.rising)
    return [
        Finding(
            "opposing signals",
            "watch",
            f"Two groups of {k} examples pull apart near step {step:,}: when the loss of one rises by {number(groups.rise)}, that of the other falls by "
            f"{number(-groups.fall)} (correlation {told(c)}, cosine of their gradients {number(found.cosine.value)}); along one direction their inputs "
            f"are {number(found.excess.value**0.5)} times larger than the others'.",
            "They set the largest rate that is stable. Look at both groups: labels that contradict each other, or a feature to be normalised.",
            {
                "step": step,
                "rising": groups.rising.tolist(),
                "falling": groups.falling.tolist(),
                "correlation": c.plain(),
                "excess": found.excess.value,
            },
        )
    ]
