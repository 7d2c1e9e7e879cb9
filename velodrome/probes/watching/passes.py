"""The probe that runs the model once more, on a part of the batch: activations, attention, silent units, output logits in one pass.

The training's own pass is left alone: what sees inside it would have to be on while the loop's code runs, and a compiled model has no inside.
"""

import math

from velodrome.probes.estimate import Estimate, exact
from velodrome.probes.failures.activations import UNITS
from velodrome.probes.failures.attention import LOGIT
from velodrome.probes.failures.observe import Seen, observe
from velodrome.probes.watching.probe import Probe, View


class Layers(Probe):
    """Signs of failure, of the examples named in the notes.

    `log_z`, `logit_mean`, `logit_largest`, `collapsed` of the outputs (`failures.log_z`); `attention/LAYER` the largest attention logit of a layer,
    `entropy_lowest` the lowest head's share of the largest entropy; `dormant` and `dead` shares of units; `rms_largest`, `rms_smallest` and `headroom` (to
    the largest number of the format) of the layers' outputs, the layer named; `not_finite` counts layers.
    """

    name, needs, prior, every = "layers", "forward", 1.5, 10

    def measure(self, view: View) -> dict[str, Estimate]:
        """One forward pass."""
        with view.running() as run, observe(view.model) as seen:
            run()
        return {**outputs(seen, view.label()), **inside(seen, view.label())}


def outputs(seen: Seen, label: str) -> dict[str, Estimate]:
    """Of the model's outputs, if they are logits."""
    if seen.logits is None:
        return {}
    z = seen.logits
    found = {"log_z": z.log_z, "logit_mean": z.mean, "logit_largest": z.largest, "collapsed": z.collapsed}
    return {name: noted(e, label) for name, e in found.items()}


def inside(seen: Seen, label: str) -> dict[str, Estimate]:
    """Of the layers."""
    out = {f"attention/{name}": exact(heads.largest, LOGIT, note=label) for name, heads in seen.attention.layers.items()}
    shares = {name: heads.lowest for name, heads in seen.attention.layers.items() if math.isfinite(heads.lowest)}
    if shares:
        low = min(shares, key=lambda n: shares[n])
        out["entropy_lowest"] = exact(shares[low], "share of the largest entropy, 0 to 1", note=named(low, label))
    if seen.dormant.layers:
        out |= {"dormant": noted(seen.dormant.share, label), "dead": noted(seen.dormant.dead, label)}
    sizes = {name: n for name, n in seen.activations.numbers.items() if math.isfinite(n["rms"])}
    if sizes:
        low, high = min(sizes, key=lambda n: sizes[n]["rms"]), max(sizes, key=lambda n: sizes[n]["rms"])
        tight = min(sizes, key=lambda n: sizes[n]["headroom"])
        out["rms_largest"] = exact(sizes[high]["rms"], UNITS["rms"], note=named(high, label))
        out["rms_smallest"] = exact(sizes[low]["rms"], UNITS["rms"], note=named(low, label))
        out["headroom"] = exact(sizes[tight]["headroom"], UNITS["headroom"], note=named(tight, label))
    broken = [name for name, n in seen.activations.numbers.items() if not math.isfinite(n["rms"])]
    out["not_finite"] = exact(len(broken), "layers", note=", ".join(broken[:3]))
    return out


def noted(estimate: Estimate, label: str) -> Estimate:
    """The same with the examples it is about."""
    return Estimate(**{**vars(estimate), "note": named(estimate.note, label)})


def named(name: str, label: str) -> str:
    """A layer and the examples."""
    return "; ".join(x for x in (name, label) if x)
