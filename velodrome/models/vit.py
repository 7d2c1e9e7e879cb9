"""ViT (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929), with the mean over patches instead of a class token (Beyer et al. 2022, https://arxiv.org/abs/2205.01580)."""

# Shapes: B batch, C channels, S image size, P patch size, N = (S/P)² patches, D width, H heads, K = D/H width of a head.

import torch.nn.functional as F
from torch import Tensor, nn

from velodrome.layers.attention import DotProductAttention
from velodrome.models._common import check_floating, check_heads, check_sizes, seeded


class Block(nn.Module):
    r"""Pre-norm: $x \gets x + \mathrm{Attention}(\mathrm{norm}(x))$ over all patches, then $x \gets x + W_2\,\mathrm{gelu}(W_1\,\mathrm{norm}(x))$.

    With `post_norm` as in the first transformer: $x \gets \mathrm{norm}(x + f(x))$ for both (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762).
    """

    def __init__(self, width: int, heads: int, post_norm: bool = False) -> None:
        super().__init__()
        self.heads, self.post_norm = heads, post_norm
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.attention = DotProductAttention(width // heads)
        self.project_attention = nn.Linear(width, width)
        self.expand, self.project = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attend(self, x_BND: Tensor) -> Tensor:
        """softmax(QKᵀ/√K)V for every head, joined and projected."""
        q_BHNK, k_BHNK, v_BHNK = (f(x_BND).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        y_BHNK = self.attention(q_BHNK, k_BHNK, v_BHNK)
        return self.project_attention(y_BHNK.transpose(1, 2).flatten(-2))

    def forward(self, x_BND: Tensor) -> Tensor:
        """The residual stream after attention and MLP."""
        if self.post_norm:
            x_BND = self.norm1(x_BND + self.attend(x_BND))
            return self.norm2(x_BND + self.project(F.gelu(self.expand(x_BND))))
        x_BND = x_BND + self.attend(self.norm1(x_BND))
        return x_BND + self.project(F.gelu(self.expand(self.norm2(x_BND))))


class Vit(nn.Module):
    """Square images (B, C, S, S) of `size` S to logits (B, `classes`): patches of `patch` pixels a side, a learned
    position each, `depth` blocks (`post_norm`: norms behind the residual sums), their mean.

    Linear weights start at N(0, 1/fan-in), the projections into the residual stream at 1/(2 `depth`) of that variance, positions and head at
    N(0, 0.02²), biases at zero, norms at 1 and 0. `seed` draws them without touching torch's global generator; None (the default) draws from it.
    ValueError for sizes below one, a patch that does not divide the size, or heads that do not divide the width. For a Hessian-vector product see `Gpt`.
    """

    def __init__(
        self,
        size: int,
        patch: int,
        channels: int,
        width: int,
        depth: int,
        heads: int,
        classes: int,
        post_norm: bool = False,
        *,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes(size=size, patch=patch, channels=channels, width=width, depth=depth, heads=heads, classes=classes)
        check_heads(width, heads)
        if size % patch:
            near = max(p for p in range(1, patch) if size % p == 0)
            raise ValueError(f"patch must divide size, got patch={patch} and size={size}: write patch={near}.")
        self.shape, self.patch = (channels, size, size), patch
        with seeded(seed):
            self.patches = nn.Linear(channels * patch**2, width)
            self.position = nn.Embedding((size // patch) ** 2, width)
            self.blocks = nn.ModuleList(Block(width, heads, post_norm) for _ in range(depth))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, classes)
            for name, module in self.named_modules():
                if isinstance(module, nn.Linear):
                    variance = 1 / module.in_features / (2 * depth if "project" in name else 1)
                    nn.init.normal_(module.weight, std=0.02 if name == "head" else variance**0.5)
                    nn.init.zeros_(module.bias)
            nn.init.normal_(self.position.weight, std=0.02)

    def forward(self, x_BCSS: Tensor) -> Tensor:
        """Logits (B, classes) of normalised images; ValueError for other shapes or whole-number pixels."""
        check_floating(x_BCSS)
        if x_BCSS.shape[1:] != self.shape:
            raise ValueError(f"inputs must be images (batch, {', '.join(map(str, self.shape))}), got shape {tuple(x_BCSS.shape)}.")
        patches_BNP = F.unfold(x_BCSS, self.patch, stride=self.patch).transpose(1, 2)
        x_BND = self.patches(patches_BNP) + self.position.weight
        for block in self.blocks:
            x_BND = block(x_BND)
        return self.head(self.norm(x_BND).mean(1))
