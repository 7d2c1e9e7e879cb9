r"""Attention logits and entropy, by layer and head: their growth is the first sign of a slow divergence (Dehghani et al. 2023; Wortsman et al. 2023).

    with attention(model) as seen:
        loss(model(x), y).backward()
    print(seen.layers["blocks.5.attention.attend"].largest, seen.largest)

A logit is $s\,\langle q_i, k_j\rangle$ with a visible pair (i, j); where the largest runs away, softmax becomes one-hot, the entropy of its rows
falls to 0 nats and the gradient with it (https://arxiv.org/abs/2302.05442, https://arxiv.org/abs/2309.14322). Seen are
F.scaled_dot_product_attention, nn.MultiheadAttention, and softmax over the last of four dimensions (somebody's own attention), in any model.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from velodrome.probes.estimate import Estimate, exact, unidentified
from velodrome.probes.failures.watcher import Watcher, numbers

MASKED = -1e4  # what people add to hide a pair; a score below it hides one
LOGIT = "attention logit, no unit"


@dataclass(frozen=True)
class Heads:
    """Of one layer, by head: `logits`, the largest visible one; `entropies`, the mean over queries of $-\\sum p\\log p$ in nats; `shares`, that over the
    entropy of the uniform distribution over the visible keys, 0 to 1 (NaN where every query sees one key)."""

    logits: list[float]
    entropies: list[float]
    shares: list[float]

    @property
    def largest(self) -> float:
        """The largest logit of all heads."""
        return max(self.logits, key=lambda x: math.inf if math.isnan(x) else x)

    @property
    def lowest(self) -> float:
        """The lowest head's share of entropy: near 0, that head looks at one key only."""
        return min((s for s in self.shares if not math.isnan(s)), default=math.nan)


@dataclass
class Attention:
    """`layers` by name, filled on leaving. `sampled` tells that queries were left out, so that the largest logit may be larger still."""

    layers: dict[str, Heads] = field(default_factory=dict)
    sampled: bool = False

    @property
    def largest(self) -> Estimate:
        """The largest logit of the model."""
        if not self.layers:
            return unidentified(LOGIT, "no attention was computed inside, or in a way that cannot be seen")
        note = "over the sampled queries, so at least this" if self.sampled else ""
        return exact(max(x.largest for x in self.layers.values()), LOGIT, note=note)


