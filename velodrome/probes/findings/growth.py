"""Numbers that grow towards a limit, with the step at which they will pass it; losses that jump, with layer and batch."""

from collections.abc import Sequence
from math import inf

from velodrome.probes.failures.blow_up import BlowUp, blow_up
from velodrome.probes.failures.spikes import Spike
from velodrome.probes.findings.finding import Finding, number, told

GROWN = 2.0  # times over the series, below which a slope is not called growth
HORIZON = 50.0  # spans of the series: farther ahead a rate that is seen now says nothing
SHARP = 8.0  # an attention logit that matters: with it one key of two thousand takes half of the weight
RISE = 1.5  # times what is usual: where a loss hardly moves, robust deviations are nothing
HIGH = 8.0  # robust standard deviations; batches of small tasks reach 6 now and then


def growth_findings(
    what: str, steps: Sequence[int], values: Sequence[float], limit: float, limit_name: str
) -> tuple[list[Finding], BlowUp | None]:
    """A series that passes a limit, or will at the rate at which it grows now; silent where no growth is seen or it is not told from a bounded one."""
    if len(steps) < 5:
        return [], None
    found = blow_up(steps, values, limit)
    evidence = {
        "what": what,
        "verdict": found.verdict,
        "limit": limit,
        "forms": list(found.forms),
        "step": found.step.plain(),
        "doubling": found.doubling.plain(),
        "last": values[-1],
    }
    if found.verdict == "passed":
        sentence = f"{what} passed {number(limit)} ({limit_name}) at step {found.step.value:,.0f}."
        return [
            Finding(
                "growth", "sick", sentence, "Bound it (QK-norm, a z-loss, a smaller rate) and go back to a checkpoint before.", evidence
            )
        ], found
    ahead = steps[-1] + HORIZON * (steps[-1] - steps[0])
    fast = found.verdict == "growing" and found.form == "exponential" and found.step.identified and found.step.value < ahead
    if not fast or found.step.high == inf or values[-1] < max(SHARP, GROWN * values[0]):
        return [], found
    sure = found.forms == ("exponential",) and found.step.high < 2 * ahead
    sentence = (
        f"{what} doubles every {told(found.doubling)} steps and is {number(values[-1])} at step {steps[-1]:,}: it passes {number(limit)} ({limit_name}) "
        f"near step {found.step.value:,.0f} ({found.step.low:,.0f} to {found.step.high:,.0f}) if it goes on like this."
    )
    advice = "Normalise queries and keys (QK-norm), lower the rate, or warm up longer, before it does."
    return [Finding("growth", "sick" if sure else "watch", sentence, advice, evidence)], found


def spike_findings(spikes: Sequence[Spike]) -> list[Finding]:
    """Each loss that jumped, named with the layer that jumped first and the batch."""
    found = []
    for s in spikes:
        layer = (
            f"; {s.layer}'s gradient left its range first, at step {s.layer_step:,} ({number(s.layer_height)} deviations)"
            if s.layer
            else ""
        )
        found.append(
            Finding(
                "loss spike",
                "sick",
                f"The loss jumps to {number(s.loss)} at step {s.step:,}, from {number(s.usual)} ({number(s.height)} robust deviations){layer}.",
                f"Look at the batch of step {s.position if s.position is not None else s.step:,} first; clipping or skipping it bounds the damage.",
                {
                    "step": s.step,
                    "loss": s.loss,
                    "usual": s.usual,
                    "height": s.height,
                    "layer": s.layer,
                    "layer_step": s.layer_step,
                    "batch": s.position,
                },
            )
        )
    return found
