"""The three networks on which the bars of the probes are measured, with random data; the same for every tool."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from velodrome.data.stream import Batch


class Attention(nn.Module):
    """Causal attention in plain operations: the fused kernels have one derivative only, and no peer chooses another for the user."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """What the block adds to the stream, (B, T, D)."""
        b, t, d = x.shape
        q, k, v = (z.view(b, t, self.heads, d // self.heads).transpose(1, 2) for z in self.qkv(x).split(d, dim=2))
        scores = q @ k.transpose(-2, -1) * (d // self.heads) ** -0.5
        later = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
        return self.project((scores.masked_fill(later, float("-inf")).softmax(-1) @ v).transpose(1, 2).reshape(b, t, d))


class Block(nn.Module):
    """LayerNorm before each of attention and a GELU network of four times the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """The stream after the block, (B, T, D)."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class PlainGpt(nn.Module):
    """A GPT of nn.Linear, nn.LayerNorm and nn.Embedding with biases and learnt positions, as the peers know it."""

    def __init__(self, width: int = 128, depth: int = 4, heads: int = 4, vocabulary: int = 512, length: int = 64) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, V) of token numbers (B, T)."""
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Flat(nn.Module):
    """Logits (B, T, V) and targets (B, T) as rows, so that torch's criteria and the peers take them: the loss is the mean over all positions."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B T, V)."""
        return self.model(x).flatten(0, -2)


@dataclass(frozen=True)
class Task:
    """A model in fp32, a batch, and the mean cross-entropy as torch and our losses take it."""

    name: str
    model: nn.Module
    batch: Batch

    def rows(self) -> tuple[nn.Module, Tensor, Tensor]:
        """Model, inputs, targets for tools that know (N, C) logits only; the model shares its parameters with `model`."""
        deep = self.batch.targets.ndim > 1
        return Flat(self.model) if deep else self.model, self.batch.inputs, self.batch.targets.flatten()


def mlp(seed: int = 0, batch: int = 128) -> Task:
    """784-720-512-10 with tanh: 939,482 parameters."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(784, 720), nn.Tanh(), nn.Linear(720, 512), nn.Tanh(), nn.Linear(512, 10))
    return Task("MLP", model, Batch(torch.randn(batch, 784), torch.randint(10, (batch,))))


def cnn(seed: int = 0, batch: int = 32) -> Task:
    """Three 3x3 convolutions of 32, 64, 128 channels with ReLU and max-pooling and two linear layers, 32x32 images: 949,802 parameters."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 416), nn.ReLU(), nn.Linear(416, 10))
    return Task("CNN", model, Batch(torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))))


def gpt(seed: int = 0, batch: int = 8) -> Task:
    """Width 128, 4 blocks, 4 heads, 512 tokens, length 64: 932,608 parameters."""
    torch.manual_seed(seed)
    return Task("GPT", PlainGpt(), Batch(torch.randint(512, (batch, 64)), torch.randint(512, (batch, 64))))


def tasks() -> list[Task]:
    """All three."""
    return [mlp(), cnn(), gpt()]
