"""Matrix factorization with biases (Koren, Bell & Volinsky 2009, https://doi.org/10.1109/MC.2009.263): the workhorse of recommendation."""

# Shapes: B batch, D width.

import torch
from torch import Tensor, nn

from velodrome.models._common import check_sizes, seeded


class Factors(nn.Module):
    r"""Pairs (B, 2) of a row's and a column's number to the predicted entries (B,): $\mu + b_r + c_s + \langle u_r, v_s\rangle$.

    Rows and columns have factors of `width`, which start at N(0, 1/width) times `scale`; biases and $\mu$ start at zero. `seed` draws them without
    touching torch's global generator; None (the default) draws from it. ValueError for sizes below one.
    """

    def __init__(self, rows: int, columns: int, width: int, scale: float = 0.5, *, seed: int | None = None) -> None:
        super().__init__()
        check_sizes(rows=rows, columns=columns, width=width)
        with seeded(seed):
            self.row, self.column = nn.Embedding(rows, width), nn.Embedding(columns, width)
            self.row_bias, self.column_bias = nn.Embedding(rows, 1), nn.Embedding(columns, 1)
            self.mean = nn.Parameter(torch.zeros(()))
            for table in (self.row, self.column):
                nn.init.normal_(table.weight, std=scale * width**-0.5)
            for table in (self.row_bias, self.column_bias):
                nn.init.zeros_(table.weight)

    def forward(self, pairs_B2: Tensor) -> Tensor:
        """Entries (B,); ValueError for other shapes or types."""
        if pairs_B2.ndim != 2 or pairs_B2.shape[1] != 2 or pairs_B2.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"inputs must be int64 pairs (batch, 2), got {pairs_B2.dtype} {tuple(pairs_B2.shape)}.")
        r, c = pairs_B2.unbind(1)
        dot_B = (self.row(r) * self.column(c)).sum(1)
        return self.mean + self.row_bias(r).squeeze(1) + self.column_bias(c).squeeze(1) + dot_B
