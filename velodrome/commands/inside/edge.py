"""The learning rate against its threshold: readings along the window, and one at its end."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from velodrome.commands.inside.part import Part, Scene, reading
from velodrome.probes.edge.batch_sharpness import FEWEST, batch_sharpness
from velodrome.probes.edge.critical import critical_sharpness
from velodrome.probes.edge.gauge import Edge
from velodrome.probes.edge.gauge import edge as gauge
from velodrome.probes.estimate import exact
from velodrome.probes.findings.edge import edge_findings
from velodrome.recipes.load import cause
from velodrome.reports.inside import Chart
from velodrome.train import Step

TOPIC = "Edge of stability"
LEVELS: dict[str, Any] = {"below the edge": "fine", "at the edge": "watch", "above": "sick", "not separable": "remark"}


class EdgeReader:
    """Reads the gauge along a window, each time from the last reading's eigenvector."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.last = scene, None

    last: Edge | None

    def __call__(self, step: Step) -> Edge | str:
        """The reading at a step, between its gradient and its update; a sentence where there is none to be had."""
        optimizer = self.scene.subject.optimizer
        assert optimizer is not None
        try:
            products = None if self.last is None else 8
            found = gauge(self.scene.few, optimizer, last=self.last, before_step=True, products=products)
        except ValueError as error:
            return str(error)
        except Exception as error:  # an optimizer of the user's own, whose copy cannot make a step
            return f"no threshold of stability could be read for {type(optimizer).__name__} ({cause(error)})"
        self.last = found
        return found


def edge(scene: Scene) -> Part:
    """What the readings of the window say, the batches' own sharpness, and the step at which this batch's loss would rise."""
    part, optimizer = Part(), scene.subject.optimizer
    if optimizer is None:
        raise ValueError("the edge of stability belongs to an optimizer: let the function return (model, loss, batches, optimizer).")
    found = scene.window.readings.get("edge", [])
    good = [(t, e) for t, e in found if isinstance(e, Edge)]
    diverged = scene.window.steps[-1] if scene.window.diverged else None
    unseen = [str(e) for _, e in found if not isinstance(e, Edge)]
    if good and unseen:
        part.notes.append(f"{len(unseen)} of {len(found)} readings of the threshold are left out: {unseen[-1].partition(':')[0]}")
    if good:
        part += gauged(good, scene.few.examples)
        part.findings += edge_findings(good, diverged)
    else:
        part.notes.append(
            str(found[-1][1]).partition(":")[0] if found else "no reading of the threshold was made: give --budget more seconds"
        )
    if diverged is None:
        part += forward(scene, optimizer)
        part += batches(scene, optimizer)
    return part


def gauged(good: Sequence[tuple[int, Edge]], examples: int) -> Part:
    """The gauge at the last step and along the window."""
    part = Part()
    t, last = good[-1]
    tell = partial(reading, TOPIC, step=t)
    part.readings.append(tell("learning rate over threshold", last.ratio, verdict=last.verdict, level=LEVELS[last.verdict]))
    part.readings.append(tell("sharpness it feels", last.sharpness))
    if len({x.value for x in last.thresholds}) == 1:
        threshold = last.thresholds[0]
        part.readings.append(tell(f"threshold of {threshold.name}", exact(threshold.value, last.sharpness.unit)))
    rows = [{"x": s, "y": e.ratio.value, "low": e.ratio.low, "high": e.ratio.high} for s, e in good]
    caption = f"On {examples:,} examples; band: proven bounds of the eigenvalue that is nearest. Dashed: where oscillations stop dying out."
    rule = [{"y": 1, "label": "threshold"}]
    part.charts.append(Chart("edge", "lines", "Learning rate over stability threshold", caption, "step", "ratio", rows, rules=rule))
    return part


def forward(scene: Scene, optimizer: torch.optim.Optimizer) -> Part:
    """Critical sharpness: by forward passes alone, for any optimizer."""
    part = Part()
    try:
        found = critical_sharpness(scene.few, optimizer)
    except Exception as error:  # also whatever a copy of the user's own optimizer raises
        part.notes.append(f"critical sharpness could not be read: {cause(error)}")
        return part
    tell = partial(reading, TOPIC, step=scene.step)
    part.readings.append(tell("next update over the longest harmless", found.ratio, verdict=found.verdict, level=LEVELS[found.verdict]))
    part.readings.append(tell("critical sharpness", found.sharpness))
    return part


def batches(scene: Scene, optimizer: torch.optim.Optimizer) -> Part:
    """Batch sharpness, where plain SGD trains by batches."""
    part, group = Part(), optimizer.param_groups[0]
    plain = isinstance(optimizer, torch.optim.SGD) or str(group.get("chain", "")) in ("descend", "momentum descend")
    if not plain or len(scene.whole.batches) < FEWEST or scene.whole.mixes() or not group["lr"] > 0:
        return part
    found = batch_sharpness(scene.whole, float(group["lr"]), momentum=float(group.get("momentum", 0.0)))
    tell = partial(reading, TOPIC, step=scene.step)
    part.readings.append(tell("batch sharpness over 2 / rate", found.ratio, verdict=found.verdict, level=LEVELS[found.verdict]))
    return part
