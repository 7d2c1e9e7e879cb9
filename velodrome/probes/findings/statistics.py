"""What single examples say: whether a larger batch would help, and whether the examples agree."""

from velodrome.probes.findings.finding import Finding, number, told
from velodrome.probes.statistics.coherence import Coherence
from velodrome.probes.statistics.noise_scale import NoiseScale

FAR = 8.0  # times; the noise scale predicts the critical batch within a factor of about two, and its interval is another
AGREE = 2.0  # examples that one example's gradient serves; 1 is what orthogonal gradients have
MANY = 128  # examples below which a lack of agreement is a lack of examples


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


def coherence_findings(found: Coherence, layers: dict[str, Coherence], step: int) -> list[Finding]:
    """Examples whose gradients have nothing in common: labels at random, or what is common already learned."""
    m = found.m_coherence
    if found.m < MANY or not m.identified or not m.high < AGREE:
        return []
    return [
        Finding(
            "incoherent gradients",
            "watch",
            f"The gradients of {found.m:,} examples have next to nothing in common at step {step:,}: one example's step helps "
            f"{told(m)} examples, itself included.",
            "What is learned now holds for single examples: labels that are wrong or random, or a fit that is finished. Look at the hardest examples.",
            {"step": step, "m_coherence": m.plain(), "m": found.m},
        )
    ]
