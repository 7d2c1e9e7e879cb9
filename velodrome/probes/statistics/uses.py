r"""What one use of a parameter adds to the gradients of single examples, layer by layer, without building those gradients where that can be avoided.

A linear map $y_{it} = W x_{it}$ over positions t gives example i the gradient $g_i = \sum_t \delta_{it} x_{it}^\top$ with $\delta$ the gradient at y, so
$\lVert g_i\rVert^2 = \sum_{ts} (x_{it}\cdot x_{is})(\delta_{it}\cdot\delta_{is})$ (Goodfellow 2015, https://arxiv.org/abs/1510.01799, for one position;
Li et al. 2022, https://arxiv.org/abs/2110.05679, for sequences): two Gram matrices of T x T instead of a gradient for each example. Where T is so large
that the Gram matrices cost more, the gradients are built one example at a time and dropped again.
"""

# Shapes: B examples, T positions, K inputs and M outputs of a linear map, C channels, V rows of an embedding.

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.linalg import vector_norm

BLOCK = 1 << 20  # numbers of gradients of single examples that are held at a time


class Use(Protocol):
    """What one use of a parameter adds to each example's gradient of it."""

    def squared(self) -> Tensor:
        """Squared norms (B,)."""
        ...

    def inner(self, direction: Tensor) -> Tensor:
        """Products (B,) with a tensor in the parameter's shape, in its format: a mean of bfloat16's gradients is float32."""
        ...

    def gradients(self, low: int, high: int) -> Tensor:
        """The gradients of examples low to high, (high - low, numbers of the parameter)."""
        ...


@dataclass(frozen=True)
class Direct:
    """Gradients that are small enough to be there: gains, shifts, biases (B, …)."""

    grads: Tensor

    def squared(self) -> Tensor:
        """Sums of squares."""
        return vector_norm(self.grads.flatten(1), dim=1).square()

    def inner(self, direction: Tensor) -> Tensor:
        """Products."""
        return self.grads.flatten(1).to(direction.dtype) @ direction.flatten()

    def gradients(self, low: int, high: int) -> Tensor:
        """Those at hand."""
        return self.grads[low:high].flatten(1)


@dataclass(frozen=True)
class Placed(Direct):
    """Gradients of the part of a parameter that the examples see (`self.grads`), the rest being zero: norms alone, products with their own sum."""

    def inner(self, direction: Tensor) -> Tensor:
        """Products with the sum over the examples, which is the parameter's gradient."""
        return self.grads.flatten(1) @ self.grads.flatten(1).sum(0)


@dataclass(frozen=True)
class Outer:
    """A linear map's weight (M, K): inputs x (B, T, K) and gradients d at the outputs (B, T, M)."""

    x: Tensor
    d: Tensor

    def squared(self) -> Tensor:
        """By norms for one position, by Gram matrices for few, by the gradients for many."""
        t, k, m = self.x.shape[1], self.x.shape[2], self.d.shape[2]
        if t == 1:
            return (vector_norm(self.x.flatten(1), dim=1) * vector_norm(self.d.flatten(1), dim=1)).square()
        if t * (k + m) <= k * m:
            return dots(torch.bmm(self.x, self.x.mT), torch.bmm(self.d, self.d.mT))
        return in_blocks(self, len(self.d), k * m)

    def inner(self, direction: Tensor) -> Tensor:
        """$\\sum_t \\delta_{it}^\\top D x_{it}$."""
        return dots(self.x.to(direction.dtype) @ direction.reshape(self.d.shape[2], -1).T, self.d)

    def gradients(self, low: int, high: int) -> Tensor:
        """One product for each example; on a CPU each as a matrix of its own, which BLAS does faster than its batches."""
        x, d = self.x[low:high], self.d[low:high]
        if x.is_cuda or x.shape[1] * x.shape[2] * d.shape[2] < BLOCK:
            return torch.bmm(d.mT, x).flatten(1)
        out = x.new_empty(len(x), d.shape[2], x.shape[2])
        for one, dt, xt in zip(out, d, x, strict=True):
            torch.mm(dt.T, xt, out=one)
        return out.flatten(1)


