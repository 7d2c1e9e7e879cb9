"""Probes that differentiate: sharpness against the threshold of the optimizer in use, warm-started from one look to the next."""

from velodrome.probes.edge.critical import Critical, critical_sharpness
from velodrome.probes.edge.gauge import Edge, edge
from velodrome.probes.edge.thresholds import threshold
from velodrome.probes.estimate import Estimate
from velodrome.probes.watching.passes import noted
from velodrome.probes.watching.probe import Probe, View

COLD, WARM = 12, 4  # Hessian-vector products


class Sharpness(Probe):
    """`ratio`: sharpness over the optimizer's threshold (`edge.gauge`, 1 is the edge of stability); `sharpness` itself, loss/(parameter · update).

    Of the step's own batch or a part of it, whose curvature is above that of all data; the note says of which part and whether it has converged.
    With an optimizer that has no threshold (Lion, Muon) it is `critical` instead: one over the multiple of the coming update that would leave the loss
    where it is (`edge.critical`, 1 is the edge for these examples, mostly below what a threshold would say), by forward passes.
    """

    name, needs, prior, every, patience = "sharpness", "curvature", 40.0, 50, 500

    def __init__(self) -> None:
        self.last: Edge | None = None
        self.critical: Critical | None = None
        self.bounded: bool | None = None  # whether the optimizer has a threshold

    def measure(self, view: View) -> dict[str, Estimate]:
        """Twelve products the first time, four then; the first time the loss is also checked to be one function."""
        objective = view.objective(check=self.bounded is None)
        if self.bounded is None:
            self.bounded = has_threshold(view)
        if not self.bounded:
            self.critical = critical_sharpness(objective, view.optimizer, last=self.critical)
            return {"critical": noted(self.critical.ratio, view.label())}
        found = edge(objective, view.optimizer, last=self.last, products=WARM if self.last is not None else COLD)
        self.last = found
        return {name: noted(e, view.label()) for name, e in (("ratio", found.ratio), ("sharpness", found.sharpness))}


def has_threshold(view: View) -> bool:
    """Whether one is known for all groups."""
    try:
        for group in view.optimizer.param_groups:
            threshold(view.optimizer, group)
    except ValueError:
        return False
    return True
