r"""Curvature as the optimizer feels it: $P^{-1/2} A P^{-1/2}$ with the diagonal P of its own state (Cohen et al. 2022, https://arxiv.org/abs/2207.14484).

P is what the update divides by, $\theta \gets \theta - \eta P^{-1} m$, where m is the average or the sum of gradients that the method keeps: for
Adam $P = (1-\beta_1^t)(\sqrt{v/(1-\beta_2^t)} + \epsilon)$, both corrections included, so that a recent start needs no special case.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from velodrome.optim.chain import Chain
from velodrome.optim.radam import rectification
from velodrome.optim.rule import is_sharded
from velodrome.probes.curvature.curvature import Curvature
from velodrome.probes.curvature.operator import Operator
from velodrome.probes.twin import twin_of

State = Mapping[str, Any]
Option = Callable[[str], Any]

# Rules of a chain that leave the direction's scale in each coordinate to others: they are no part of P.
NEUTRAL = {
    *("descend", "weightdecay", "independentdecay", "momentum", "clipnorm", "cliptensor", "cliprows", "clipvalue", "adaptiveclip"),
    *("ema", "lawa", "swa", "polynomialdecay", "powerema", "windowaverage", "kahan", "stochasticrounding"),
}
# torch's optimizers and our rules: the same formula, the names of the moments, the name of the rule in a chain.
TORCH: dict[type, str] = {
    torch.optim.AdamW: "adam",
    torch.optim.Adam: "adam",
    torch.optim.NAdam: "nadam",
    torch.optim.RAdam: "radam",
    torch.optim.Adamax: "adamax",
    torch.optim.RMSprop: "rmsprop",
    torch.optim.Adagrad: "adagrad",
    torch.optim.SGD: "sgd",
}
NAMES = {
    "m": ("exp_avg",),
    "v": ("exp_avg_sq", "square_avg"),
    "v_max": ("max_exp_avg_sq",),
    "G": ("sum",),
    "g": ("grad_avg",),
    "u": ("exp_inf",),
}


class Preconditioned(Operator):
    r"""$D A D$ for a diagonal D, the vector `scale` (n,): symmetric, with the eigenvalues of $D^2 A$."""

    def __init__(self, operator: Operator, scale: Tensor) -> None:
        super().__init__(operator.names, operator.shapes, operator.dtype, operator.device)
        assert scale.shape == (operator.n,)
        self.operator, self.scale = operator, scale.to(operator.dtype)

    def product(self, v: Tensor) -> Tensor:
        """One product of the operator inside."""
        return self.scale * (self.operator @ (self.scale * v))

    def block(self, V: Tensor) -> Tensor:
        """The columns together, as the operator inside has them fastest."""
        return self.scale[:, None] * (self.operator @ (self.scale[:, None] * V))


def preconditioned(
    operator: Operator, optimizer: torch.optim.Optimizer, *, fold_lr: bool = False, before_step: bool = False
) -> Preconditioned:
    r"""$P^{-1/2} A P^{-1/2}$, its eigenvalues those of $P^{-1}A$, with P of the optimizer; unit loss, over parameter times update.

    `fold_lr` multiplies by each group's learning rate, $(\eta P^{-1})^{1/2} A\, (\eta P^{-1})^{1/2}$: then the threshold of a method without momentum is 2,
    whatever its rates. `before_step=True` takes the P of the step that is about to be made with the gradients in `.grad`; else P is that of the last step.
    The operator must be over an objective (Hessian, Gauss-Newton, Fisher, or a block of them).
    """
    if not isinstance(operator, Curvature):
        raise ValueError(f"the operator must be over an objective, such as hessian(objective), got {type(operator).__name__}.")
    params = dict(zip(operator.names, operator.params, strict=True))
    scale = preconditioner(optimizer, params, before_step=before_step).rsqrt()
    if fold_lr:
        scale = scale * rates(optimizer, params).sqrt()
    return Preconditioned(operator, scale)


def preconditioner(optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor], *, before_step: bool = False) -> Tensor:
    r"""The diagonal of P for these parameters, (n,) in their order; infinite where nothing moves (a parameter that has never had a gradient).

    Known: torch's Adam, AdamW (with amsgrad), NAdam, RAdam, Adamax, RMSprop, Adagrad, SGD, and chains with one of the rules Adam, AMSGrad, NAdam, RAdam,
    AdaBelief, RMSProp, AdaGrad or none, beside clipping, decay, momentum and averages. Ones for SGD; $1/(1-\tau)$ with dampening. ValueError for others,
    for a parameter that is not in the optimizer, and before the first step. Costs a pass over the state; `before_step` a copy of parameters and state.
    """
    if not params:
        raise ValueError("params must hold a parameter or more, got none.")
    groups = {id(p): (i, j) for i, group in enumerate(optimizer.param_groups) for j, p in enumerate(group["params"])}
    for name, p in params.items():
        if id(p) not in groups:
            raise ValueError(f"{name} is not in the optimizer: look at the parameters that it trains (params=…).")
        if is_sharded(p):
            raise ValueError(f"{name} is divided over processes: use the critical sharpness (forward passes only).")
    stepped = _stepped(optimizer) if before_step else optimizer
    found, known = [], False
    for name, p in params.items():
        i, j = groups[id(p)]
        group = stepped.param_groups[i]
        diagonal = _diagonal(stepped, group, stepped.state.get(group["params"][j], {}), name, p)
        known = known or diagonal is not None
        found.append(torch.full_like(p, torch.inf).flatten() if diagonal is None else diagonal.expand_as(p).flatten().to(p.dtype))
    if not known:
        raise ValueError(
            "the optimizer has made no step yet, so it has no P: make one, or ask for before_step=True with gradients in .grad."
        )
    return torch.cat(found)


def most_divided(optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor]) -> Tensor:
    r"""The largest $|g|/P$ that a gradient can have once the optimizer has met it (n,): $1/(1-\beta_1) + 1/\sqrt{1-\beta_2}$ for Adam and its like.

    After one gradient the second moment is $(1-\beta_2)\,g^2$ at least. A ratio above that is a P that has not seen such a gradient, and will not be what
    the step divides by when it comes. Infinite for rules whose P is no size of gradients (SGD, AdaBelief, RAdam, centred RMSProp).
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return torch.cat([torch.full_like(p, _most(optimizer, groups[id(p)])).flatten() for p in params.values()])


