"""Gradients of single examples: noise scale, coherence, easy and hard examples."""

from functools import partial
from typing import Any

from torch import Tensor

from velodrome.commands.inside.part import Part, Scene, reading
from velodrome.data.stream import Batch
from velodrome.probes.estimate import Estimate, exact
from velodrome.probes.findings.statistics import coherence_findings, noise_findings
from velodrome.probes.objective import Objective, joined
from velodrome.probes.statistics.coherence import by_class, by_layer
from velodrome.probes.statistics.coherence import coherence as coherence_of
from velodrome.probes.statistics.ghost import ExampleNorms, gradient_norms
from velodrome.probes.statistics.noise_scale import noise_scale
from velodrome.reports.inside import Chart, Gallery, Shown
from velodrome.reports.inside_page import picture
from velodrome.reports.words import digits

SHOWN = 8  # examples of a gallery


def single(scene: Scene) -> tuple[Objective, ExampleNorms]:
    """The examples' gradients, by one pass for all topics; in evaluation mode where BatchNorm would mix the examples."""
    if "norms" not in scene.shared:
        objective = scene.whole
        if objective.mixes():
            objective = Objective(scene.subject.model, scene.subject.loss, scene.subject.batches, mode="eval")
        scene.shared["norms"] = objective, gradient_norms(objective, inner=True)[0]
    found: tuple[Objective, ExampleNorms] = scene.shared["norms"]
    return found


def noise(scene: Scene) -> Part:
    """The gradient noise scale of the examples held still."""
    objective, norms = single(scene)
    found, batch = noise_scale(norms), scene.subject.batch_size
    part, tell = Part(), partial(reading, "Gradient noise", step=scene.step)
    part.readings += [tell("noise scale", found.value), tell("batch in use", exact(batch, "examples"))]
    if found.value.identified:
        part.readings.append(tell("worth of an example in it", exact(found.efficiency(batch), "of a small batch's")))
    part.readings += [tell("squared gradient", found.squared), tell("trace of the covariance", found.trace)]
    part.findings += noise_findings(found, batch, scene.step)
    if objective.mode == "eval" and scene.options.mode is None and scene.subject.model.training:
        part.notes.append("single examples were looked at in evaluation mode, since BatchNorm mixes those of a batch")
    return part


def coherence(scene: Scene) -> Part:
    """Agreement over all examples, by layer and by class."""
    objective, norms = single(scene)
    found, layers = coherence_of(norms), by_layer(norms)
    part, tell = Part(), partial(reading, "Coherence", step=scene.step)
    part.readings += [
        tell("examples that one gradient serves", found.m_coherence),
        tell("cosine of two examples", found.unbiased),
    ]
    part.findings += coherence_findings(found, *without_inputs(objective, norms), scene.step)
    rows = [bar(name, x.m_coherence) for name, x in layers.items() if x.m_coherence.identified]
    rule = [{"y": 1, "label": "orthogonal"}]
    caption = f"m-coherence of {found.m:,} examples, 95 % intervals; 1: orthogonal gradients, {found.m:,}: identical ones."
    part.charts.append(
        Chart(
            "coherence",
            "dots",
            "Agreement of the examples, by layer",
            caption,
            "",
            "examples served",
            rows,
            log_y=all(r["low"] > 0 for r in rows),
            rules=rule,
        )
    )
    whole = together(objective)
    if isinstance(whole.targets, Tensor) and whole.targets.ndim == 1 and not whole.targets.is_floating_point():
        classes = {f"class {c}": x for c, x in by_class(objective).items()}
        each = [bar(name, x.m_coherence) | {"y": x.m_coherence.value / x.m} for name, x in classes.items() if x.m_coherence.identified]
        each = [{**row, "low": row["low"] / classes[row["name"]].m, "high": row["high"] / classes[row["name"]].m} for row in each]
        caption = "m-coherence over the number of examples of the class: 1 where all say the same."
        if len(each) > 1:
            part.charts.append(Chart("classes", "dots", "Agreement within each class", caption, "", "share served", each))
    return part


