"""The Hessian's spectrum and slices of the loss."""

from functools import partial

import torch

from velodrome.commands.inside.part import Part, Scene, reading
from velodrome.probes.curvature.hessian import Hessian, hessian
from velodrome.probes.functions.landscape import loss_slice, random_direction
from velodrome.probes.spectra.density import density
from velodrome.probes.spectra.top import Pairs, top_eigenpairs
from velodrome.reports.inside import Chart
from velodrome.reports.words import digits

TOPIC = "Curvature"
DRAWS, ORDER, TOP = 4, 30, 3
UNIT = "loss/parameter²"


def spectrum(scene: Scene) -> Part:
    """Largest eigenvalues, density, trace, share of negative curvature."""
    h = hessian(scene.few)
    pairs, found = top(scene, h), density(h, DRAWS, ORDER, seed=scene.options.seed, unit=UNIT)
    part, tell = Part(), partial(reading, TOPIC, step=scene.step)
    for i in range(len(pairs.values)):
        part.readings.append(tell("largest eigenvalue" if not i else f"eigenvalue {i + 1}", pairs.estimate(i, UNIT)))
    part.readings += [
        tell("smallest eigenvalue", found.smallest),
        tell("trace", found.trace),
        tell("share of negative eigenvalues", found.negative()),
        tell("share within 1 % of 0", found.near_zero()),
    ]
    rows = []
    floor = float(found.pdf.max()) * 1e-5
    for x, y, error in zip(found.grid, found.pdf, found.band, strict=True):
        if y > floor:
            rows.append({"x": float(x), "y": float(y), "low": max(float(y - 2 * error), floor), "high": float(y + 2 * error)})
    caption = (
        f"Stochastic Lanczos, {DRAWS} draws of order {ORDER} on {scene.few.examples:,} examples. Band: two standard errors over the draws. "
        "Each eigenvalue is smoothed to a bell."
    )
    part.charts.append(
        Chart(
            "density",
            "lines",
            "Density of the Hessian's eigenvalues",
            caption,
            "eigenvalue",
            "density",
            rows[:: max(1, len(rows) // 400)],
            log_y=True,
        )
    )
    return part


def top(scene: Scene, h: Hessian) -> Pairs:
    """The eigenpairs, computed once for a scene."""
    kept = scene.shared.get("pairs")
    if kept is None:
        kept = scene.shared["pairs"] = top_eigenpairs(h, min(TOP, h.n), 1e-3, seed=scene.options.seed)
    assert isinstance(kept, Pairs)
    return kept


def landscape(scene: Scene) -> Part:
    """The loss along the gradient, the sharpest direction and a random one."""
    h = hessian(scene.few)
    pairs = top(scene, h)
    sharp, g = float(pairs.values.abs().max()), h.gradient
    wide = (2 * abs(h.loss) / max(sharp, 1e-30)) ** 0.5
    steep = min(abs(h.loss) / max(float(g.norm()), 1e-30), 4 * wide)
    lines = {
        "against the gradient": (h.split(-g / max(float(g.norm()), 1e-30)), steep),
        "sharpest direction": (h.split(pairs.vectors[:, 0].to(h.dtype)), wide),
        "random direction": (random_direction(scene.few, scene.options.seed), 1.0),
    }
    rows = []
    for name, (direction, span) in lines.items():
        found = loss_slice(
            scene.few, {n: d.to(torch.float32) if d.dtype == torch.float64 else d for n, d in direction.items()}, span=span, points=21
        )
        for row in found.rows():
            y, e = row["loss"], 2 * row["error"]
            rows.append({"x": row["x"] / span, "y": y, "low": y - e, "high": y + e, "series": f"{name} (±{digits(span)})"})
    part = Part()
    caption = (
        f"From -1 to 1 times the distance in brackets; the random one is filter-normalised. Band: two standard errors over {scene.few.examples:,} "
        "examples, the same at every point."
    )
    part.charts.append(
        Chart("landscape", "lines", "The loss around the weights", caption, "distance", "loss", [r for r in rows if r["y"] == r["y"]])
    )
    return part