def _most(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> float:
    rule = _rule(optimizer, group)
    option: Option = lambda key: group.get(f"{rule}.{key}", group.get(key))  # noqa: E731
    if rule in ("adam", "amsgrad", "nadam", "adamax"):
        b1, b2 = (float(b) for b in option("betas"))
        return 1 / max(1 - b1, 1e-6) + 1 / max(1 - b2, 1e-12) ** 0.5
    if rule == "rmsprop" and not option("centered"):
        decay = next((float(d) for key in ("alpha", "beta", "beta2") if (d := option(key)) is not None), 0.999)
        return 1 + 1 / max(1 - decay, 1e-12) ** 0.5
    return 1.0 if rule == "adagrad" else float("inf")


def rates(optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor]) -> Tensor:
    """The learning rate of each element (n,)."""
    groups = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    return torch.cat([torch.full_like(p, groups[id(p)]).flatten() for p in params.values()])


def _stepped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """A copy of the optimizer, its parameters and gradients, one step later."""
    if all(p.grad is None for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("before_step=True needs the gradients of that step in .grad, got none: call it between backward and step.")
    twin, copies = twin_of(optimizer)
    for group in optimizer.param_groups:
        for p in group["params"]:
            copies[id(p)].grad = None if p.grad is None else p.grad.detach().clone()
    type(optimizer).step(twin)  # torch's schedulers hang a `step` on the instance that would step the original
    return twin


def _diagonal(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], state: State, name: str, p: Tensor) -> Tensor | None:
    """P of one parameter, None if it has never moved; computed in the state's precision, float32 at least."""
    rule = _rule(optimizer, group)
    if rule == "sgd":
        return torch.full((), 1 / (1 - _dampening(group)), dtype=p.dtype, device=p.device)
    option: Option = lambda key: group.get(f"{rule}.{key}", group.get(key))  # noqa: E731
    prefix = f"{rule}." if isinstance(optimizer, Chain) else ""
    moments = {letter: state[key] for letter, keys in NAMES.items() for key in ([prefix + letter] if prefix else keys) if key in state}
    if prefix and f"{prefix}s" in state:
        moments["v"] = state[f"{prefix}s"]  # AdaBelief's
    count = float(state.get("step", 0))
    if not moments or not count:
        return None
    moments = {k: x.to(torch.promote_types(x.dtype, torch.float32)) for k, x in moments.items()}
    diagonal = FORMULAS[rule](moments, count, option) / (1 - _dampening(group))
    if bool((diagonal <= 0).any()):
        raise ValueError(f"P is zero for some weights of {name}, whose gradients have all been zero: give the optimizer an eps > 0.")
    return diagonal


