"""Signs of sickness: forward passes on one batch along the window, and the spikes and modes of the run."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from velodrome.bench.window import Window
from velodrome.commands.inside.part import FITTED, Part, Scene, reading
from velodrome.commands.inside.statistics import SHOWN, shown
from velodrome.probes.estimate import exact
from velodrome.probes.failures.activations import GradientSize, gradient_rms
from velodrome.probes.failures.batch_norm import batch_norm_modes
from velodrome.probes.failures.blow_up import LIMITS, BlowUp
from velodrome.probes.failures.collapse import Collapse, naive_minimisation, softmax_collapse
from velodrome.probes.failures.log_z import drift
from velodrome.probes.failures.observe import Seen, observe
from velodrome.probes.failures.spikes import Spike, Spikes, score
from velodrome.probes.findings import failures as judge
from velodrome.probes.findings.batch_norm import batch_norm_findings
from velodrome.probes.findings.growth import HIGH, RISE, growth_findings, spike_findings
from velodrome.probes.objective import examples as count_of
from velodrome.probes.updates.alignment import Cosines
from velodrome.reports.inside import Chart, Gallery
from velodrome.reports.words import digits
from velodrome.train import Step

TOPIC = "Signs of failure"
COLUMNS = {"rms": "activation RMS", "largest": "largest", "gradient": "gradient RMS", "dead": "dead", "dormant": "dormant"}


@dataclass
class Signs:
    """What one batch showed at one step."""

    seen: Seen
    collapse: Collapse | None
    naive: Cosines | None
    gradients: dict[str, GradientSize]


class SignsReader:
    """Asks for the signs on the first batch held still, so that steps compare; gradients are those at hand."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def __call__(self, step: Step | None) -> Signs | str:
        """The signs at a step, or why there are none."""
        subject, objective = self.scene.subject, self.scene.whole
        held = any(p.grad is not None for p in subject.model.parameters())
        sizes = gradient_rms(subject.model, subject.optimizer) if held else {}
        naive = naive_minimisation(subject.model) if held else None
        batch = objective.batches[0]
        try:
            with objective.ready(), torch.no_grad(), observe(subject.model) as seen:
                outputs = objective.outputs(batch)
        except ValueError as error:
            return str(error)
        logits = getattr(outputs, "logits", outputs)
        rows = isinstance(logits, Tensor) and logits.is_floating_point() and logits.ndim > 1
        classes = isinstance(batch.targets, Tensor) and not batch.targets.is_floating_point() and rows
        fits = classes and batch.targets.shape == logits.shape[:-1]
        return Signs(seen, softmax_collapse(logits, batch.targets) if fits else None, naive, sizes)


def failures(scene: Scene) -> Part:
    """What the signs of the window say."""
    part = Part()
    found = scene.window.readings.get("signs") or [(scene.step, SignsReader(scene)(None))]
    good: list[tuple[int, Signs]] = [(t, s) for t, s in found if isinstance(s, Signs)]
    if not good:
        raise ValueError(str(found[-1][1]))
    (t, last), tell = good[-1], partial(reading, TOPIC)
    seen = last.seen
    if seen.attention.layers:
        part.readings.append(tell("largest attention logit", seen.attention.largest, step=t))
        lowest = min((h.lowest for h in seen.attention.layers.values() if not math.isnan(h.lowest)), default=math.nan)
        part.readings.append(tell("lowest entropy of a head", exact(lowest, "of uniform"), step=t))
    if seen.logits is not None:
        part.readings += [tell("log Z", seen.logits.log_z, step=t), tell("largest output logit", seen.logits.largest, step=t)]
    if last.collapse is not None:
        part.readings.append(tell("examples with zero loss", last.collapse.zero_loss, step=t))
    if last.naive is not None and not math.isnan(last.naive.whole):
        part.readings.append(tell("cosine of step and weights", exact(last.naive.whole, ""), step=t))
    if seen.dormant.layers:
        part.readings += [tell("dormant units", seen.dormant.share, step=t), tell("dead units", seen.dormant.dead, step=t)]
    part += judged(scene, good)
    part += series(good)
    part += growing(good)
    part += jumps(scene)
    part += modes(scene)
    part.charts.append(layers(last, scene.subject.model))
    return part


def judged(scene: Scene, good: Sequence[tuple[int, Signs]]) -> Part:
    """The findings of the last signs and of their drift."""
    t, last = good[-1]
    part = Part()
    part.findings += judge.collapse_findings(last.collapse, t)
    if last.naive is not None and (scene.right or 0.0) > FITTED:
        part.findings += judge.scaling_findings(last.naive.whole, last.naive.numbers, t)
    part.findings += judge.silent_findings(last.seen.dormant, t)
    part.findings += judge.size_findings(last.gradients, last.seen.activations, matrices(scene.subject.model), t)
    part.findings += judge.limit_findings(last.seen.activations, t)
    steps = [s for s, x in good if x.seen.logits is not None]
    values = [x.seen.logits.log_z.value for _, x in good if x.seen.logits is not None]
    if steps:
        part.findings += judge.offset_findings(last.seen.logits, drift(steps, values), t)
    return part