def without_inputs(objective: Objective, norms: ExampleNorms) -> tuple[float, float]:
    """(the mean loss, the entropy of the labels); NaN where targets are no classes of examples or losses are not known."""
    targets = together(objective).targets
    classes = isinstance(targets, Tensor) and targets.ndim == 1 and not targets.is_floating_point()
    if norms.losses is None or not classes:
        return float("nan"), float("nan")
    share = targets.unique(return_counts=True)[1].double() / len(targets)
    return float(norms.losses.mean()), float(-(share * share.log()).sum())


def bar(name: str, e: Estimate) -> dict[str, Any]:
    """A row of a chart of dots."""
    return {"name": name or "model", "y": e.value, "low": e.low, "high": e.high}


def examples(scene: Scene) -> Part:
    """The examples with the largest loss, and those with the largest gradient."""
    objective, norms = single(scene)
    part, whole = Part(), together(objective)
    order = norms.squared.sqrt().argsort(descending=True).tolist()
    caption = {i: f"gradient {digits(float(norms.squared[i].sqrt()))}" for i in order}
    if norms.losses is not None:
        order = norms.losses.argsort(descending=True).tolist()
        caption = {i: f"loss {digits(float(norms.losses[i]))}, {caption[i]}" for i in order}
    what = "loss" if norms.losses is not None else "gradient"
    told = "Wrong labels and outliers are found here. Numbers count the examples held still, from 0."
    part.galleries.append(Gallery(f"Examples with the largest {what}", told, [shown(whole, i, caption[i]) for i in order[:SHOWN]]))
    share = norms.squared / norms.squared.sum()
    top = share.sort(descending=True).values
    part.readings.append(
        reading(
            "Examples",
            "gradients' squares in the top 1 %",
            exact(float(top[: max(1, norms.n // 100)].sum()), ""),
        )
    )
    return part


def together(objective: Objective) -> Batch:
    """All examples as one batch."""
    whole = objective.batches[0]
    for batch in objective.batches[1:]:
        whole = joined(whole, batch)
    return whole


def shown(batch: Batch, i: int, caption: str) -> Shown:
    """One example as an image where its inputs look like one, as text where they are bytes, else as its first numbers."""
    x: Any = batch.inputs
    label = f"no. {i}"
    if isinstance(batch.targets, Tensor) and batch.targets.ndim == 1:
        label += f", target {batch.targets[i].item():g}"
    if not isinstance(x, Tensor):
        return Shown(label, caption)
    one = x[i].detach().cpu()
    if one.is_floating_point():
        image = as_image(one.float())
        if image is not None:
            return Shown(label, caption, picture(image))
        return Shown(label, caption, text=" ".join(digits(float(v)) for v in one.flatten()[:8]) + (" …" if one.numel() > 8 else ""))
    values = one.flatten().tolist()
    if all(0 <= v < 256 for v in values) and sum(9 <= v < 127 for v in values) > 0.9 * len(values):
        return Shown(label, caption, text=bytes(values).decode("latin-1"))
    return Shown(label, caption, text=" ".join(map(str, values[:32])))


def as_image(x: Tensor) -> Any:
    """(height, width) or (height, width, 3) of an example that has the shape of a picture, or the length of a square one of 8 x 8 or more; else None."""
    if x.ndim == 3 and x.shape[0] in (1, 3) and min(x.shape[1:]) >= 4:
        return (x[0] if x.shape[0] == 1 else x.movedim(0, -1)).numpy()
    if x.ndim == 2 and min(x.shape) >= 8:
        return x.numpy()
    side = int(x.numel() ** 0.5)
    if x.ndim == 1 and side * side == x.numel() and side >= 8:
        return x.view(side, side).numpy()
    return None
