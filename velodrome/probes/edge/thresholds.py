r"""The curvature at which the optimizer in use stops being stable (Cohen et al. 2021, https://arxiv.org/abs/2103.00065; 2022,
https://arxiv.org/abs/2207.14484).

On a quadratic with curvature $\lambda$ (an eigenvalue of $P^{-1}(H+\Omega)$, P the preconditioner held still) an update is
$x \gets (1-\eta\omega)\,x - \eta\,u$ with $u = F(z)\,\lambda x$: F is the momentum as a filter of the gradients, z the shift by one step. Modes are the
roots of $z - 1 + \eta\omega + \eta\lambda F(z) = 0$, and the first to leave the unit circle leaves at $z = -1$, where every update undoes the last:

$$\lambda^* = \frac{2 - \eta\omega}{\eta\,F(-1)}$$

| update | $F(-1)$ | $\lambda^*$ without decay |
|---|---|---|
| gradient descent, RMSProp, Adagrad | 1 | $2/\eta$ |
| $b \gets \mu b + g$, $u = b$: heavy ball; also behind RMSProp | $1/(1+\mu)$ | $(2+2\mu)/\eta$ |
| Nesterov, $u = g + \mu b$ | $(1+2\mu)/(1+\mu)$ | $(2+2\mu)/((1+2\mu)\eta)$ |
| Adam, AdamW, AMSGrad, RAdam, Adamax, AdaBelief: $m \gets \beta m + (1-\beta) g$ | $(1-\beta)/(1+\beta)$ | $(2+2\beta)/((1-\beta)\eta)$ |
| NAdam as in AlgoPerf: $u = (1-\beta) g + \beta m$ | $(1-\beta)(1+2\beta)/(1+\beta)$ | $(2+2\beta)/((1-\beta)(1+2\beta)\eta)$ |
| NAdam as in torch: $u = a g + c m$, a and c of the step | $a + c\,(1-\beta)/(1+\beta)$ | $2/(\eta F(-1))$ |

Decay before momentum and preconditioner (L2) is curvature, $\Omega$; decoupled decay is $\omega$. P is that of `curvature/preconditioned.py`, bias
corrections, dampening and Adagrad's own decay of the rate included: of SGD dampened by $\tau$ the Hessian itself may reach $\lambda^*/(1-\tau)$.

**Several groups.** With $S = \eta F(-1)/((2-\eta\omega) P)$, each group's own, the whole is marginal at $z=-1$ exactly when the largest eigenvalue of
$S^{1/2}(H+\Omega)S^{1/2}$ is 1. No other root leaves before: with $a(z) = (z-1+\eta\omega)/F(z)$ a mode v has
$\sum_i a_i(z) P_i |v_i|^2/\eta_i = -v^* (H+\Omega) v$, which is real, while on the upper half of the unit circle every $a_i$ has an imaginary part above 0.

Signs and orthogonalised matrices (Lion, Signum, Muon) do not grow with the gradient and have no such threshold; `critical.py` serves them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Group = dict[str, Any]
# Rules behind the step that only keep another set of weights, and those that only shorten long gradients: growth starts from short ones.
AVERAGES = {"ema", "lawa", "swa", "powerema", "polynomialdecay", "windowaverage"}
CLIPS = {"clipnorm", "cliptensor", "cliprows", "clipvalue", "adaptiveclip"}
SIGNS = {"lion", "liona", "muon", "sign", "normalize", "globalnormalize", "shampoo", "soap", "lars", "lamb"}


@dataclass(frozen=True)
class Threshold:
    r"""The edge of one parameter group: `rate` $\eta$, `response` $F(-1)$, `decay` $\omega$ (decoupled), `l2` (the group's entry in $\Omega$), `name`."""

    rate: float
    response: float
    decay: float = 0.0
    l2: float = 0.0
    name: str = ""

    @property
    def value(self) -> float:
        r"""$\lambda^*$, for eigenvalues of $P^{-1}(H+\Omega)$; infinite at a rate of 0."""
        return (2 - self.rate * self.decay) / (self.rate * self.response) if self.rate else float("inf")

    @property
    def scale(self) -> float:
        r"""$1/\lambda^*$: by it the operator is multiplied so that its threshold is 1."""
        return 1 / self.value


def threshold(optimizer: torch.optim.Optimizer, group: int | Group = 0) -> Threshold:
    """The threshold of one group (its number or the group itself) at its present rate; ValueError where there is none or none is known.

    NAdam's weights change with the step: these are of the step to come, by the count of the group's first parameter. Holds for gradients that are not
    clipped, at a constant rate; a preconditioner that still changes (the first $1/(1-\\beta_2)$ steps) moves the eigenvalues, not the threshold.
    """
    g = optimizer.param_groups[group] if isinstance(group, int) else group
    if g.get("maximize"):
        raise ValueError("an optimizer with maximize=True climbs: there is no threshold of stability; minimise the negative loss.")
    if "chain" in g:
        return of_chain(optimizer, g)
    known = TORCH.get(type(optimizer))
    if known is None:
        raise ValueError(refusal(type(optimizer).__name__))
    return known(optimizer, g)


def refusal(name: str) -> str:
    """Why there is no threshold, and what to read."""
    why = "its steps do not grow with the gradient" if name.lower() in SIGNS else "its response to gradients is not in the table"
    return f"no threshold of stability is known for {name} ({why}): read critical_sharpness(objective, optimizer) instead."


def heavy_ball(momentum: float) -> float:
    r"""$F(-1) = 1/(1+\mu)$."""
    return 1 / (1 + momentum)


def nesterov(momentum: float) -> float:
    r"""$F(-1) = 1 + \mu/(1+\mu)$."""
    return (1 + 2 * momentum) / (1 + momentum)


def average(beta: float) -> float:
    r"""$F(-1) = (1-\beta)/(1+\beta)$."""
    return (1 - beta) / (1 + beta)


def torch_nadam(beta: float, psi: float, t: int, product: float) -> float:
    r"""$F(-1)$ of torch's NAdam at step t, with the product of the momenta before it."""
    now, ahead = (beta * (1 - 0.5 * 0.96 ** (s * psi)) for s in (t, t + 1))
    return (1 - now) / (1 - product * now) + ahead / (1 - product * now * ahead) * average(beta)


def of_sgd(optimizer: torch.optim.Optimizer, g: Group) -> Threshold:
    """torch.optim.SGD."""
    mu, name = float(g["momentum"]), "gradient descent"
    response = 1.0
    if mu:
        response = nesterov(mu) if g["nesterov"] else heavy_ball(mu)
        name = "Nesterov" if g["nesterov"] else "heavy ball"
    return Threshold(float(g["lr"]), response, 0.0, float(g["weight_decay"]), name)


def of_adam(optimizer: torch.optim.Optimizer, g: Group) -> Threshold:
    """torch.optim.Adam, AdamW, their AMSGrad, RAdam and Adamax."""
    apart = bool(g.get("decoupled_weight_decay")) or type(optimizer) is torch.optim.AdamW
    return decayed(float(g["lr"]), average(float(g["betas"][0])), float(g["weight_decay"]), apart, type(optimizer).__name__)


def of_nadam(optimizer: torch.optim.Optimizer, g: Group) -> Threshold:
    """torch.optim.NAdam."""
    t, product = told(optimizer, g, "mu_product")
    response = torch_nadam(float(g["betas"][0]), float(g["momentum_decay"]), t + 1, product)
    return decayed(float(g["lr"]), response, float(g["weight_decay"]), bool(g["decoupled_weight_decay"]), "NAdam")


def of_rmsprop(optimizer: torch.optim.Optimizer, g: Group) -> Threshold:
    """torch.optim.RMSprop."""
    return Threshold(float(g["lr"]), heavy_ball(float(g["momentum"])), 0.0, float(g["weight_decay"]), "RMSProp")


def of_adagrad(optimizer: torch.optim.Optimizer, g: Group) -> Threshold:
    """torch.optim.Adagrad."""
    return Threshold(float(g["lr"]), 1.0, 0.0, float(g["weight_decay"]), "Adagrad")


TORCH: dict[type, Callable[[torch.optim.Optimizer, Group], Threshold]] = {
    torch.optim.SGD: of_sgd,
    torch.optim.Adam: of_adam,
    torch.optim.AdamW: of_adam,
    torch.optim.RAdam: of_adam,
    torch.optim.Adamax: of_adam,
    torch.optim.NAdam: of_nadam,
    torch.optim.RMSprop: of_rmsprop,
    torch.optim.Adagrad: of_adagrad,
}


def decayed(rate: float, response: float, decay: float, apart: bool, name: str) -> Threshold:
    """With its decay apart from the gradient or within it."""
    return Threshold(rate, response, decay if apart else 0.0, 0.0 if apart else decay, name)


def told(optimizer: torch.optim.Optimizer, g: Group, product: str = "") -> tuple[int, float]:
    """How many updates the first parameter of a group has had, and the number that its state keeps as `product` (1 at first)."""
    state: Any = next((optimizer.state[p] for p in g["params"] if optimizer.state.get(p)), {})
    return int(state.get("step", 0)), float(state.get(product, 1.0))


def of_chain(optimizer: torch.optim.Optimizer, g: Group) -> Threshold:
    """A group of our Chain: clipping, L2 decay, a preconditioner or a momentum or the one behind the other, decoupled decay, Descend, averages."""
    found = {"rate": float(g["lr"]), "response": 1.0, "decay": 0.0, "l2": 0.0}
    seen: list[str] = []
    for name in g["chain"].split():
        rule = name.rstrip("0123456789")
        if not follows(rule, seen):
            raise ValueError(refusal(rule if rule in SIGNS else f"the chain {g['chain']!r}"))
        options = {**g, **{key.removeprefix(f"{name}."): value for key, value in g.items() if key.startswith(f"{name}.")}}
        if rule == "weightdecay":
            found["decay" if set(seen) & RESPONSES.keys() else "l2"] += float(options["weight_decay"])
        elif rule == "independentdecay" and found["rate"]:
            found["decay"] += float(options["weight_decay"]) / float(options["peak_lr"] or found["rate"])
        elif rule in RESPONSES:
            found["response"] *= RESPONSES[rule](optimizer, g, options)
        seen.append(rule)
    return Threshold(**found, name=g["chain"])


def follows(rule: str, seen: list[str]) -> bool:
    """Whether the table covers a rule behind those before it."""
    filters = [name for name in seen if name in RESPONSES]
    if rule in ("descend", *AVERAGES):
        return rule == "descend" or "descend" in seen
    if rule in CLIPS:
        return not filters
    if rule == "weightdecay":
        return "descend" not in seen
    if rule == "independentdecay":
        return "descend" in seen
    if rule == "momentum":
        return filters in ([], ["rmsprop"], ["adagrad"]) and not decayed_behind(seen)
    return rule in RESPONSES and not filters and "descend" not in seen


def decayed_behind(seen: list[str]) -> bool:
    """Whether a decay stands behind a preconditioner, where a momentum would filter it."""
    return any(name == "weightdecay" and set(seen[:i]) & RESPONSES.keys() for i, name in enumerate(seen))


def of_nadam_rule(optimizer: torch.optim.Optimizer, g: Group, o: Group) -> float:
    """Either variant of our NAdam."""
    beta = float(o["betas"][0])
    if o["variant"] == "algoperf":
        return average(beta) * (1 + 2 * beta)
    t, product = told(optimizer, g, "nadam.product")
    return torch_nadam(beta, float(o["momentum_decay"]), t + 1, product)


RESPONSES: dict[str, Callable[[torch.optim.Optimizer, Group, Group], float]] = {
    "momentum": lambda _, g, o: nesterov(o["momentum"]) if o["nesterov"] else heavy_ball(o["momentum"]),
    "adam": lambda _, g, o: average(o["betas"][0]),
    "amsgrad": lambda _, g, o: average(o["betas"][0]),
    "radam": lambda _, g, o: average(o["betas"][0]),
    "adabelief": lambda _, g, o: average(o["betas"][0]),
    "nadam": of_nadam_rule,
    "rmsprop": lambda _, g, o: 1.0,
    "adagrad": lambda _, g, o: 1.0,
}