def matrices(model: nn.Module) -> list[str]:
    """Names of the weights of layers that multiply, in the model's order."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    return [f"{n}.weight".lstrip(".") for n, m in model.named_modules() if isinstance(m, kinds)]


def series(good: Sequence[tuple[int, Signs]]) -> Part:
    """Lines over the window."""
    part = Part()
    whole: dict[str, tuple[str, str, Callable[[Signs], Any]]] = {
        "attention": ("Largest attention logit", "logit", lambda s: {n: h.largest for n, h in s.seen.attention.layers.items()}),
        "log_z": ("Logarithm of the softmax's sum", "log Z, nats", lambda s: {"": s.seen.logits.log_z.value} if s.seen.logits else {}),
    }
    for name, (title, unit, read) in whole.items():
        rows = [{"x": t, "y": y, "series": n} for t, s in good for n, y in read(s).items() if math.isfinite(y)]
        if len(good) > 2 and rows:
            last = {row["series"]: row["y"] for row in rows}
            largest = sorted(last, key=lambda n: -last[n])[:6]
            caption = "On one batch, the same at every step." + (f" The six largest of {len(last)} layers." if len(last) > 6 else "")
            part.charts.append(Chart(name, "lines", title, caption, "step", unit, [row for row in rows if row["series"] in largest]))
    return part


def growing(good: Sequence[tuple[int, Signs]]) -> Part:
    """Attention logits on their way to the limit of float16."""
    part = Part()
    for name in good[-1][1].seen.attention.layers:
        pairs = [(t, s.seen.attention.layers[name].largest) for t, s in good if name in s.seen.attention.layers]
        steps, values = [t for t, _ in pairs], [y for _, y in pairs]
        said, found = growth_findings(
            f"The largest attention logit of {name}", steps, values, LIMITS["float16"], "the largest number of float16"
        )
        part.findings += said
        if said and found is not None and found.step.identified and not any(c.name == "growth" for c in part.charts):
            part.charts.append(ahead(name, steps, values, found))
    return part


def ahead(name: str, steps: Sequence[int], values: Sequence[float], found: BlowUp) -> Chart:
    """A series and where its growth leads."""
    rows: list[dict[str, Any]] = [{"x": t, "y": y, "series": "seen"} for t, y in zip(steps, values, strict=True)]
    ends = {"expected": found.step.value, "earliest": found.step.low, "latest": found.step.high}
    for series_, end in ends.items():
        if math.isfinite(end):
            rows += [{"x": steps[-1], "y": values[-1], "series": series_}, {"x": end, "y": found.limit, "series": series_}]
    rule = [{"y": found.limit, "label": "largest number of float16"}]
    caption = (
        f"{name}: what was seen, and a straight line in the logarithm to the step at which the limit is passed, with its 95 % interval."
    )
    return Chart("growth", "lines", "Where the attention logits lead", caption, "step", "largest logit", rows, log_y=True, rules=rule)


def jumps(scene: Scene) -> Part:
    """Spikes of the loss, with their batches."""
    part, window = Part(), scene.window
    detector = Spikes(window=50, threshold=HIGH)
    for i, t in enumerate(window.steps):
        detector.add(t, window.losses[i], {n: v[i] for n, v in window.gradients.items()}, position=t)
    found = [s for s in detector.found if not s.loss < RISE * s.usual and apart(s, window)]
    part.findings += spike_findings(found)
    for spike in found[:2]:
        at = spike.position if spike.position is not None else spike.step
        if at in window.batches:
            batch = window.batches[at]
            shown_ = [shown(batch, i, "") for i in range(min(SHOWN, count_of(batch)))]
            part.galleries.append(Gallery(f"The batch of step {at:,}, at which the loss jumped", "Its first examples.", shown_))
    return part


def apart(spike: Spike, window: Window) -> bool:
    """Whether the loss stands out on a logarithmic scale, too: batches of a fitted task differ by factors."""
    before = np.array([x for t, x in zip(window.steps, window.losses, strict=True) if t < spike.step and x > 0][-50:])
    return not math.isfinite(spike.loss) or len(before) < 5 or score(np.log(before), math.log(spike.loss))[1] > HIGH


def layers(last: Signs, model: nn.Module) -> Chart:
    """Layers by numbers."""
    rows = []
    for name, numbers in last.seen.activations.numbers.items():
        silent = last.seen.dormant.layers.get(name)
        gradient = last.gradients.get(f"{name}.weight")
        cells = {
            "rms": numbers["rms"],
            "largest": numbers["largest"],
            "gradient": gradient.rms if gradient else None,
            "dead": silent.dead / silent.units if silent else None,
            "dormant": silent.dormant / silent.units if silent else None,
        }
        for key, value in cells.items():
            text = "" if value is None else f"{value:.0%}" if key in ("dead", "dormant") else digits(value)
            rows.append({"name": name or "model", "column": COLUMNS[key], "value": value, "text": text})
    there = {row["column"] for row in rows if row["value"] is not None}
    caption = (
        "On one batch. Gradient: of the layer's weight. Dead: 0 for every example seen; dormant: below 2.5 % of the layer's mean activity."
    )
    return Chart("layers", "heat", "Every layer", caption, "", "", [row for row in rows if row["column"] in there])


def modes(scene: Scene) -> Part:
    """BatchNorm in its two modes."""
    part, found = Part(), batch_norm_modes(scene.whole)
    if found is None:
        return part
    tell = partial(reading, "BatchNorm", step=scene.step)
    part.readings += [
        tell("loss with the batches' statistics", found.train),
        tell("loss with the running ones", found.eval),
        tell("difference", found.gap),
    ]
    part.findings += batch_norm_findings(found)
    return part
