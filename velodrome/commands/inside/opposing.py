"""Groups of examples that pull apart, from the losses of the same examples at the last steps of the window."""

import torch
from torch import Tensor

from velodrome.commands.inside.part import Part, Scene, reading
from velodrome.commands.inside.statistics import SHOWN, shown, together
from velodrome.probes.findings.opposing import opposing_findings
from velodrome.probes.statistics.opposing import opposing_groups, opposition
from velodrome.reports.inside import Gallery
from velodrome.train import Step

SHARE = 16  # of the examples, in each group


def losses(scene: Scene, step: Step) -> Tensor | None:
    """The losses of the examples that curvature is measured on; None where the loss gives only their mean."""
    objective = scene.few
    with objective.ready(), torch.no_grad():
        parts = [scene.subject.loss(objective.outputs(b), b.targets) for b in objective.batches]
    return torch.cat(parts).double().cpu() if all(p.ndim == 1 for p in parts) else None


def opposing(scene: Scene) -> Part:
    """The two groups that moved against each other most."""
    part = Part()
    table = [(t, x) for t, x in scene.window.readings.get("losses", []) if x is not None and bool(x.isfinite().all())]
    if len(table) < 7 or scene.few.examples < 2 * SHARE:
        return part
    groups = opposing_groups([x for _, x in table], max(2, scene.few.examples // SHARE))
    found = opposition(scene.few, groups)
    step = table[groups.at][0]
    part.readings.append(reading("Examples", "phase of the two that move most", groups.correlation, step=step))
    part.readings.append(reading("Examples", "cosine of their gradients", found.cosine, step=step))
    part.findings += opposing_findings(groups, found, float(table[groups.at][1].mean()), step)
    if part.findings:
        whole = together(scene.few)
        for name, places in (("rises", groups.rising), ("falls", groups.falling)):
            few = [shown(whole, i, "") for i in places.tolist()[:SHOWN]]
            part.galleries.append(Gallery(f"The group whose loss {name} at step {step + 1:,}", "", few))
    return part
