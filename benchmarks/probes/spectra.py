"""Spectra: densities and top pairs in gradients and products, beside curvlinops and PyHessian; and how often every interval covers."""

import copy
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from scipy.stats import wasserstein_distance
from torch import nn

from benchmarks.probes.bar import Bar
from benchmarks.probes.models import Task, gpt, mlp
from benchmarks.probes.timing import gradient, side_by_side
from velodrome.data import images
from velodrome.data.folder import find
from velodrome.probes.curvature.hessian import Hessian, hessian
from velodrome.probes.curvature.operator import Matrix
from velodrome.probes.estimate import Estimate
from velodrome.probes.objective import Objective
from velodrome.probes.spectra.alignment import alignment
from velodrome.probes.spectra.density import density
from velodrome.probes.spectra.diagonal import diagonal
from velodrome.probes.spectra.norms import norms
from velodrome.probes.spectra.top import Pairs, top_eigenpairs, unseen
from velodrome.probes.spectra.trace import trace

SEED, TIMES, FLAG = 0, 200, 0.1  # of the value: a residual above it says that four products were too few


def rows(quick: bool = False) -> list[Bar]:
    """All figures; `quick` leaves out the peers' long densities and takes fewer repetitions."""
    return [*densities(quick), *exactness(quick), *pairs(quick), *traces(quick), *coverage(quick)]


def curvature(task: Task) -> Hessian:
    """The Hessian of the task's mean cross-entropy, its graph made now."""
    model, x, y = task.rows()
    return hessian(Objective(model, nn.CrossEntropyLoss(), (x, y), check=False))


def densities(quick: bool) -> list[Bar]:
    """One density as a whole, graph included, over one gradient; methods in turns."""
    found = []
    for task, draws, order, bar, best in ((mlp(), 10, 80, 1500, 4079), (gpt(), 4, 30, 310, 637)):
        methods: dict[str, Callable[[], Any]] = {
            "gradient": gradient(task),
            "ours": lambda t=task, d=draws, o=order: density(curvature(t), d, o),  # type: ignore[misc]
        }
        per = {"gradient": 1}
        if find_spec("curvlinops") and not quick:
            methods["curvlinops"] = peer_density(task, draws, order)
        timed = side_by_side({**methods, "gradient": repeated(methods["gradient"], 20)}, 1 if quick else 3, per={**per, "gradient": 20})
        what = f"{task.name} density {draws}x{order}"
        found.append(Bar("spectra", what, timed["ours"].ratio, "gradients", bar, f"curvlinops {best}"))
        if "curvlinops" in timed:
            found.append(
                Bar("spectra", f"{what}, curvlinops", timed["curvlinops"].ratio, "gradients", note="same process, boundaries given")
            )
    return found


def repeated(call: Callable[[], Any], times: int) -> Callable[[], None]:
    """The same several times, so that one round is long enough to be timed."""

    def run() -> None:
        for _ in range(times):
            call()

    return run


def peer_density(task: Task, draws: int, order: int) -> Callable[[], Any]:
    """curvlinops' density with the boundaries given, which spares it the search for them."""
    import curvlinops  # a peer, optional

    model, x, y = task.rows()
    params = [p for p in model.parameters() if p.requires_grad]

    def run() -> Any:
        operator = curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(), params, [(x, y)], check_deterministic=False)
        return curvlinops.lanczos_approximate_spectrum(operator, order, num_points=256, num_repeats=draws, boundaries=(-1.0, 10.0))

    return run


