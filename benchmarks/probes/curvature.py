"""Products with Hessian and Gauss-Newton matrix: `python -m benchmarks.probes curvature`, as ratios to one gradient.

Every method answers the same v in turns; "amortised" is a product after the operator is made, "made" the making. The peers' products are checked against
ours, and where one is off by more than 1e-3 the line says so. PyHessian keeps the graph of one batch, as we do; curvlinops and hessian-eigenthings go
through forward and backward for each product. With `VELODROME_COMPILED=1` the compiled operators are timed too; the compiler takes minutes.
"""

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.probes.bar import Bar
from benchmarks.probes.models import Task, tasks
from benchmarks.probes.timing import gradient, side_by_side
from velodrome.probes.curvature.compiled import compiled_hessian
from velodrome.probes.curvature.gauss_newton import gauss_newton
from velodrome.probes.curvature.hessian import hessian
from velodrome.probes.curvature.operator import Operator
from velodrome.probes.objective import Objective

HVP = {"MLP": 1.6, "CNN": 1.6, "GPT": 2.3}
GGN = {"MLP": 1.5}
LINEARIZED = {"CNN": 1.0, "GPT": 1.4}
COMPILED = {"GPT": 1.8}
PRODUCTS = 4  # in one timed call


def rows(quick: bool = False) -> list[Bar]:
    """Ours and the peers', for each network."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    return [bar for task in tasks() for bar in table(task, 5 if quick else 15)]


def table(task: Task, rounds: int) -> list[Bar]:
    """One network."""
    model, x, y = task.rows()
    objective = Objective(model, nn.CrossEntropyLoss(), (x, y))
    torch.manual_seed(0)
    v = torch.randn(sum(p.numel() for p in objective.params.values()))
    H, G = hessian(objective), gauss_newton(objective)
    ways: dict[str, Callable[[], Any]] = {"gradient": gradient(task)}
    ways["HVP"], ways["GGN"] = (lambda: times(H, v)), (lambda: times(G, v))
    linear = gauss_newton(objective, linearized=True)
    ways["GGN linearized"] = lambda: times(linear, v)
    rebuilt = hessian(objective, keep=False)
    ways["HVP, nothing kept"] = lambda: rebuilt @ v
    ways["HVP made"], ways["GGN made"] = (lambda: hessian(objective)), (lambda: gauss_newton(objective))
    if os.environ.get("VELODROME_COMPILED"):
        C = compiled_hessian(objective)
        ways["HVP compiled"] = lambda: times(C, v)
    notes, truth = {}, {"H": H @ v, "G": G @ v}
    for name, (product, which) in peers(task, v, notes).items():
        ways[name] = product
        error = float((product() - truth[which]).norm() / truth[which].norm())
        notes[name] = f"off by {error:.1%}" if error > 1e-3 else f"agrees to {error:.0e}"
    per = {name: PRODUCTS for name in ("HVP", "GGN", "GGN linearized", "HVP compiled")}
    taken = side_by_side(ways, rounds, per=per)
    best = {w: min(((t.ratio, n) for n, t in taken.items() if f" {w}" in n), default=None) for w in ("HVP", "GGN")}
    goals = {
        "HVP": HVP[task.name],
        "GGN": GGN.get(task.name),
        "GGN linearized": LINEARIZED.get(task.name),
        "HVP compiled": COMPILED.get(task.name),
    }
    found = []
    for name, t in taken.items():
        rival = best.get(name.split(" ")[0]) if name in goals else None
        told = f"{rival[0]:.2f} {rival[1].split(' ')[0]}" if rival else ""
        note = notes.pop(name, "") + f" {t.seconds * 1e3:.1f} ms, quartiles {t.spread / t.seconds:.0%} apart"
        found.append(Bar("curvature", f"{task.name} {name}", t.ratio, "gradients", goals.get(name), told, note.strip()))
    return found + [Bar("curvature", f"{task.name} {name}", None, "gradients", note=why) for name, why in notes.items()]


def times(operator: Operator, v: Tensor) -> None:
    """Products one after the other, none kept: as a peer's single call."""
    for _ in range(PRODUCTS):
        operator @ v


def peers(task: Task, v: Tensor, notes: dict[str, str]) -> dict[str, tuple[Callable[[], Tensor], str]]:
    """name -> (product, H or G) of the peers that are installed and run; why not, for the others, goes into `notes`."""
    found: dict[str, tuple[Callable[[], Tensor], str]] = {}
    for make in (pyhessian, curvlinops, eigenthings):
        try:
            found |= make(task, v)
        except Exception as error:
            notes[f"{make.__name__} HVP"] = (
                "not installed" if isinstance(error, ImportError) else f"fails: {type(error).__name__}: {error}"[:90]
            )
    return found


def pyhessian(task: Task, v: Tensor) -> dict[str, tuple[Callable[[], Tensor], str]]:
    """PyHessian 0.1: its own product on the graph that it keeps."""
    from pyhessian import hessian as their_hessian
    from pyhessian.utils import hessian_vector_product

    model, x, y = task.rows()
    h = their_hessian(model, nn.CrossEntropyLoss(), data=(x, y), cuda=False)
    pieces = [q.view_as(p) for p, q in zip(h.params, v.split([p.numel() for p in h.params]), strict=True)]
    for p in model.parameters():
        p.grad = None  # it leaves a graph there
    return {"pyhessian HVP": (lambda: torch.cat([z.flatten() for z in hessian_vector_product(h.gradsH, h.params, pieces)]), "H")}


def curvlinops(task: Task, v: Tensor) -> dict[str, tuple[Callable[[], Tensor], str]]:
    """curvlinops: Hessian and Gauss-Newton."""
    from curvlinops import GGNLinearOperator, HessianLinearOperator

    model, x, y = task.rows()
    params = [p for p in model.parameters() if p.requires_grad]
    data, loss = [(x, y)], nn.CrossEntropyLoss()
    theirs = {"H": HessianLinearOperator(model, loss, params, data), "G": GGNLinearOperator(model, loss, params, data)}
    return {"curvlinops HVP": (lambda: theirs["H"] @ v, "H"), "curvlinops GGN": (lambda: theirs["G"] @ v, "G")}


def eigenthings(task: Task, v: Tensor) -> dict[str, tuple[Callable[[], Tensor], str]]:
    """hessian-eigenthings by automatic differentiation."""
    from hessian_eigenthings import HessianOperator
    from hessian_eigenthings.loss_fns import supervised_loss

    model, x, y = task.rows()
    theirs = HessianOperator(model, [(x, y)], supervised_loss(torch.nn.functional.cross_entropy))
    return {"eigenthings HVP": (lambda: theirs.matvec(v), "H")}
