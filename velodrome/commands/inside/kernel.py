"""The tangent kernel: spectrum and fit to the labels."""

from functools import partial

import torch

from velodrome.commands.inside.part import Part, Scene, first, reading
from velodrome.probes.functions.kernel import alignment, spectrum
from velodrome.probes.functions.ntk import ntk as exact_kernel
from velodrome.probes.functions.ntk import ntk_sketch
from velodrome.probes.objective import joined
from velodrome.reports.inside import Chart

TOPIC = "Tangent kernel"
EXAMPLES, OUTPUTS, DRAWS = 128, 64, 48


def ntk(scene: Scene) -> Part:
    """The kernel of some examples, over all outputs' sum of kernels."""
    objective = scene.objective(first(scene.few.batches, EXAMPLES), scene.options.micro_batch)
    with objective.ready(), torch.no_grad():
        width = objective.outputs(objective.batches[0]).flatten(1).shape[1]
    kernel = exact_kernel(objective, "trace") if width <= OUTPUTS else ntk_sketch(objective, "trace", draws=DRAWS, seed=scene.options.seed)
    found = spectrum(kernel)
    part, tell = Part(), partial(reading, TOPIC, step=scene.step)
    part.readings += [
        tell("trace", found.trace),
        tell("effective rank", found.effective_rank),
        tell("largest eigenvalue", found.largest),
        tell("condition", found.condition),
    ]
    whole = objective.batches[0]
    for batch in objective.batches[1:]:
        whole = joined(whole, batch)
    labels = whole.targets
    if isinstance(labels, torch.Tensor) and labels.ndim == 1 and kernel.sketch is None:
        fit = alignment(kernel, labels, (1, 10))
        part.readings += [tell("alignment with the labels", fit.cka)]
        part.readings += [tell(f"share of the labels in the top {k}", share) for k, share in fit.top.items()]
    if len(found.values):
        rows = [{"x": i + 1, "y": float(v)} for i, v in enumerate(found.values) if float(v) > 0]
        caption = f"{objective.examples} examples, kernels of all {width} outputs added."
        part.charts.append(
            Chart("ntk", "lines", "Spectrum of the tangent kernel", caption, "rank", "eigenvalue", rows, log_x=True, log_y=True)
        )
    return part
