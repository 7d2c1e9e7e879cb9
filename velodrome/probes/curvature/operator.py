"""Operator: a symmetric matrix of which only products are known."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor


class Operator(ABC):
    """A symmetric n x n matrix over the concatenated parameters, asked by `operator @ v`; v of shape (n,) or (n, k), in `dtype` on `device`.

    `names` and `shapes` say which entries belong to which parameter, in order. `products` counts the columns asked so far. A product is deterministic:
    the same v gives the same answer.
    """

    def __init__(self, names: Sequence[str], shapes: Sequence[torch.Size], dtype: torch.dtype, device: torch.device) -> None:
        self.names, self.shapes, self.dtype, self.device = list(names), [torch.Size(s) for s in shapes], dtype, device
        self.sizes = [s.numel() for s in self.shapes]
        self.n = sum(self.sizes)
        self.products = 0

    @abstractmethod
    def product(self, v: Tensor) -> Tensor:
        """The matrix times one vector (n,)."""

    def block(self, V: Tensor) -> Tensor:
        """The matrix times the columns of (n, k); column by column unless there is a faster way."""
        return torch.stack([self.product(V[:, j]) for j in range(V.shape[1])], dim=1)

    def __matmul__(self, v: Tensor) -> Tensor:
        if v.ndim not in (1, 2) or v.shape[0] != self.n:
            raise ValueError(f"the vector must have shape ({self.n},) or ({self.n}, k), got {tuple(v.shape)}.")
        if not v.is_floating_point():
            raise ValueError(f"the vector must be floating-point, got {v.dtype}: write v.to({self.dtype}).")
        self.products += 1 if v.ndim == 1 else v.shape[1]
        v = v.to(self.dtype)
        return self.product(v) if v.ndim == 1 else self.block(v)

    def split(self, v: Tensor) -> dict[str, Tensor]:
        """The entries of each parameter, in its shape."""
        return {name: x.view(shape) for name, x, shape in zip(self.names, v.split(self.sizes), self.shapes, strict=True)}

    def dense(self) -> Tensor:
        """The whole matrix by n products; for small n."""
        eye = torch.eye(self.n, dtype=self.dtype, device=self.device)
        return torch.stack([self @ row for row in eye], dim=1)


class Matrix(Operator):
    """A dense symmetric matrix as an operator, of one parameter called `matrix`; for tests and small problems."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(["matrix"], [matrix.shape[:1]], matrix.dtype, matrix.device)
        self.matrix = matrix

    def product(self, v: Tensor) -> Tensor:
        """The matrix times v."""
        return self.matrix @ v

    def block(self, V: Tensor) -> Tensor:
        """The matrix times the columns of V."""
        return self.matrix @ V
