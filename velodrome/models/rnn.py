"""A recurrent language model: GRU (Cho et al. 2014, https://arxiv.org/abs/1406.1078), LSTM or Elman's tanh network."""

# Shapes: B batch, L length, D width, V vocabulary.

import torch
from torch import Tensor, nn

from velodrome.models._common import check_sizes, seeded

CELLS = {"gru": nn.GRU, "lstm": nn.LSTM, "tanh": nn.RNN}
GATES = {"gru": 3, "lstm": 4, "tanh": 1}


class Rnn(nn.Module):
    """Token numbers (B, L) to logits (B, L, V) of the next token: an embedding, `depth` recurrent layers of `width`, and `head`; the state starts at zero.

    Input matrices start at N(0, 1/fan-in), recurrent ones orthogonal gate by gate (Saxe et al. 2014, https://arxiv.org/abs/1312.6120), biases at zero
    (an LSTM's forget gate at 1), the embedding at N(0, 1), the head at N(0, 0.02²). `seed` draws them without touching torch's global generator; None (the
    default) draws from it. ValueError for sizes below one or another cell.
    """

    def __init__(self, vocabulary: int, width: int, depth: int = 1, cell: str = "gru", *, seed: int | None = None) -> None:
        super().__init__()
        check_sizes(vocabulary=vocabulary, width=width, depth=depth)
        if cell not in CELLS:
            raise ValueError(f"cell must be 'gru', 'lstm' or 'tanh', got {cell!r}.")
        with seeded(seed):
            self.embed = nn.Embedding(vocabulary, width)
            self.cells = CELLS[cell](width, width, depth, batch_first=True)
            self.head = nn.Linear(width, vocabulary)
            nn.init.normal_(self.embed.weight)
            nn.init.normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
            for name, p in self.cells.named_parameters():
                if "bias" in name:
                    nn.init.zeros_(p)
                elif "weight_ih" in name:
                    nn.init.normal_(p, std=width**-0.5)
                else:
                    for gate in p.detach().chunk(GATES[cell]):
                        nn.init.orthogonal_(gate)
                if cell == "lstm" and "bias_ih" in name:
                    nn.init.ones_(p.detach()[width : 2 * width])

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Logits (B, L, V), those at position l seeing tokens 0..l; ValueError for other shapes or types."""
        if tokens_BL.ndim != 2:
            raise ValueError(f"inputs must be tokens (batch, length), got shape {tuple(tokens_BL.shape)}.")
        if tokens_BL.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"inputs must be int64 token numbers, got {tokens_BL.dtype}: write inputs.long().")
        y_BLD, _ = self.cells(self.embed(tokens_BL))
        return self.head(y_BLD)
