"""Gradients of single examples: what their norms, the noise scale and coherence cost beside one batch gradient, and how often the intervals cover.

Peers: torch's vmap(grad), BackPACK 1.7.1 (BatchL2Grad), opacus 1.6.0 (GradSampleModule, and its norms alone), each for the same norms of the same model.
"""

import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.probes.bar import Bar
from benchmarks.probes.models import Task, cnn, gpt, mlp
from benchmarks.probes.timing import gradient, peak_memory, side_by_side
from velodrome.data import digits
from velodrome.gradients.per_example import per_example
from velodrome.losses.cross_entropy import cross_entropy
from velodrome.models.mlp import Mlp
from velodrome.probes.objective import Objective
from velodrome.probes.statistics.coherence import coherence
from velodrome.probes.statistics.ghost import ExampleNorms, example_norms, gradient_norms
from velodrome.probes.statistics.noise_scale import GradientNoise, noise_scale

FAMILY = "statistics"
MUST = {"MLP": 1.05, "CNN": 1.5, "GPT": 1.35}
# measured with the same models before this library: ratios to one gradient
BEFORE = {
    "MLP": "opacus ghost 1.41, BackPACK 1.23, vmap 24",
    "CNN": "vmap 1.68, opacus ghost 1.70, BackPACK 1.88",
    "GPT": "vmap 1.30, opacus 1.65; BackPACK leaves LayerNorm out",
}


def rows(quick: bool = False) -> list[Bar]:
    """Costs, errors, memory, noise scale against the truth, coverage."""
    found = []
    for task in (mlp(), cnn(), gpt()):
        found += costs(task, 5 if quick else 15)
    found += [error(), memory(), noise_against_truth()]
    return found + coverage(50 if quick else 200)


def ours(task: Task) -> Callable[[], Any]:
    """Norms, noise scale and coherence along with the gradient that a training step makes."""
    model, batch = task.model, task.batch

    def once() -> Any:
        with example_norms(model) as seen:
            cross_entropy(model(batch.inputs), batch.targets).mean().backward()
        model.zero_grad(set_to_none=True)
        return noise_scale(seen.norms).value.value, coherence(seen.norms).m_coherence.value

    return once


def with_products(task: Task) -> Callable[[], Any]:
    """The same with products with the mean, which give a single pass its intervals."""
    objective = Objective(task.model, cross_entropy, task.batch)
    return lambda: noise_scale(gradient_norms(objective, inner=True)[0])


def by_vmap(task: Task) -> Callable[[], Any]:
    """Squared norms from gradients that are built, at once."""
    n = task.batch.examples

    def once() -> Tensor:
        [(_, grads)] = per_example(task.model, cross_entropy, task.batch, chunk=n)
        return torch.stack([g.flatten(1).square().sum(1) for g in grads.values()]).sum(0)

    return once


def peers(task: Task) -> dict[str, Callable[[], Any] | str]:
    """BackPACK and opacus, or why not."""
    found: dict[str, Callable[[], Any] | str] = {}
    x, y = task.batch.inputs, task.batch.targets
    flat = task.batch.targets.ndim > 1
    if find_spec("backpack") is None:
        found["BackPACK BatchL2Grad"] = "not installed"
    elif flat:
        found["BackPACK BatchL2Grad"] = "does not know LayerNorm: its norms are too small"
    else:
        found["BackPACK BatchL2Grad"] = backpack(task)
    if find_spec("opacus") is None:
        found["opacus grad sample"] = found["opacus ghost"] = "not installed"
        return found
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping

    for name, wrap in (("opacus grad sample", GradSampleModule), ("opacus ghost", GradSampleModuleFastGradientClipping)):
        try:
            model = wrap(copy(task))

            def once(model: nn.Module = model, name: str = name) -> Any:
                loss = cross_entropy(model(x), y).mean()
                loss.backward()
                params = list(model.parameters())
                if name.endswith("ghost"):
                    norms = torch.stack([p._norm_sample for p in params if hasattr(p, "_norm_sample")]).square().sum(0)
                else:
                    norms = torch.stack([p.grad_sample.flatten(1).square().sum(1) for p in params]).sum(0)
                for p in params:
                    p.grad = p.grad_sample = None
                return norms

            once()
            found[name] = once
        except Exception as problem:  # a peer that fails is a result
            found[name] = f"fails: {str(problem).splitlines()[0][:80]}"
    return found


def copy(task: Task) -> nn.Module:
    """A model of its own, since peers put hooks on."""
    return {"MLP": mlp, "CNN": cnn, "GPT": gpt}[task.name]().model


def backpack(task: Task) -> Callable[[], Any]:
    """Its squared norms."""
    from backpack import backpack as context
    from backpack import extend
    from backpack.extensions import BatchL2Grad

    model, criterion = extend(copy(task)), extend(nn.CrossEntropyLoss())

    def once() -> Tensor:
        with context(BatchL2Grad()):
            criterion(model(task.batch.inputs), task.batch.targets).backward()
        norms = torch.stack([p.batch_l2 for p in model.parameters()]).sum(0)
        model.zero_grad(set_to_none=True)
        return norms

    return once


