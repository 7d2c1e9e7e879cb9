"""Probes that differentiate: sharpness against the threshold of the optimizer in use, warm-started from one look to the next."""

from velodrome.probes.edge.gauge import Edge, edge
from velodrome.probes.estimate import Estimate
from velodrome.probes.watching.passes import noted
from velodrome.probes.watching.probe import Probe, View

COLD, WARM = 12, 4  # Hessian-vector products


class Sharpness(Probe):
    """`ratio`: sharpness over the optimizer's threshold (`edge.gauge`, 1 is the edge of stability); `sharpness` itself, loss/(parameter · update).

    Of the step's own batch or a part of it, whose curvature is above that of all data; the note says of which part and whether it has converged.
    """

    name, needs, prior, every, patience = "sharpness", "curvature", 40.0, 50, 500

    def __init__(self) -> None:
        self.last: Edge | None = None

    def measure(self, view: View) -> dict[str, Estimate]:
        """Twelve products the first time, four then; the first time the loss is also checked to be one function."""
        objective = view.objective(check=self.last is None)
        found = edge(objective, view.optimizer, last=self.last, products=WARM if self.last is not None else COLD)
        self.last = found
        return {name: noted(e, view.label()) for name, e in (("ratio", found.ratio), ("sharpness", found.sharpness))}