def _rule(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> str:
    """Which formula holds; ValueError if none does."""
    if isinstance(optimizer, Chain):
        rules = [r for r in group["chain"].split() if r.rstrip("0123456789") not in NEUTRAL]
        rule = rules[0] if rules else "sgd"
        known = len(rules) < 2 and rule in (*FORMULAS, "sgd")
        title = f"the chain {group['chain']!r}"
    else:
        rule = next((r for kind, r in TORCH.items() if type(optimizer) is kind), "")
        known, title = bool(rule), type(optimizer).__name__
    if not known:
        raise ValueError(
            f"{title} has no diagonal P that is known here (sign and orthogonal updates have none): use the critical sharpness."
        )
    return rule


def _dampening(group: Mapping[str, Any]) -> float:
    damped = float(group.get("dampening", 0.0)) if float(group.get("momentum", 0.0)) else 0.0
    if damped == 1:
        raise ValueError("dampening=1 lets no gradient in after the first: there is no P.")
    return damped


def _corrected(v: Tensor, beta2: float, t: float, eps: float) -> Tensor:
    return (v / (1 - beta2**t)).sqrt() + eps


def _adam(s: State, t: float, o: Option) -> Tensor:
    b1, b2 = (float(b) for b in o("betas"))
    return _corrected(s.get("v_max", s["v"]), b2, t, o("eps")) * (1 - b1**t)


def _amsgrad(s: State, t: float, o: Option) -> Tensor:
    b1, _ = o("betas")
    if o("variant") == "torch":
        return _adam(s, t, o)
    return (s["v_max"].sqrt() + o("eps")) * (1.0 if o("variant") == "paper" else 1 - b1**t)


def _nadam(s: State, t: float, o: Option) -> Tensor:
    b1, b2 = o("betas")
    return _corrected(s["v"], b2, t, o("eps")) * (1 - b1**t if o("variant") == "algoperf" else 1.0)


def _radam(s: State, t: float, o: Option) -> Tensor:
    (b1, b2), threshold = o("betas"), o("threshold")
    known, r = rectification(t, b2, 5.0 if threshold is None else threshold)
    root = (s["v"].sqrt() + o("eps")) / (1 - b2**t) ** 0.5 / r if known else torch.ones_like(s["v"])
    if not known and o("degenerated_to_sgd") is False:
        return torch.full_like(s["v"], torch.inf)
    return root * (1 - b1**t)


def _adabelief(s: State, t: float, o: Option) -> Tensor:
    return _radam(s, t, o) if o("rectify") else _adam(s, t, o)


def _adamax(s: State, t: float, o: Option) -> Tensor:
    return s["u"] * (1 - o("betas")[0] ** t)


def _rmsprop(s: State, t: float, o: Option) -> Tensor:
    spread = (s["v"] - s["g"] * s["g"]).clamp(min=0) if "g" in s else s["v"]
    return (spread + o("eps")).sqrt() if o("variant") == "tensorflow" else spread.sqrt() + o("eps")


def _adagrad(s: State, t: float, o: Option) -> Tensor:
    return (s["G"].sqrt() + o("eps")) * (1 + (t - 1) * o("lr_decay"))


FORMULAS: dict[str, Callable[[State, float, Option], Tensor]] = {
    "adam": _adam,
    "amsgrad": _amsgrad,
    "nadam": _nadam,
    "radam": _radam,
    "adabelief": _adabelief,
    "adamax": _adamax,
    "rmsprop": _rmsprop,
    "adagrad": _adagrad,
}