def costs(task: Task, rounds: int) -> list[Bar]:
    """Ratios to one gradient."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        others = peers(task)
        methods = {"gradient": gradient(task), "ours": ours(task), "with products": with_products(task), "vmap(grad)": by_vmap(task)}
        taken = side_by_side({**methods, **{k: v for k, v in others.items() if not isinstance(v, str)}}, rounds)
    unit = "gradients"
    head = f"{task.name}: norms, noise scale and coherence, with the gradient"
    found = [
        Bar(
            FAMILY,
            head,
            taken["ours"].ratio,
            unit,
            MUST[task.name],
            BEFORE[task.name],
            f"gradient {taken['gradient'].seconds * 1e3:.1f} ms",
        )
    ]
    found += [Bar(FAMILY, f"{task.name}: {name}", t.ratio, unit) for name, t in taken.items() if name not in ("gradient", "ours")]
    return found + [Bar(FAMILY, f"{task.name}: {name}", None, unit, note=why) for name, why in others.items() if isinstance(why, str)]


def error() -> Bar:
    """Largest relative error of squared norms in float32 over the three models, against a float64 loop."""
    worst = 0.0
    for task in (mlp(batch=16), cnn(batch=8), gpt(batch=4)):
        found = gradient_norms(Objective(task.model, cross_entropy, task.batch))[0].squared
        model, x = task.model.double(), task.batch.inputs
        x = x.double() if x.is_floating_point() else x
        for i in range(len(x)):
            loss = cross_entropy(model(x[i : i + 1]), task.batch.targets[i : i + 1]).mean()
            true = sum(float(g.square().sum()) for g in torch.autograd.grad(loss, list(model.parameters())))
            worst = max(worst, abs(float(found[i]) / true - 1))
    return Bar(
        FAMILY,
        "squared norms in float32 against a float64 loop, largest relative error",
        worst,
        "",
        1e-6,
        "opacus 1e-6, BackPACK 7e-4 (GPT)",
    )


def memory() -> Bar:
    """Peak of a GPT of batch 64 beside that of its gradient, in fresh processes, less what they need to start."""
    peaks = {what: peak_memory("benchmarks.probes.statistics", what) for what in ("nothing", "gradient", "ours")}
    ratio = (peaks["ours"] - peaks["nothing"]) / (peaks["gradient"] - peaks["nothing"])
    return Bar(FAMILY, "GPT, batch 64: peak memory", ratio, "gradients' peaks", 1.15, "vmap(grad) 2.7")


def noise_against_truth() -> Bar:
    """The digits, an MLP after 50 steps: 20 batches of 64 against all 1,438 examples; the mean over 5 seeds of the error's size."""
    data = digits.load("train")
    x, y, errors = data.inputs.flatten(1), data.targets, []
    for seed in range(5):
        model, g = Mlp(64, 64, 1, 10, seed=seed), torch.Generator().manual_seed(seed)
        optimizer, noise = torch.optim.SGD(model.parameters(), 0.1), GradientNoise()
        for t in range(70):
            which = torch.randint(len(x), (64,), generator=g)
            optimizer.zero_grad()
            with example_norms(model) as seen:
                cross_entropy(model(x[which]), y[which]).mean().backward()
            if t < 50:
                optimizer.step()
            else:
                noise.add(seen.norms)
        truth = gradient_norms(Objective(model, cross_entropy, (x, y), check=False))[0]
        true = (float(truth.squared.mean()) - truth.total) / truth.total
        errors.append(abs(noise.estimate().value.value / true - 1))
    return Bar(
        FAMILY,
        "noise scale of 20 steps at batch 64 against all examples",
        sum(errors) / len(errors),
        "relative error",
        0.10,
        "no tool says how sure it is",
    )


def coverage(repetitions: int) -> list[Bar]:
    """How many 95 % intervals hold the truth, gradients Gaussian and heavy-tailed around a known mean."""
    found = []
    for name, d, size, heavy in (
        ("noise scale 11", 50, 0.3, False),
        ("noise scale 44", 50, 0.15, False),
        ("noise scale 100, heavy tails", 500, 0.1, True),
    ):
        g, true = torch.Generator().manual_seed(1), 1 / size**2
        held = {"20 steps": 0, "one batch (jackknife)": 0, "coherence of one batch": 0}
        for _ in range(repetitions):
            noise = GradientNoise()
            for _ in range(20):
                one = drawn(g, d, size, heavy)
                noise.add(one)
            a, b, c = noise.estimate().value, noise_scale(one).value, coherence(one).unbiased
            for key, interval, truth in zip(held, (a, b, c), (true, true, 1 / (1 + true)), strict=True):
                held[key] += not interval.identified or interval.low <= truth <= interval.high
        found += [Bar(FAMILY, f"coverage, {name}, {key}", 100 * k / repetitions, "%", (90, 98)) for key, k in held.items()]
    return found


def drawn(g: torch.Generator, d: int, size: float, heavy: bool) -> ExampleNorms:
    """64 gradients in d dimensions whose noise scale is 1/size²."""
    e = torch.randn(64, d, generator=g, dtype=torch.float64)
    if heavy:
        e = e * torch.rand(64, 1, generator=g, dtype=torch.float64).log().neg().sqrt()
    e = e + size
    mean = e.mean(0)
    return ExampleNorms({"w": e.square().sum(1)}, {"w": float(mean @ mean)}, {"w": e @ mean})


if __name__ == "__main__":
    big = gpt(batch=64)
    torch.set_num_threads(1)
    {"nothing": lambda: None, "gradient": gradient(big), "ours": ours(big)}[sys.argv[1]]()
