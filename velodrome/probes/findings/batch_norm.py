"""BatchNorm: statistics that lag, were never gathered, or belong to a layer in the other mode."""

from math import log

from velodrome.probes.failures.batch_norm import Modes
from velodrome.probes.findings.finding import Finding, listed, number, told

FAR = 0.5  # standard deviations, or e-folds of the spread; momentum 0.1 scatters by 0.2 with batches of 16
WORSE = log(1.1)  # an evaluation loss a tenth above the training-mode loss


def batch_norm_findings(modes: Modes | None) -> list[Finding]:
    """What is wrong with the running statistics; empty for a model without BatchNorm."""
    if modes is None:
        return []
    found = []
    if modes.frozen:
        found.append(
            Finding(
                "batch norm frozen",
                "watch",
                f"{listed(modes.frozen)} {'is' if len(modes.frozen) == 1 else 'are'} in evaluation mode while the model trains: "
                "the statistics stay what they were.",
                "If that is not meant, call model.train() after the code that evaluates.",
                {"layers": list(modes.frozen)},
            )
        )
    thawed = [n for n in modes.shift if n not in modes.frozen]
    far = {n: max(modes.shift[n].value, modes.spread[n].value) for n in thawed}
    worst = max(far, key=lambda n: far[n], default=None)
    if worst is not None and far[worst] > FAR and modes.gap.value > 0:
        surely = modes.gap.low > 0 and modes.gap.value > WORSE * abs(modes.train.value)
        found.append(
            Finding(
                "batch norm statistics",
                "sick" if surely else "watch",
                f"The running statistics of {worst} are {number(modes.shift[worst].value)} standard deviations and {number(modes.spread[worst].value)} "
                f"e-folds of the spread from those of the data: the loss is {told(modes.eval)} with them and {told(modes.train)} with the batch's own.",
                "Raise the momentum of the running average, train longer before evaluating, or gather the statistics anew with momentum=None.",
                {"layer": worst, "shift": modes.shift[worst].value, "spread": modes.spread[worst].value, "gap": modes.gap.plain()},
            )
        )
    return found
