r"""How much of a gradient lies in the top eigenspace (Gur-Ari, Roberts & Dyer 2018, https://arxiv.org/abs/1812.04754; Ghorbani et al. 2019,
https://arxiv.org/abs/1901.10159)."""

import torch
from torch import Tensor

from velodrome.probes.estimate import Estimate, bounded, unidentified
from velodrome.probes.spectra.top import Pairs


def gradient_concentration(gradient: Tensor, pairs: Pairs) -> Estimate:
    r"""$\|P_k g\|^2/\|g\|^2$, from 0 to 1, $P_k$ the projection on the vectors of `pairs`.

    A random direction has $k/n$. The error bounds what wrong vectors can change: $\|R\|_F$ over the gap to the next Ritz value (Davis & Kahan
    1970), which is a proof as far as that value is the next eigenvalue; where the gap is no more than the residuals the space itself is not
    determined, and the note says so.
    """
    if gradient.shape != (pairs.vectors.shape[0],):
        raise ValueError(f"the gradient must be a flat vector of {pairs.vectors.shape[0]} entries, got shape {tuple(gradient.shape)}.")
    g = gradient.detach().double()
    size = float(g.square().sum())
    if not 0 < size < float("inf"):
        return unidentified("", f"the gradient has the squared norm {size}")
    inside = float((pairs.vectors.T.to(g) @ g).square().sum())
    error, note = space_error(pairs)
    found = bounded(min(inside / size, 1.0), min(error, 1.0), "", note=note, n=len(pairs.values))
    return Estimate(found.value, "", found.error, max(found.low, 0.0), min(found.high, 1.0), "bound", found.n, found.note)


def space_error(pairs: Pairs) -> tuple[float, str]:
    """(the largest sine of an angle between the space found and the true one, a note where there is no telling)."""
    if pairs.next != pairs.next:
        return 0.0, ""  # everything was found
    distance = float((pairs.values - pairs.next).abs().min())
    wrong = float(pairs.residuals.square().sum().sqrt())
    if distance <= wrong:
        return 1.0, "the last eigenvalue is as near to the next as its residual: another k"
    return float(torch.tensor(wrong / distance).clamp(max=1.0)), ""
