r"""Whether two operators, Hessians of two domains, batches or times, curve in the same directions.

overlap(top_eigenpairs(h1, 5), top_eigenpairs(h2, 5))       # of the top spaces: 0 orthogonal, 1 the same
alignment(h1, h2, draws=30)                                 # of the whole matrices
"""

import numpy as np
import torch

from velodrome.probes.curvature.operator import Operator
from velodrome.probes.estimate import Estimate, bounded
from velodrome.probes.spectra.participation import space_error
from velodrome.probes.spectra.resampling import jackknife
from velodrome.probes.spectra.top import Pairs
from velodrome.probes.spectra.trace import dot, signs


def alignment(a: Operator, b: Operator, draws: int = 30, *, seed: int = 0) -> Estimate:
    r"""$\mathrm{tr}(AB)/(\|A\|_F\|B\|_F)$, the cosine of the two matrices, from -1 to 1.

    Two products for each of `draws` Rademacher vectors: $E\langle Av, Bv\rangle = \mathrm{tr}(AB)$, $E\|Av\|^2 = \|A\|_F^2$; a jackknife over the
    vectors. Hessians of small batches are less aligned than those of their populations, for the noise of each is its own: compare batches of one
    size.
    """
    if a.n != b.n:
        raise ValueError(f"both operators must have the same parameters, got {a.n} and {b.n} of them.")
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 3:
        raise ValueError(f"draws must be a whole number, three or more, got {draws!r}.")
    generator, rows = torch.Generator().manual_seed(seed), []
    for _ in range(draws):
        v = signs(a, generator)
        x, y = a @ v, b @ v.to(b.device)
        y = y.to(x)
        rows.append((dot(x, y), dot(x, x), dot(y, y)))
    found = jackknife(lambda m: m[0] / (m[1] * m[2]) ** 0.5, np.array(rows), "cosine", cost={"products": 2.0 * draws})
    low, high = max(found.low, -1.0), min(found.high, 1.0)
    return Estimate(max(-1.0, min(1.0, found.value)), found.unit, found.error, low, high, found.kind, found.n, found.note, found.cost)


def overlap(a: Pairs, b: Pairs) -> Estimate:
    r"""$\|V_a^\top V_b\|_F^2/k$ with the smaller k, from 0 to 1; two random spaces have the larger k over n.

    The error bounds what wrong vectors can change: the sum of the sines of both spaces' angles to the true ones (see `gradient_concentration`).
    """
    if a.vectors.shape[0] != b.vectors.shape[0]:
        raise ValueError(f"both must have the same parameters, got {a.vectors.shape[0]} and {b.vectors.shape[0]} of them.")
    k = min(len(a.values), len(b.values))
    value = float((a.vectors.double().T @ b.vectors.to(a.vectors.device).double()).square().sum()) / k
    (first, one), (second, other) = space_error(a), space_error(b)
    found = bounded(value, min(1.0, first + second), "", note=one or other, n=k)
    return Estimate(value, "", found.error, max(found.low, 0.0), min(found.high, 1.0), "bound", k, found.note)
