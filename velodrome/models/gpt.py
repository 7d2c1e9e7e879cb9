"""GPT, a decoder-only transformer (Radford et al. 2019) with rotary positions (Su et al. 2021, https://arxiv.org/abs/2104.09864)."""

# Shapes: B batch, L length, D width, H heads, K = D/H width of a head, K2 = K/2 pairs, V vocabulary.

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from velodrome.layers.attention import DotProductAttention
from velodrome.models._common import check_heads, check_sizes, seeded

NORMS = {"rms": lambda width: nn.RMSNorm(width, eps=1e-6), "layer": lambda width: nn.LayerNorm(width, bias=False)}


class Rotary(nn.Module):
    r"""Turns pair i of a head, $(x_i, x_{i+K/2})$, at position t by the angle $t\,10000^{-2i/K}$, so that scores see relative positions only."""

    cos_LK2: Tensor
    sin_LK2: Tensor

    def __init__(self, length: int, head_width: int) -> None:
        super().__init__()
        half = torch.arange(0, head_width, 2, dtype=torch.float64) / head_width
        angles_LK2 = torch.outer(torch.arange(length, dtype=torch.float64), 10000.0**-half)
        self.register_buffer("cos_LK2", angles_LK2.cos().to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("sin_LK2", angles_LK2.sin().to(torch.get_default_dtype()), persistent=False)

    def forward(self, x_BHLK: Tensor) -> Tensor:
        """The turned queries or keys."""
        length = x_BHLK.shape[2]
        cos, sin = self.cos_LK2[:length].to(x_BHLK.dtype), self.sin_LK2[:length].to(x_BHLK.dtype)
        first, second = x_BHLK.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


class Attention(nn.Module):
    r"""Causal: $\mathrm{softmax}(QK^\top/\sqrt K)V$ over positions up to one's own, with rotary queries and keys.

    With `qk_norm` each query and key is divided by its root mean square (no gain), so no score exceeds sqrt(K) (Henry et al. 2020,
    https://arxiv.org/abs/2010.04245; Dehghani et al. 2023, https://arxiv.org/abs/2302.05442).
    """

    def __init__(self, width: int, heads: int, rotary: Rotary, qk_norm: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.qk_norm, self.dropout, self.rotary = heads, qk_norm, dropout, rotary
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.attend = DotProductAttention(width // heads)
        self.project = nn.Linear(width, width, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """What the block adds to the residual stream."""
        q_BHLK, k_BHLK, v_BHLK = (f(x_BLD).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        if self.qk_norm:
            q_BHLK, k_BHLK = (F.rms_norm(z, z.shape[-1:], eps=1e-6) for z in (q_BHLK, k_BHLK))
        q_BHLK, k_BHLK = self.rotary(q_BHLK), self.rotary(k_BHLK)
        dropout = self.dropout if self.training else 0.0
        y_BHLK = self.attend(q_BHLK, k_BHLK, v_BHLK, dropout=dropout, causal=True)
        return self.project(y_BHLK.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    r"""Pre-norm: $x \gets x + \mathrm{Attention}(\mathrm{norm}(x))$, then $x \gets x + W_2\,\mathrm{gelu}(W_1\,\mathrm{norm}(x))$.

    With `post_norm` as in the first transformer: $x \gets \mathrm{norm}(x + f(x))$ for both (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762).
    """

    def __init__(self, width: int, heads: int, rotary: Rotary, norm: str, qk_norm: bool, dropout: float, post_norm: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = NORMS[norm](width), NORMS[norm](width)
        self.attention = Attention(width, heads, rotary, qk_norm, dropout)
        self.expand = nn.Linear(width, 4 * width, bias=False)
        self.project = nn.Linear(4 * width, width, bias=False)
        self.dropout, self.post_norm = nn.Dropout(dropout), post_norm

    def forward(self, x_BLD: Tensor) -> Tensor:
        """The residual stream after attention and MLP."""
        if self.post_norm:
            x_BLD = self.norm1(x_BLD + self.dropout(self.attention(x_BLD)))
            return self.norm2(x_BLD + self.dropout(self.project(F.gelu(self.expand(x_BLD)))))
        x_BLD = x_BLD + self.dropout(self.attention(self.norm1(x_BLD)))
        return x_BLD + self.dropout(self.project(F.gelu(self.expand(self.norm2(x_BLD)))))


class Gpt(nn.Module):
    """Token numbers (B, L), L at most `length`, to logits (B, L, V) of the next token; no linear layer or norm has a bias.

    `depth` blocks of `width` with `heads` heads; `norm` is "rms" or "layer"; `qk_norm` bounds the attention scores; `tied` shares the
    embedding's weight with `head`; `dropout` acts on embedding, attention weights and residual branches, in train mode; `post_norm` puts the
    blocks' norms behind the residual sums.

    Initial weights: linear layers N(0, 1/fan-in), with the 2 `depth` projections into the residual stream at 1/(2 `depth`) of that variance, so that the
    stream does not grow with depth (Radford et al. 2019); embedding N(0, 1), head N(0, 0.02²), the two N(0, 1/width) if tied; norms at 1.
    `seed` draws them without touching torch's global generator; None (the default) draws from it.

    ValueError for sizes below one, heads that do not divide the width into even parts, or an unknown norm.

    The fused attention kernels have one derivative only. For a Hessian-vector product run the forward pass inside
    `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        width: int,
        depth: int,
        heads: int,
        norm: str = "rms",
        qk_norm: bool = False,
        tied: bool = False,
        dropout: float = 0.0,
        post_norm: bool = False,
        *,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes(vocabulary=vocabulary, length=length, width=width, depth=depth, heads=heads)
        check_heads(width, heads)
        if (width // heads) % 2:
            raise ValueError(f"width / heads must be even for rotary positions, got {width} / {heads} = {width // heads}.")
        if norm not in NORMS:
            raise ValueError(f"norm must be 'rms' or 'layer', got {norm!r}.")
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout!r}.")
        self.length = length
        with seeded(seed):
            self.embed = nn.Embedding(vocabulary, width)
            self.dropout = nn.Dropout(dropout)
            rotary = Rotary(length, width // heads)  # one table, which all blocks share
            self.blocks = nn.ModuleList(Block(width, heads, rotary, norm, qk_norm, dropout, post_norm) for _ in range(depth))
            self.norm = NORMS[norm](width)
            self.head = nn.Linear(width, vocabulary, bias=False)
            for name, module in self.blocks.named_modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=(module.in_features * (2 * depth if "project" in name else 1)) ** -0.5)
            # Radford et al.'s 0.02 for the embedding would drown it in the first block's output at small widths.
            nn.init.normal_(self.embed.weight, std=width**-0.5 if tied else 1.0)
            nn.init.normal_(self.head.weight, std=0.02)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Logits (B, L, V), those at position l seeing tokens 0..l; ValueError for other shapes, types or a longer sequence."""
        if tokens_BL.ndim != 2 or tokens_BL.shape[1] > self.length:
            raise ValueError(
                f"inputs must be tokens (batch, length) with length at most {self.length}, got shape {tuple(tokens_BL.shape)}."
            )
        if tokens_BL.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"inputs must be int64 token numbers, got {tokens_BL.dtype}: write inputs.long().")
        x_BLD = self.dropout(self.embed(tokens_BL))
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return self.head(self.norm(x_BLD))
