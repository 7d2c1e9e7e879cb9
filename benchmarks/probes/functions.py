"""Tangent kernels: time in gradients and error, beside torch.func's Jacobian contraction and nngeometry's Gram matrix.

nngeometry is optional: `pip install --no-deps nngeometry==0.4` (it asks for torchvision, which it does not import).
"""

import copy
import importlib
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.probes.bar import Bar
from benchmarks.probes.models import Task, cnn, gpt, mlp
from benchmarks.probes.timing import Timing, gradient, side_by_side
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.probes.functions.jacobian import Tangent
from velodrome.probes.functions.ntk import ntk, ntk_sketch
from velodrome.probes.objective import Objective

FAMILY, DRAWS, SEEDS = "functions", 64, 12


def contraction(task: Task) -> Tensor:
    """(n c, n c) by vmap(jacrev) of single examples and one einsum for each parameter, as PyTorch's own tutorial does."""
    params = {name: p.detach() for name, p in task.model.named_parameters()}
    single = lambda p, x: functional_call(task.model, p, (x.unsqueeze(0),)).squeeze(0)  # noqa: E731
    rows = vmap(jacrev(single), (None, 0))(params, task.batch.inputs)
    found = torch.stack([torch.einsum("iap,jbp->iajb", r.flatten(2), r.flatten(2)) for r in rows.values()]).sum(0)
    return found.reshape(found.shape[0] * found.shape[1], -1)


def nngeometry(task: Task) -> Tensor:
    """(n c, n c) by nngeometry's GramMatrix; ImportError without it."""
    gram = importlib.import_module("nngeometry.gram")
    model = copy.deepcopy(task.model)  # it leaves its hooks on the model when it fails
    loader = DataLoader(TensorDataset(task.batch.inputs.clone(), task.batch.targets), batch_size=task.batch.examples)
    data = gram.GramMatrix(model, loader, function=lambda x, _: model(x)).data  # (c, n, c, n)
    return data.permute(1, 0, 3, 2).reshape(data.shape[0] * data.shape[1], -1)


def by_loops(model: nn.Module, x: Tensor) -> Tensor:
    """The definition: one backward pass for each output of each example."""
    params, rows = list(model.parameters()), []
    for row in model(x).flatten(1):
        for value in row:
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, params, retain_graph=True)]))
    J = torch.stack(rows)
    return J @ J.T


def kernels(task: Task, rounds: int) -> list[Bar]:
    """Exact kernels over all outputs, by everybody, in turns."""
    objective = Objective(task.model, cross_entropy, task.batch)
    ways: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: ntk(objective).matrix,
        "torch.func": partial(contraction, task),
        "nngeometry": partial(nngeometry, task),
    }
    double = copy.deepcopy(task.model).double()
    truth = by_loops(double, task.batch.inputs[:4].double())
    size = len(truth)
    errors, why = {}, {}
    for name, way in list(ways.items()):
        try:
            errors[name] = float((way()[:size, :size].double() - truth).norm() / truth.norm())
        except Exception as error:  # a peer's own failure is a line of the table
            why[name] = "not installed" if isinstance(error, ImportError) else f"{type(error).__name__}: {str(error)[:60]}"
            del ways[name]
    times = side_by_side({"gradient": gradient(task), **ways}, rounds)
    named = f"{task.name} B={task.batch.examples}, exact kernel of all outputs"
    rivals = [f"{times[r].ratio:.1f} {r}" for r in ways if r != "ours"] + [f"{r}: {reason}" for r, reason in why.items()]
    best = min((times[r].ratio for r in ways if r != "ours"), default=float("nan"))
    told = "; ".join(f"{r} {e:.0e}" for r, e in errors.items() if r != "ours")
    return [
        Bar(FAMILY, named, times["ours"].ratio, "gradients", best, "; ".join(rivals), "the bar is the best of the others"),
        Bar(FAMILY, f"{named}, error", errors["ours"], "relative, fp32", 1e-5, told),
    ]


def alone(task: Task, rounds: int) -> list[Bar]:
    """What the others' memory does not allow: a full batch, and networks with many outputs."""
    objective = Objective(task.model, cross_entropy, task.batch)
    tangent = Tangent(objective)
    v = torch.randn(tangent.n)
    ways: dict[str, Callable[[], object]] = {
        "product": lambda: tangent @ v,
        "parameters": lambda: ntk_sketch(objective, "trace", draws=4),
        "outputs": lambda: ntk_sketch(objective, "trace", draws=4, over="outputs"),
    }
    if task.name != "GPT":
        ways |= {"all": lambda: ntk(objective), "trace": lambda: ntk(objective, "trace")}
    times: dict[str, Timing] = side_by_side({"gradient": gradient(task), **ways}, rounds)
    named = f"{task.name} B={task.batch.examples}, {tangent.n // task.batch.examples} outputs"
    told = {"all": "exact kernel of all outputs", "trace": "exact trace kernel", "product": "product with the kernel, never made"}
    found = [Bar(FAMILY, f"{named}, {text}", times[way].ratio, "gradients") for way, text in told.items() if way in times]
    found += [Bar(FAMILY, f"{named}, one draw over {way}", times[way].ratio / 4, "gradients") for way in ("parameters", "outputs")]
    return found


def sketched() -> list[Bar]:
    """What sketches of the MLP's trace kernel are worth: their error, and whether they know it."""
    task = mlp(batch=32)
    objective = Objective(task.model, cross_entropy, task.batch)
    truth, bars = ntk(objective, "trace").matrix.double(), []
    away = ~torch.eye(len(truth), dtype=torch.bool)
    for over in ("parameters", "outputs"):
        errors, own = [], []
        for seed in range(SEEDS):  # the entries of one sketch err together
            found = ntk_sketch(objective, "trace", draws=DRAWS, over=over, seed=seed)
            assert found.error is not None
            errors.append(float((found.matrix - truth).norm() / truth.norm()))
            own.append(float(((found.matrix - truth) / found.error)[away].square().mean()))
        named = f"MLP B=32, trace kernel by {DRAWS} draws over {over}"
        bars += [
            Bar(FAMILY, f"{named}, error", sum(errors) / SEEDS, "relative, Frobenius"),
            Bar(FAMILY, f"{named}, error over its own standard error", (sum(own) / SEEDS) ** 0.5, "rms", (0.7, 1.4)),
        ]
    return bars


def rows(quick: bool = False) -> list[Bar]:
    """Kernels by everybody on small batches (the others hold all Jacobians), then what only products and Gram matrices can do."""
    rounds = 3 if quick else 9
    found = [bar for task in (mlp(batch=16), cnn(batch=8)) for bar in kernels(task, rounds)]
    found += [bar for task in ((mlp(),) if quick else (mlp(), cnn(), gpt())) for bar in alone(task, 3)]
    return found + sketched()
