"""Signs of one forward and backward pass: collapse, scaling instead of learning, silent units, gradients that vanish or explode, offsets of the logits."""

from collections.abc import Mapping, Sequence
from math import isnan

from velodrome.probes.estimate import Estimate
from velodrome.probes.failures.activations import Activations, GradientSize
from velodrome.probes.failures.collapse import Collapse
from velodrome.probes.failures.dormant import Dormant
from velodrome.probes.failures.log_z import OutputLogits
from velodrome.probes.findings.finding import Finding, Level, listed, number, told

COLLAPSED = (0.5, 0.9)  # shares of the rows; small tasks that are fitted have a third (digits with Lion or Muon)
SCALING = 0.5  # cosine of the step with the weights; gradients of networks that learn are nearly orthogonal to them
SILENT = (0.85, 0.95)  # shares of a layer's units; an auto-encoder with Lion, which trains well, has up to 0.79
SPREAD = 1e-5  # of the gradients' root mean squares between layers, smallest over largest
GROWN = 1e3  # of the activations' root mean squares, over the first layer's
OFFSET = 1.0  # mean logit over their range


def level(value: float, limits: tuple[float, float]) -> Level:
    """ "watch" above the first limit, "sick" above the second."""
    return "sick" if value > limits[1] else "watch"


def collapse_findings(collapse: Collapse | None, step: int) -> list[Finding]:
    """Rows of which the softmax is exactly one-hot."""
    if collapse is None or collapse.zero_loss.value <= COLLAPSED[0]:
        return []
    zero, one = collapse.zero_loss.value, collapse.collapsed.value
    return [
        Finding(
            "softmax collapse",
            level(zero, COLLAPSED),
            f"{zero:.0%} of {collapse.zero_loss.n:,} examples have a loss of exactly 0 at step {step:,}: the softmax of {one:.0%} is exactly one-hot.",
            "They give no gradient any more. Compute the loss in float64, keep the logits small by decay, or stop: what is left to learn is in the others.",
            {"step": step, "zero_loss": zero, "collapsed": one},
        )
    ]


def scaling_findings(whole: float, parts: Mapping[str, float], step: int) -> list[Finding]:
    """Loss that falls by longer weights alone: $\\cos(-g, w)$ of all parameters, and by parameter."""
    if isnan(whole) or whole < SCALING:
        return []
    worst = sorted((n for n, c in parts.items() if not isnan(c)), key=lambda n: -parts[n])
    return [
        Finding(
            "naive loss minimisation",
            "watch",
            f"The gradient at step {step:,} points along the weights (cosine {number(whole)} of the step with them, most in {listed(worst)}): "
            "the loss falls by making them longer, and no prediction changes.",
            "The training data are fitted. Add weight decay, or project the gradient (optim/perp_grad.py), if the network shall go on learning.",
            {"step": step, "cosine": whole},
        )
    ]


def silent_findings(dormant: Dormant, step: int) -> list[Finding]:
    """Layers of which many units are dead, or dormant."""
    found: list[Finding] = []
    for what, said in (("dead", "are 0 for every example seen"), ("dormant", "are below 2.5 % of their layer's mean activity")):
        shares = {n: getattr(x, what) / x.units for n, x in dormant.layers.items() if x.units}
        bad = sorted((n for n, s in shares.items() if s > SILENT[0]), key=lambda n: -shares[n])
        if not bad or (found and what == "dormant"):
            continue
        worst = dormant.layers[bad[0]]
        others = f", and many in {listed(bad[1:])}" if bad[1:] else ""
        found.append(
            Finding(
                f"{what} units",
                level(shares[bad[0]], SILENT),
                f"{getattr(worst, what)} of the {worst.units} units of {bad[0] or 'the model'} {said} at step {step:,} "
                f"({dormant.seen:,} positions){others}.",
                "A smaller rate or a warm-up keeps them; a leaky activation, or drawing them anew, brings them back.",
                {"step": step, "shares": {n: shares[n] for n in bad}},
            )
        )
    return found


def size_findings(gradients: Mapping[str, GradientSize], seen: Activations, matrices: Sequence[str], step: int) -> list[Finding]:
    """Gradients that do not reach a layer, activations that grow from layer to layer; `matrices` names the layers' weights, without embeddings."""
    found = []
    sizes = {n: gradients[n].rms for n in matrices if n in gradients}
    largest = max(sizes, key=lambda n: sizes[n], default="")
    faint = sorted((n for n, s in sizes.items() if s < SPREAD * sizes[largest]), key=lambda n: sizes[n])
    if faint:
        others = f"; {listed(faint[1:])} too" if faint[1:] else ""
        found.append(
            Finding(
                "vanishing gradients",
                "sick",
                f"The gradient of {faint[0]} is {number(sizes[faint[0]])} (root mean square) at step {step:,}, that of {largest} is "
                f"{number(sizes[largest])}{others}.",
                "It hardly learns under a rule that keeps sizes (SGD). Residual connections, a normalisation or another activation let it through.",
                {"step": step, "rms": {n: sizes[n] for n in faint}},
            )
        )
    rms = {n: x["rms"] for n, x in seen.numbers.items() if x["rms"] > 0}
    if len(rms) > 1:
        first, worst = next(iter(rms)), max(rms, key=lambda n: rms[n])
        if rms[worst] > GROWN * rms[first]:
            found.append(
                Finding(
                    "exploding activations",
                    "sick",
                    f"Activations grow from {number(rms[first])} in {first} to {number(rms[worst])} in {worst} (root mean squares, step {step:,}).",
                    "Draw the weights smaller (1/sqrt(fan-in)), or put a normalisation between.",
                    {"step": step, "first": rms[first], "worst": rms[worst], "layer": worst},
                )
            )
    return found


def limit_findings(seen: Activations, step: int) -> list[Finding]:
    """Activations near what their format can hold."""
    near = sorted((n for n, x in seen.numbers.items() if x["headroom"] < 10), key=lambda n: seen.numbers[n]["headroom"])
    if not near:
        return []
    x = seen.numbers[near[0]]
    return [
        Finding(
            "near overflow",
            "sick",
            f"The largest output of {near[0]} is {number(x['largest'])} at step {step:,}: a factor of {number(x['headroom'])} below what its format holds.",
            "Use bfloat16 or float32 there, or bound it by a normalisation.",
            {"step": step, "layer": near[0], **x},
        )
    ]


def offset_findings(logits: OutputLogits | None, drift: Estimate, step: int) -> list[Finding]:
    """Logits that leave together, which the loss does not see; `drift` is that of log Z, nats per step."""
    if logits is None or not drift.identified:
        return []
    spread = logits.largest.value - logits.smallest.value
    moving = drift.low > 0 or drift.high < 0
    if not moving or abs(logits.mean.value) < max(10.0, OFFSET * spread):
        return []
    return [
        Finding(
            "log Z drift",
            "sick" if abs(logits.log_z.value) > 100 else "watch",
            f"log Z is {told(logits.log_z)} nats at step {step:,} and moves by {told(drift)} a step: all logits shift together (their mean is "
            f"{number(logits.mean.value)}, their range {number(spread)}).",
            "The loss does not see it, a narrow format does: add a z-loss of 1e-4 (losses/z_loss.py), or take the bias from the head.",
            {"step": step, "log_z": logits.log_z.plain(), "drift": drift.plain()},
        )
    ]
