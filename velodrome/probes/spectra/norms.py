r"""Size and effective dimension of an operator from random products: $\|A\|_F$, $\mathrm{tr}(A)^2/\|A\|_F^2$.

found = norms(hessian(objective), draws=30)
print(found.frobenius, found.dimension)
"""

from dataclasses import dataclass

import numpy as np
import torch

from velodrome.probes.curvature.operator import Operator
from velodrome.probes.estimate import Estimate
from velodrome.probes.spectra.resampling import jackknife
from velodrome.probes.spectra.trace import dot, signs


@dataclass(frozen=True)
class Norms:
    r"""`frobenius` $\|A\|_F = \sqrt{\sum \lambda^2}$; `rms` the root mean square eigenvalue, $\|A\|_F/\sqrt n$; `trace`; and `dimension`
    $\mathrm{tr}(A)^2/\|A\|_F^2$.

    The dimension is how many equal eigenvalues would have this trace and norm, from 0 to n: of a matrix with eigenvalues of both signs it is not
    a count.
    """

    frobenius: Estimate
    rms: Estimate
    trace: Estimate
    dimension: Estimate


def norms(operator: Operator, draws: int = 30, *, seed: int = 0, unit: str = "loss/parameter²") -> Norms:
    r"""From $E\|Av\|^2 = \|A\|_F^2$ and $E\,v^\top A v = \mathrm{tr}\,A$ over `draws` Rademacher vectors, one product each; the errors are
    jackknives over them."""
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 3:
        raise ValueError(f"draws must be a whole number, three or more, got {draws!r}.")
    generator, rows, n = torch.Generator().manual_seed(seed), [], operator.n
    for _ in range(draws):
        v = signs(operator, generator)
        image = operator @ v
        along = dot(v, image)
        rows.append((dot(image, image), along, along**2))
    each, cost = np.array(rows), {"products": float(draws)}

    def squared_trace(mean: np.ndarray, m: int) -> float:  # E[x]^2 without the bias Var(x)/m
        return mean[1] ** 2 - (mean[2] - mean[1] ** 2) / (m - 1)

    return Norms(
        jackknife(lambda m: m[0] ** 0.5, each, unit, log=True, cost=cost),
        jackknife(lambda m: (m[0] / n) ** 0.5, each, unit, log=True, cost=cost),
        jackknife(lambda m: m[1], each, unit, cost=cost),
        jackknife(lambda m: squared_trace(m, draws) / m[0], each, "eigenvalues", cost=cost),
    )
