"""Schedule-Free (Defazio et al. 2024, https://arxiv.org/abs/2405.15682) over AdamW, over Muon where that is cheap: made for `laptop` (docs/fastest.md)."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from velodrome.averages.schedule_free import ScheduleFree, SecondMoment
from velodrome.optim.chain import Chain
from velodrome.optim.descend import Descend
from velodrome.optim.groups import decay_groups, hidden_matrices
from velodrome.optim.muon import Muon
from velodrome.optim.rule import Rule, check_count, check_not_negative
from velodrome.optim.weight_decay import WeightDecay
from velodrome.recipes.recipe import Recipe
from velodrome.recipes.schedule_free import warm_constant

SHALLOW = 3  # matrices up to which the rate is `lr` itself


def fastest(
    lr: float = 3e-2,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    momentum: float = 0.8,
    ns_steps: int = 5,
    small: int = 32,
    depth_exponent: float = 0.75,
    r: float = 0.75,
) -> Recipe:
    r"""Schedule-Free over Muon on hidden matrices with a side of at most `small`, and over AdamW on the rest; rate
    $\eta\,(3/\max(L, 3))^{0.75}$ for $L$ matrices.

    * **Schedule-Free**: after a warm-up of 2 % of the budget the rate stays where it is, and an average is evaluated, so that no target is missed
      because a decay came too late or too soon.
    * **Muon on small sides only**: Newton–Schulz makes 15 products, each of which costs a matrix with r rows up to r/3B of its gradient over B rows of
      inputs. That is little for convolutions, narrow layers and long sequences, and ten gradients for a layer of width 128 at batch 64.
    * **Depth**: the changes of L layers add up in what the network computes, so that each may be smaller the more there are (Bernstein et al. 2020,
      https://arxiv.org/abs/2002.03432). The exponent is from four workloads with 3 to 8 matrices, not from the theory, whose value is 1.

    Numbers were chosen on four workloads of `laptop`. Steps of `adamw` over its own: 1.47 [1.19, 1.83] on fresh seeds of these four;
    of the other four 1.45, 2.78 and 1.55, and a miss on two tables of embeddings (`ratings`): docs/fastest.md.
    ValueError for a negative exponent or a size below one.
    """
    settings = dict(locals())
    return Recipe("fastest", partial(optimizer, **settings), warm_constant, settings)


def optimizer(
    model: nn.Module,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    momentum: float,
    ns_steps: int,
    small: int,
    depth_exponent: float,
    r: float,
) -> Chain:
    """The chain of one model: matrices decay, embeddings, gains and biases do not, and the output layer keeps AdamW."""
    check_count("small", small)
    check_not_negative("depth_exponent", depth_exponent)
    hidden = hidden_matrices(model)[0]
    cheap = {id(p) for _, p in hidden if narrow(p) <= small}
    rate = lr * (SHALLOW / max(len(hidden) + 1, SHALLOW)) ** depth_exponent
    adam, muon = SecondMoment(betas[1], eps), Muon(momentum, ns_steps=ns_steps, scale="match_rms_adamw")
    groups: list[dict[str, Any]] = []
    for group in decay_groups(model, weight_decay):
        for rule, members in (
            (adam, [i for i in group["params"] if id(i[1]) not in cheap]),
            (muon, [i for i in group["params"] if id(i[1]) in cheap]),
        ):
            rules: tuple[Rule, ...] = (rule, WeightDecay(weight_decay), Descend(), ScheduleFree(betas[0], r))
            groups.append({**group, "params": members, "rules": rules})
    return Chain([g for g in groups if g["params"]], lr=rate)


def narrow(p: Tensor) -> int:
    """The shorter side of a matrix, a filter being (out, in·height·width)."""
    return min(p.shape[0], p.numel() // p.shape[0])
