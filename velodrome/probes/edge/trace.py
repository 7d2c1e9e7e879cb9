r"""Conditions of stability for SGD near a minimum, from the trace, the largest eigenvalue and the Frobenius norm of the Hessian.

**Mean-square condition.** Near a minimum that fits every example, with one-output Hessians $a_i a_i^T$ of equal norm, $E[H_B^2] = H^2 +
c\,(\mathrm{tr}(H) H - H^2)$, where $c = 1/B$ for batches drawn with replacement and $\frac{1}{B}\cdot\frac{n-B}{n-1}$ without. $E\|(I-\eta H_B)x\|^2
\le \|x\|^2$ for every x exactly when

$$\lambda_{\max}(1-c) + c\,\mathrm{tr}(H) \le 2/\eta$$

which is $\mathrm{tr}(H) \le 2/\eta$ for single examples and gradient descent's $\lambda_{\max} \le 2/\eta$ for all of them. It suffices for stability;
beyond it SGD may still be stable, unless the inputs are orthogonal: then it is exact. Single examples leave a minimum, in their loss, whenever
$\mathrm{tr}(H) > 2/\eta$ (Wu & Su 2023, https://arxiv.org/abs/2305.17490). Where examples differ in length the condition is too kind: $\mathrm{tr}(H)$
must then be $\max_i \mathrm{tr}(H_i)$ to suffice (`experiments/sgd_leaves_minimum` has a case).

**Frobenius condition.** A minimum that is linearly stable has $\|H\|_F \le O(\sqrt B/\eta)$ (Wu, Wang & Su 2022, NeurIPS 35, "The alignment property of
SGD noise"): the noise is as large as the loss and lies where the Hessian does. Its constant is $1/\sqrt\mu$ with an alignment $\mu$ that is not
measured here, so `alignment` is shown with $\mu = 1$ and judges nothing.
"""

from dataclasses import dataclass

from velodrome.probes.curvature.hessian import hessian
from velodrome.probes.edge.gauge import Verdict, verdict
from velodrome.probes.estimate import Estimate, unidentified
from velodrome.probes.objective import Objective
from velodrome.probes.spectra.norms import norms
from velodrome.probes.spectra.top import top_eigenpairs
from velodrome.probes.spectra.trace import trace


@dataclass(frozen=True)
class Conditions:
    r"""`trace`, `largest`, `frobenius` of the Hessian, loss/parameter². `ratio`: $\frac\eta2(\lambda_{\max}(1-c)+c\,\mathrm{tr})$, no unit, at most 1 where
    SGD is stable in mean square. `descent`: $\eta\lambda_{\max}/2$, the same of gradient descent. `single`: $\eta\,\mathrm{tr}/2$, of single examples.
    `alignment`: $\eta\|H\|_F/\sqrt B$, an indicator. `verdict`: of `ratio`; "above" says that stability is not assured, not that the run diverges.
    """

    trace: Estimate
    largest: Estimate
    frobenius: Estimate
    ratio: Estimate
    descent: Estimate
    single: Estimate
    alignment: Estimate
    verdict: Verdict


def sgd_conditions(
    objective: Objective,
    lr: float,
    batch_size: int,
    *,
    population: int | None = None,
    products: int = 60,
    tolerance: float = 0.1,
    seed: int = 0,
) -> Conditions:
    """For plain SGD with the rate `lr` on batches of `batch_size`, at a minimum that fits its examples; elsewhere an indicator.

    `population`: the number of examples that an epoch draws without replacement; None: with replacement. `products` go half to the trace (exact
    where there are as many parameters) and half to the norm; the largest eigenvalue takes some more.
    """
    if not lr > 0 or batch_size < 1 or (population is not None and not batch_size <= population):
        raise ValueError(f"lr must be above 0 and batch_size from 1 to population, got lr={lr!r}, {batch_size!r} of {population!r}.")
    c = 1 / batch_size
    if population is not None:
        c *= (population - batch_size) / max(population - 1, 1)
    H = hessian(objective)
    top = top_eigenpairs(H, 1, 1e-3, largest="algebraic", most=max(products, 30), seed=seed)
    error = float(top.errors[0])
    value = float(top.values[0])
    largest = Estimate(value, "loss/parameter²", error, value, value + error, "bound", cost={"products": float(top.products)})
    whole = trace(H, max(products // 2, 2), seed=seed + 1)
    frobenius = norms(H, max(products // 2, 3), seed=seed + 2).frobenius
    return Conditions(
        whole,
        largest,
        frobenius,
        ratio := added(times(largest, (1 - c) * lr / 2), times(whole, c * lr / 2)),
        times(largest, lr / 2),
        times(whole, lr / 2),
        times(frobenius, lr / batch_size**0.5),
        verdict(ratio, tolerance) if ratio.identified else "not separable",
    )


def times(x: Estimate, by: float) -> Estimate:
    """An estimate times a number above 0, without unit."""
    if not x.identified:
        return unidentified("", x.note, x.n, cost=x.cost)
    return Estimate(x.value * by, "", x.error * by, x.low * by, x.high * by, x.kind, x.n, x.note, x.cost)


def added(a: Estimate, b: Estimate) -> Estimate:
    """The sum of a bounded and a sampled number: the interval of the second, widened by the bounds of the first."""
    cost = {"products": a.cost.get("products", 0.0) + b.cost.get("products", 0.0)}
    return Estimate(a.value + b.value, "", a.error + b.error, a.low + b.low, a.high + b.high, b.kind, b.n, b.note, cost)