class Scores:
    """Collects the scores of attention; one line of a watcher."""

    def __init__(self, watcher: Watcher, examples: int | None, queries: int | None) -> None:
        for name, value in (("examples", examples), ("queries", queries)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number, one or more, or None for all, got {value!r}.")
        self.examples, self.queries, self.sampled = examples, queries, False
        self.calls: list[tuple[str, Tensor]] = []
        self.watcher = watcher
        watcher.on_function([F.scaled_dot_product_attention], self.fused)
        watcher.on_function([torch.softmax, F.softmax, Tensor.softmax], self.softmax)
        watcher.on_module(lambda m: isinstance(m, nn.MultiheadAttention), self.multihead)

    def chosen(self, size: int, most: int | None) -> slice:
        """Evenly spaced places, at most so many, the last one always."""
        if most is None or size <= most:
            return slice(None)
        self.sampled = True
        stride = -(-size // most)
        return slice((size - 1) % stride, None, stride)

    def fused(self, name: str, args: Any, kwargs: Any, output: Any) -> None:
        """F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)."""
        given = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False)) | kwargs
        q, k = given["query"].detach(), given["key"].detach()
        if q.ndim < 3:
            return
        self.note(name, q, k, given.get("attn_mask"), bool(given.get("is_causal")), given.get("scale"))

    def note(self, name: str, q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> None:
        """Scores of some queries with all keys; q (…, H, L, K) and k (…, H or fewer, S, K)."""
        places = self.chosen(q.shape[-2], self.queries)
        q, k = (x.reshape(-1, *x.shape[-3:]) if x.ndim > 3 else x.unsqueeze(0) for x in (q, k))
        some = self.chosen(q.shape[0], self.examples)
        whole, length, keys = q.shape[0], q.shape[-2], k.shape[-2]
        q, k = q[some][:, :, places].float(), k[some].float()
        if k.shape[1] != q.shape[1]:
            k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
        if causal:
            scores = scores.masked_fill(
                torch.arange(keys, device=q.device) > torch.arange(length, device=q.device)[places, None], -math.inf
            )
        if mask is not None:
            full = mask.detach().expand(*mask.shape[:-2], length, keys)
            full = full.reshape(-1, *full.shape[-3:]) if full.ndim > 3 else full
            part = (full[some] if full.ndim > 3 and full.shape[0] == whole > 1 else full)[..., places, :]
            scores = scores.masked_fill(~part, -math.inf) if part.dtype == torch.bool else scores + part.float()
        self.count(name, scores)

    def softmax(self, name: str, args: Any, kwargs: Any, output: Any) -> None:
        """A softmax over the last of four dimensions: scores (B, H, L, S) as they are, masks included."""
        scores = (args[0] if args else kwargs["input"]).detach()
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        if scores.ndim == 4 and dim in (-1, 3) and scores.is_floating_point():
            places, some = self.chosen(scores.shape[2], self.queries), self.chosen(scores.shape[0], self.examples)
            self.count(name, scores[some, :, places].float())

    def multihead(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """nn.MultiheadAttention, whose own computation no function of ours sees: queries and keys are projected once more."""
        assert isinstance(module, nn.MultiheadAttention)
        names = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")
        given = dict(zip(names, args, strict=False)) | kwargs
        q, k = (x.detach() if x.ndim == 3 else x.detach().unsqueeze(0 if module.batch_first else 1) for x in (given["query"], given["key"]))
        q, k = (x if module.batch_first else x.transpose(0, 1) for x in (q, k))
        width = module.embed_dim
        shared = module._qkv_same_embed_dim
        weights = [w.detach() for w in (module.in_proj_weight.split(width) if shared else (module.q_proj_weight, module.k_proj_weight))]
        biases = (None, None) if module.in_proj_bias is None else (module.in_proj_bias[:width], module.in_proj_bias[width : 2 * width])
        q, k = (
            F.linear(x.to(w.dtype), w, None if b is None else b.detach()).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
            for x, w, b in zip((q, k), weights[:2], biases, strict=True)
        )
        self.note(name, q, k, merged(given.get("attn_mask"), given.get("key_padding_mask"), q.shape[0], module.num_heads), False, None)

    def count(self, name: str, scores: Tensor) -> None:
        """The numbers of scores (B, H, L, S), where hidden pairs are at `MASKED` or below: a tensor (3, H)."""
        visible = (scores > MASKED).sum(-1).float()
        entropy = torch.special.entr(scores.softmax(-1)).sum(-1)
        share = torch.where(visible > 1, entropy / visible.log(), math.nan)
        largest = scores.amax((0, 2, 3))
        self.calls.append((name, torch.stack([largest, entropy.nanmean((0, 2)), share.nanmean((0, 2))])))

    def fill(self, seen: Attention) -> None:
        """Bring the numbers to the host; of a layer that is called more than once, the largest logit and the mean entropies."""
        found: dict[str, list[list[list[float]]]] = {}
        for (name, tensor), flat in zip(self.calls, numbers([c[1] for c in self.calls]), strict=True):
            heads = tensor.shape[1]
            found.setdefault(name, []).append([flat[i * heads : (i + 1) * heads] for i in range(3)])
        for name, calls in found.items():
            calls = [c for c in calls if len(c[0]) == len(calls[0][0])]
            means = [[sum(v) / len(v) for v in zip(*(c[i] for c in calls), strict=True)] for i in (1, 2)]
            seen.layers[name] = Heads([max(v) for v in zip(*(c[0] for c in calls), strict=True)], *means)
        seen.sampled = self.sampled


def merged(mask: Tensor | None, padding: Tensor | None, batch: int, heads: int) -> Tensor | None:
    """One mask to add, from nn.MultiheadAttention's two (where True hides) in their several shapes."""
    total: Tensor | None = None
    if mask is not None:
        total = (
            torch.zeros_like(mask, dtype=torch.float32).masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask.detach().float()
        )
        total = total.view(batch, heads, *total.shape[-2:]) if total.ndim == 3 else total
    if padding is not None:
        hidden = (
            torch.zeros_like(padding, dtype=torch.float32).masked_fill(padding, -math.inf)
            if padding.dtype == torch.bool
            else padding.detach().float()
        )
        hidden = hidden.reshape(batch, 1, 1, -1)
        total = hidden if total is None else total + hidden
    return total


@contextmanager
def attention(model: nn.Module, *, examples: int | None = 8, queries: int | None = 16) -> Iterator[Attention]:
    """Logits and entropies of the forward passes made inside, from so many evenly spaced examples and queries with all keys; None looks at all.

    The attention itself is computed by the kernel that would compute it anyway, bit for bit; a fused one does not show its logits, so those of the chosen
    queries are computed once more, in float32: 16 of 1,024 queries cost 1/64 of half the attention.
    """
    seen, watcher = Attention(), Watcher(model)
    scores = Scores(watcher, examples, queries)
    with watcher.watching():
        yield seen
    scores.fill(seen)
