"""What single examples say: whether a larger batch would help, and whether the examples agree."""

from velodrome.probes.findings.finding import Finding, number, told
from velodrome.probes.statistics.coherence import Coherence
from velodrome.probes.statistics.noise_scale import NoiseScale

FAR = 8.0  # times; the noise scale predicts the critical batch within a factor of about two, and its interval is another
LEARNED = 0.95  # of the loss of a constant prediction; above, nothing of the labels is known
MANY = 256  # examples below which a lack of agreement is a lack of examples


def noise_findings(found: NoiseScale, batch: int, step: int) -> list[Finding]:
    """The batch size in use against the gradient noise scale."""
    value, evidence = found.value, {"step": step, "noise_scale": found.value.plain(), "batch": batch}
    if not value.identified:
        return [
            Finding(
                "noise scale not identified",
                "remark",
                f"The gradient noise scale cannot be told at step {step:,}: {value.note or 'the data do not identify it'}.",
                "Give more batches (--batches).",
                evidence,
            )
        ]
    share = found.efficiency(batch)
    if value.low > FAR * batch:
        return [
            Finding(
                "batch far below critical",
                "remark",
                f"A larger batch would help: the noise scale at step {step:,} is {told(value)} examples and the batch {batch:,}.",
                f"Up to about {number(value.low)} examples a batch, k times the batch need nearly k times fewer steps (a larger rate beside it).",
                evidence,
            )
        ]
    if value.high < batch / FAR:
        return [
            Finding(
                "batch far above critical",
                "remark",
                f"A larger batch would not help, a smaller one would do: the noise scale at step {step:,} is {told(value)} examples and the batch "
                f"{batch:,}, so that an example is worth {share:.0%} of what it is in a small batch.",
                f"Some {number(max(1.0, value.high))} examples a batch would take hardly more steps.",
                evidence,
            )
        ]
    return []


def coherence_findings(found: Coherence, loss: float, blind: float, step: int) -> list[Finding]:
    """Nothing in common, nothing learned: `blind` is the loss of a constant prediction by the labels' frequencies, NaN where that is unknown."""
    m = found.m_coherence
    if found.m < MANY or not m.identified or not m.low <= 1 <= m.high or not loss > LEARNED * blind:
        return []
    return [
        Finding(
            "incoherent gradients",
            "watch",
            f"Nothing is learned from these labels: at step {step:,} one example's step helps {told(m)} of {found.m:,} examples, itself included (1 is no "
            f"agreement at all), and the loss is {number(loss)} where the labels' frequencies alone give {number(blind)}.",
            "Are the labels those of these inputs? Look at the examples, at the order in which both are read, and at the rate.",
            {"step": step, "m_coherence": m.plain(), "m": found.m, "loss": loss, "blind": blind},
        )
    ]