def exactness(quick: bool) -> list[Bar]:
    """W1 distance of density and exact eigenvalues over the mean magnitude, an MLP of 1,893 parameters at three stages of training."""
    torch.manual_seed(SEED)
    model = nn.Sequential(nn.Linear(32, 35), nn.Tanh(), nn.Linear(35, 17), nn.Tanh(), nn.Linear(17, 7))
    x = torch.randn(256, 32)
    y = (x[:, :7] + 0.5 * torch.randn(256, 7)).argmax(1)
    optimizer, found = torch.optim.Adam(model.parameters(), 1e-2), []
    for stage, bar in ((0, 0.06), (50, 0.11), (300, 0.11)):
        for _ in range(stage - (0 if stage < 300 else 50)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        operator = hessian(Objective(model, nn.CrossEntropyLoss(), (x, y), check=False))
        exact = torch.linalg.eigvalsh(operator.dense().double()).numpy()
        d = density(operator, 10, 80)
        away = wasserstein_distance(np.concatenate(d.nodes), exact, np.concatenate(d.weights)) / np.abs(exact).mean()
        said = f"n = {operator.n}; trace error said {abs(d.trace.error / d.trace.value):.0%}, is {abs(d.trace.value / exact.sum() - 1):.0%}"
        found.append(Bar("spectra", f"W1 of density 10x80 after {stage} steps", float(away), "", bar, "curvlinops 0.04-0.12", said))
        if quick:
            break
    return found


def pairs(quick: bool) -> list[Bar]:
    """Products for five pairs along a training, cold and warm, and the sharpness of four warm products; the truth from long runs."""
    found = []
    for name, widths, every in (("MLP 84,060", (100, 50), 10), ("MLP 939,482", (720, 512), 10)):
        if quick and "939" in name:
            continue
        along = tracked(widths, every, 5 if quick else 20 if "84" in name else 8)
        for which, bar in (("cold", 40), ("warm", 15)):
            counts, wrong = zip(*along[which], strict=True)
            note = f"from {min(counts)} to {max(counts)} over {len(counts)} measurements; largest error {max(wrong):.0e}"
            found.append(
                Bar(
                    "spectra",
                    f"{name}: top 5 to 1e-4, {which}, median",
                    float(np.median(counts)),
                    "products",
                    bar,
                    "PyHessian 78-186",
                    note,
                )
            )
        for products, error in along["peer"]:
            found.append(Bar("spectra", f"{name}: top 5, PyHessian's defaults", products, "products", note=f"largest error {error:.0e}"))
        bounds = along["bounds"]
        trusted = [e for (_, e), (_, r) in zip(along["sharp"], bounds, strict=True) if r <= FLAG]
        held = all(e <= r + 1e-6 for e, r in bounds)
        note = f"{len(bounds) - len(trusted)} of {len(bounds)} flagged by a residual above {FLAG:.0%}; residuals {'all hold' if held else 'DO NOT HOLD'}"
        worst = float(np.quantile(trusted, 0.95)) if trusted else None
        found.append(Bar("spectra", f"{name}: sharpness, 4 warm products, 95th pct", worst, "relative error", 0.03, "none", note))
    return found


def tracked(widths: tuple[int, int], every: int, times: int) -> dict[str, list[tuple[Any, float]]]:
    """(products, largest relative error) of each measurement along Adam at 1e-3 on MNIST, batches of 128."""
    torch.manual_seed(SEED)
    a, b = widths
    model = nn.Sequential(nn.Linear(784, a), nn.Tanh(), nn.Linear(a, b), nn.Tanh(), nn.Linear(b, 10))
    x, y = digits()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    found: dict[str, list[tuple[Any, float]]] = {"cold": [], "warm": [], "sharp": [], "bounds": [], "peer": []}
    warm: Pairs | None = None
    sharp: Pairs | None = None
    for t in range(every * times):
        if t % every == 0:
            operator = hessian(Objective(model, nn.CrossEntropyLoss(), (x[:128], y[:128]), check=False))
            truth = top_eigenpairs(operator, 5, 1e-8, memory=100, most=250).values
            cold = top_eigenpairs(operator, 5)
            found["cold"].append((cold.products, away(cold, truth)))
            warm, before = top_eigenpairs(operator, 5, start=warm, seed=t), warm
            one = top_eigenpairs(operator, 1, 1e-9, start=sharp, most=30 if sharp is None else 4, seed=t)
            if before is not None:
                found["warm"].append((warm.products, away(warm, truth)))
                found["sharp"].append((one.products, away(one, truth)))
                error = float((one.values[0] - truth).abs().min() / truth[0])
                found["bounds"].append((error, float(one.residuals[0] / truth[0])))
            sharp = one
        rows = torch.randint(2000, (128,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    if find_spec("pyhessian"):
        found["peer"].append(peer_pairs(copy.deepcopy(model), x[:128], y[:128]))
    return found


def peer_pairs(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[int, float]:
    """(products, largest relative error) of PyHessian's five largest, by power iteration with its own tolerance; at most 100 products each."""
    import pyhessian

    truth = top_eigenpairs(hessian(Objective(model, nn.CrossEntropyLoss(), (x, y), check=False)), 5, 1e-8, memory=100, most=250).values
    theirs, products = sys.modules["pyhessian.hessian"], [0]
    real = theirs.hessian_vector_product

    def counted(*arguments: Any) -> Any:
        products[0] += 1
        return real(*arguments)

    theirs.hessian_vector_product = counted
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it keeps a graph in .grad
            values, _ = pyhessian.hessian(model, nn.CrossEntropyLoss(), data=(x, y), cuda=False).eigenvalues(top_n=5)
    finally:
        theirs.hessian_vector_product = real
    return products[0], float(((torch.tensor(values).double() - truth) / truth).abs().max())


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """2,000 images of MNIST, or where it is not at hand inputs that are correlated as images are, with ten planted classes."""
    try:
        data = images.load(find("mnist"), "train")
        return (data.inputs[:2000].float().flatten(1) / 255 - 0.13) / 0.31, data.targets[:2000]
    except ValueError:
        x = torch.randn(2000, 784) @ torch.diag(torch.arange(1, 785) ** -0.5) * 3
        return x, (x[:, :10] + 0.3 * torch.randn(2000, 10)).argmax(1)


def away(found: Pairs, truth: torch.Tensor) -> float:
    """The largest relative error."""
    return float(((found.values - truth[: len(found.values)]) / truth[: len(found.values)]).abs().max())


def planted(n: int = 200) -> torch.Tensor:
    """Three outliers, a bulk of both signs, and much near 0, in a random basis."""
    rng = np.random.default_rng(SEED)
    values = np.concatenate([[10.0, 7.0, 5.0], np.linspace(0.5, 2, n // 4), np.linspace(-1.2, -0.3, n // 6)])
    values = np.concatenate([values, 0.01 * rng.standard_normal(n - len(values))])
    q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    return torch.as_tensor((q * values) @ q.T)


def traces(quick: bool) -> list[Bar]:
    """Root mean square error of the trace with 98 products, relative, on a planted matrix of 400."""
    a, found = planted(400), []
    truth = float(a.trace())
    for method in ("hutchinson", "hutch++", "xtrace"):
        errors = [trace(Matrix(a), 98, method, seed=s).value / truth - 1 for s in range(10 if quick else 50)]  # type: ignore[arg-type]
        found.append(Bar("spectra", f"trace, {method}, 98 products", float(np.sqrt(np.mean(np.square(errors)))), "relative rms"))
    return found


def coverage(quick: bool) -> list[Bar]:
    """How many of 200 intervals hold the truth, of every estimator that has one; limits on ends and bounds may hold more often than they say."""
    a = planted()
    b = a + 0.1 * (n := torch.randn(200, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)) + 0.1 * n.T
    exact, times = torch.linalg.eigvalsh(a).numpy(), 40 if quick else TIMES
    top = top_eigenpairs(Matrix(a), 1, 1e-8, largest="algebraic")
    cosine = float((a * b).sum() / a.norm() / b.norm())
    two: dict[str, tuple[float, Callable[[int], Estimate]]] = {
        **{f"trace, {m}": (exact.sum(), lambda s, m=m: trace(Matrix(a), 40, m, seed=s)) for m in ("hutchinson", "hutch++", "xtrace")},  # type: ignore[misc]
        "Frobenius norm": (float(a.norm()), lambda s: norms(Matrix(a), 20, seed=s).frobenius),
        "effective dimension": (float(a.trace() ** 2 / a.norm() ** 2), lambda s: norms(Matrix(a), 20, seed=s).dimension),
        "alignment": (cosine, lambda s: alignment(Matrix(a), Matrix(b), 20, seed=s)),
        "density: trace": (exact.sum(), lambda s: density(Matrix(a), 10, 30, points=2, seed=s).trace),
        "density: second moment": ((exact**2).mean(), lambda s: density(Matrix(a), 10, 30, points=2, seed=s).mean(2)),
    }
    found = []
    for name, (truth, take) in two.items():
        held = sum(e.low <= truth <= e.high for e in map(take, range(times))) / times
        found.append(Bar("spectra", f"coverage, {name}", held, "", (0.90, 0.98), note=f"{times} repetitions"))
    d = a.diagonal()
    for method in ("bekas", "xdiag"):
        each = [diagonal(Matrix(a), 30, method, seed=s) for s in range(times)]  # type: ignore[arg-type]
        held = float(np.mean([float(((e.value - d).abs() <= e.half * e.error).double().mean()) for e in each]))
        found.append(Bar("spectra", f"coverage, diagonal, {method}", held, "", (0.90, 0.98), note=f"{times} repetitions, all entries"))
    limits: dict[str, tuple[float, Callable[[int], Estimate]]] = {
        "density: share above 0.2": ((exact > 0.2).mean(), lambda s: density(Matrix(a), 10, 30, points=2, seed=s).share(low=0.2)),
        "density: smallest": (exact[0], lambda s: density(Matrix(a), 10, 30, points=2, seed=s).smallest),
        "unseen": (exact[-2], lambda s: unseen(Matrix(a), top, 6, seed=s)),
    }
    for name, (truth, take) in limits.items():
        held = sum(e.low - 1e-9 <= truth <= e.high + 1e-9 for e in map(take, range(times))) / times
        found.append(Bar("spectra", f"coverage, {name}", held, "", 0.90, note="a limit, at least 95 %", better="high"))
    return found