@dataclass(frozen=True)
class Rows:
    """An embedding's weight (V, M): row numbers (B, T) and gradients d at the outputs (B, T, M)."""

    rows: Tensor
    d: Tensor
    shape: torch.Size

    def squared(self) -> Tensor:
        """Positions of an example that take the same row add up first."""
        b = len(self.rows)
        cells = self.rows + torch.arange(b, device=self.rows.device)[:, None] * self.shape[0]
        found, place = cells.flatten().unique(return_inverse=True)
        sums = self.d.new_zeros(len(found), self.d.shape[2]).index_add_(0, place, self.d.flatten(0, 1))
        return self.d.new_zeros(b).index_add_(0, found // self.shape[0], sums.square().sum(1))

    def inner(self, direction: Tensor) -> Tensor:
        """Products with the rows taken."""
        whole = direction.to_dense() if direction.is_sparse else direction
        return dots(whole[self.rows], self.d)

    def gradients(self, low: int, high: int) -> Tensor:
        """Mostly zeros."""
        rows, d = self.rows[low:high], self.d[low:high]
        out = d.new_zeros(len(rows), *self.shape)
        return out.scatter_add_(1, rows[..., None].expand_as(d), d).flatten(1)


@dataclass(frozen=True)
class Convolved:
    """A convolution's weight (M, C/groups, H, W): padded inputs x (B, C, …), gradients d at the outputs, and the kernel's steps; a 1-d one has height 1."""

    x: Tensor
    d: Tensor
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def squared(self) -> Tensor:
        """By Gram matrices where the picture is small and channels are many, block by block from gradients otherwise."""
        t, m = self.d.shape[2] * self.d.shape[3], self.d.shape[1]
        pixels, kernel = self.x.shape[2] * self.x.shape[3], self.kernel[0] * self.kernel[1]
        c = self.x.shape[1]
        if self.groups == 1 and c * pixels**2 + (m + kernel) * t**2 <= c * kernel * m * t:
            d = self.d.flatten(2)
            return dots(self._gram(), torch.bmm(d.mT, d))
        size = max(m * c * kernel // self.groups, c * pixels * (self.kernel[1] if self._even() else kernel))
        if not self._even():
            return in_blocks(self, len(self.d), size)
        parts = (self._rows(self.x[low:high], self.d[low:high].flatten(2)) for low, high in blocks(len(self.d), size))
        return torch.cat([torch.stack([vector_norm(g.flatten(1), dim=1).square() for g in part]).sum(0) for part in parts])

    def _even(self) -> bool:
        return self.stride == self.dilation == (1, 1) and self.groups == 1

    def _gram(self) -> Tensor:
        # of patches, from that of pixels: a patch's product is the sum over the kernel of its pixels' products, and no patch is ever copied
        x = self.x.flatten(2)
        pixels = torch.bmm(x.mT, x).view(len(x), *self.x.shape[2:], *self.x.shape[2:])
        found = torch.zeros((), dtype=x.dtype, device=x.device)
        for u in range(self.kernel[0]):
            for v in range(self.kernel[1]):
                spots = [
                    slice(k * step, k * step + (n - 1) * stride + 1, stride)
                    for k, n, step, stride in zip((u, v), self.d.shape[2:], self.dilation, self.stride, strict=True)
                ]
                found = found + pixels[(slice(None), *spots, *spots)]
        return found

    def inner(self, direction: Tensor) -> Tensor:
        """The gradients' products with the convolution by the direction."""
        out = F.conv2d(
            self.x.to(direction.dtype),
            direction.reshape(-1, self.x.shape[1] // self.groups, *self.kernel),
            None,
            self.stride,
            0,
            self.dilation,
            self.groups,
        )
        return dots(out, self.d)

    def gradients(self, low: int, high: int) -> Tensor:
        """By rows of the kernel where its steps are one and there is one group, by patches otherwise."""
        x, d = self.x[low:high], self.d[low:high].flatten(2)
        if self._even():
            found = torch.stack(self._rows(x, d), 1).view(len(x), self.kernel[0], d.shape[1], x.shape[1], self.kernel[1])
            return found.permute(0, 2, 3, 1, 4).flatten(1)
        u = self._patches(x)
        b, (m, t) = len(x), d.shape[1:]
        u, d = u.reshape(b * self.groups, -1, t), d.reshape(b * self.groups, m // self.groups, t)
        return torch.bmm(d, u.mT).reshape(b, -1)

    def _patches(self, x: Tensor) -> Tensor:
        return F.unfold(x, self.kernel, self.dilation, 0, self.stride)

    def _rows(self, x: Tensor, d: Tensor) -> list[Tensor]:
        # Copies shifted sideways only: the shifts up and down are views of them, which is a third of the memory of patches.
        (h, w), (rows, columns) = self.kernel, self.d.shape[2:]
        side = torch.stack([x[..., v : v + columns] for v in range(w)], 2).flatten(1, 2).flatten(2)
        return [torch.bmm(d, side[:, :, u * columns : (u + rows) * columns].mT) for u in range(h)]


def dots(a: Tensor, b: Tensor) -> Tensor:
    """For each example the sum of products of two tensors (B, …)."""
    return (a.flatten(1) * b.flatten(1)).sum(1)


def squared_norm(x: Tensor) -> Tensor:
    """The sum of squares of a whole tensor: parts in its own precision, which is exact enough for them, and their sums in float64."""
    flat = (x.to_dense() if x.is_sparse else x).flatten()
    if len(flat) <= 1 << 18:
        return torch.dot(flat, flat)
    return torch.stack([torch.dot(part, part) for part in flat.split(1 << 18)]).double().sum()


def in_blocks(use: Use, n: int, size: int) -> Tensor:
    """Squared norms of n examples, whose gradients take `size` numbers each, a block of examples at a time."""
    return torch.cat([vector_norm(use.gradients(low, high), dim=1).square() for low, high in blocks(n, size)])


def blocks(n: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of examples whose gradients are BLOCK numbers at most."""
    step = max(1, BLOCK // max(1, size))
    return ((low, min(low + step, n)) for low in range(0, n, step))


def together(uses: Sequence[Use], n: int, size: int) -> Use:
    """All uses of one parameter in one pass as one; positions of linear maps are put side by side, which keeps their cross terms."""
    if len(uses) == 1:
        return uses[0]
    if all(isinstance(u, Outer) for u in uses):
        return Outer(torch.cat([u.x for u in uses], 1), torch.cat([u.d for u in uses], 1))  # type: ignore[attr-defined]
    if all(isinstance(u, Rows) for u in uses):
        first: Rows = uses[0]  # type: ignore[assignment]
        return Rows(torch.cat([u.rows for u in uses], 1), torch.cat([u.d for u in uses], 1), first.shape)  # type: ignore[attr-defined]
    return Several(tuple(uses), n, size)


@dataclass(frozen=True)
class Several:
    """Uses of several kinds, such as an embedding whose weight is also the head: their sum."""

    uses: tuple[Use, ...]
    n: int
    size: int

    def squared(self) -> Tensor:
        """Embedding and head by Gram matrices and the rows taken, others by the gradients."""
        rows = together([u for u in self.uses if isinstance(u, Rows)], self.n, self.size) if self._tied() else None
        if not isinstance(rows, Rows):
            return in_blocks(self, self.n, self.size)
        outer = together([u for u in self.uses if isinstance(u, Outer)], self.n, self.size)
        assert isinstance(outer, Outer)
        # (B, T, S): what position s of the head does to the row that position t of the embedding takes, times the two other factors' product.
        heads = outer.d.mT.gather(1, rows.rows[..., None].expand(-1, -1, outer.d.shape[1]))
        return rows.squared() + outer.squared() + 2 * dots(heads, torch.bmm(rows.d, outer.x.mT))

    def _tied(self) -> bool:
        kinds = {type(u) for u in self.uses}
        return kinds == {Rows, Outer}

    def inner(self, direction: Tensor) -> Tensor:
        """The sum of theirs."""
        return torch.stack([u.inner(direction) for u in self.uses]).sum(0)

    def gradients(self, low: int, high: int) -> Tensor:
        """The sum of theirs."""
        return torch.stack([u.gradients(low, high) for u in self.uses]).sum(0)


def linear(module: nn.Linear, x: Tensor, d: Tensor) -> dict[str, Use]:
    """Weight and bias."""
    x, d = x.reshape(len(x), -1, x.shape[-1]), d.reshape(len(d), -1, d.shape[-1])
    return {"weight": Outer(x, d), "bias": Direct(d.sum(1) if d.shape[1] > 1 else d)}


def embedding(module: nn.Embedding, x: Tensor, d: Tensor) -> dict[str, Use]:
    """Rows; that of the padding stays where it is."""
    rows, d = x.reshape(len(x), -1).long(), d.reshape(len(d), -1, d.shape[-1])
    if module.padding_idx is not None:
        d = d.masked_fill((rows == module.padding_idx)[..., None], 0.0)
    return {"weight": Rows(rows, d, module.weight.shape)}


def layer_norm(module: nn.LayerNorm, x: Tensor, d: Tensor) -> dict[str, Use]:
    """Gain and shift over the normalised trailing dimensions."""
    return _over_positions(d, F.layer_norm(x, module.normalized_shape, None, None, module.eps), len(module.normalized_shape))


def rms_norm(module: nn.RMSNorm, x: Tensor, d: Tensor) -> dict[str, Use]:
    """Gain over the normalised trailing dimensions."""
    return _over_positions(d, F.rms_norm(x, module.normalized_shape, None, module.eps), len(module.normalized_shape))


def _over_positions(d: Tensor, normed: Tensor, dims: int) -> dict[str, Use]:
    shape = (len(d), -1, *d.shape[d.ndim - dims :])
    return {"weight": Direct((d * normed).reshape(shape).sum(1)), "bias": Direct(d.reshape(shape).sum(1))}


def group_norm(module: nn.GroupNorm, x: Tensor, d: Tensor) -> dict[str, Use]:
    """Gain and shift of channels."""
    return _over_channels(d, F.group_norm(x, module.num_groups, None, None, module.eps))


def batch_norm(module: nn.modules.batchnorm._BatchNorm, x: Tensor, d: Tensor) -> dict[str, Use]:
    """Gain and shift of channels, with running statistics."""
    return _over_channels(d, F.batch_norm(x, module.running_mean, module.running_var, None, None, False, 0.0, module.eps))


def _over_channels(d: Tensor, normed: Tensor) -> dict[str, Use]:
    shape = (*d.shape[:2], -1)
    return {"weight": Direct((d * normed).reshape(shape).sum(2)), "bias": Direct(d.reshape(shape).sum(2))}


def convolution(module: nn.Conv1d | nn.Conv2d, x: Tensor, d: Tensor) -> dict[str, Use]:
    """Weight and bias of a convolution in one or two dimensions."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, tuple(_padding(module)), mode=mode)
    pair = (lambda s: (1, s[0])) if d.ndim == 3 else (lambda s: (s[0], s[1]))
    if d.ndim == 3:
        x, d = x.unsqueeze(2), d.unsqueeze(2)
    used = Convolved(x, d, pair(module.kernel_size), pair(module.stride), pair(module.dilation), module.groups)
    return {"weight": used, "bias": Direct(d.flatten(2).sum(2))}


def _padding(module: nn.Conv1d | nn.Conv2d) -> list[int]:
    if module.padding == "valid":
        return [0, 0] * len(module.kernel_size)
    return list(module._reversed_padding_repeated_twice)  # last dimension first, as F.pad wants it; also where padding is "same"


Rule = Callable[[Any, Tensor, Tensor], dict[str, Use]]

# By the forward function, so that a subclass that computes something else is not taken for its parent.
RULES: dict[Any, Rule] = {
    nn.Linear.forward: linear,
    nn.Embedding.forward: embedding,
    nn.LayerNorm.forward: layer_norm,
    nn.RMSNorm.forward: rms_norm,
    nn.GroupNorm.forward: group_norm,
    nn.BatchNorm1d.forward: batch_norm,  # the same function for two and three dimensions
    nn.Conv1d.forward: convolution,
    nn.Conv2d.forward: convolution,
}


def rule(module: nn.Module) -> Rule | None:
    """The rule of a module, or None."""
    return RULES.get(type(module).forward)


def least(module: nn.Module) -> int:
    """The dimensions that an input of a module with a rule must have for the first to be the examples."""
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return len(module.normalized_shape) + 1
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return module.weight.ndim
    return 1 if isinstance(module, nn.Embedding) else 2
