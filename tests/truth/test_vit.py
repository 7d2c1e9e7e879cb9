"""ViT in float64 against explicit transcriptions of its patches and its attention, and its closed formula of parameters."""

import math

import numpy as np
import pytest
import torch

from velodrome.models.vit import Block, Vit


def tiny(**options):
    return Vit(**{"size": 8, "patch": 4, "channels": 3, "width": 12, "depth": 2, "heads": 3, "classes": 5, "seed": 0, **options}).double()


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def apply(layer, x):
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def test_attention_is_the_softmax_of_scores_over_all_patches():
    block, x = Block(12, 3).double(), draw(2, 5, 12)
    q, k, v = (apply(f, x.numpy()) for f in (block.query, block.key, block.value))
    truth = np.zeros((2, 5, 12))
    for b in range(2):
        for h in range(3):
            part = slice(4 * h, 4 * h + 4)
            weights = np.exp(q[b, :, part] @ k[b, :, part].T / 2)
            truth[b, :, part] = weights / weights.sum(1, keepdims=True) @ v[b, :, part]
    assert np.allclose(block.attend(x).detach().numpy(), apply(block.project_attention, truth), rtol=0, atol=1e-12)


def test_patches_are_squares_in_reading_order():
    model, x, seen = tiny(), draw(2, 3, 8, 8), []
    model.patches.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    model(x)
    truth = [x[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].flatten(1) for i in range(2) for j in range(2)]
    assert torch.equal(seen[0], torch.stack(truth, 1))


def test_without_positions_the_order_of_the_patches_does_not_matter():
    model, x = tiny(), draw(1, 3, 8, 8)
    turned = x.roll((4, 4), (2, 3))  # whole patches change places
    assert not torch.allclose(model(x), model(turned), rtol=0, atol=1e-9)
    model.position.weight.data.zero_()
    assert torch.allclose(model(x), model(turned), rtol=0, atol=1e-12)


def test_a_vit_has_the_parameters_of_its_formula():
    d, patches = 12, (8 // 4) ** 2
    block = 4 * (d * d + d) + (d * 4 * d + 4 * d) + (4 * d * d + d) + 4 * d
    assert sum(p.numel() for p in tiny().parameters()) == (3 * 16 + 1) * d + patches * d + 2 * block + 2 * d + (d + 1) * 5


def test_initial_weights_have_the_documented_deviations():
    model = Vit(32, 4, 3, 128, 3, 4, 100, seed=0)
    variances = {"position.weight": 4e-4, "head.weight": 4e-4, "patches.weight": 1 / 48}
    for i in range(3):
        variances |= {f"blocks.{i}.{n}.weight": 1 / 128 for n in ("query", "key", "value", "expand")}
        variances |= {f"blocks.{i}.project_attention.weight": 1 / 128 / 6, f"blocks.{i}.project.weight": 1 / 512 / 6}
    for name, p in model.named_parameters():
        if name in variances:
            assert abs(p.var().item() / variances.pop(name) - 1) < 4.5 * math.sqrt(2 / p.numel())
        else:
            assert torch.all(p == (1 if name.endswith("weight") else 0))
    assert not variances


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: tiny(patch=3), "patch must divide size, got patch=3 and size=8: write patch=2"),
        (lambda: tiny(patch=16), "write patch=8"),
        (lambda: tiny(heads=5), "write heads=4"),
        (lambda: tiny()(draw(1, 3, 8, 12)), r"images \(batch, 3, 8, 8\), got shape"),
        (lambda: tiny()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), "let the stream normalise"),
    ],
)
def test_a_bad_size_or_a_bad_image_is_one_clear_sentence(call, says):
    with pytest.raises(ValueError, match=says):
        call()
