"""ResNet against the figures of He et al. 2016 and an independent transcription of one block."""

import numpy as np
import pytest
import torch
from torch import nn

from velodrome.models.resnet import Block, ResNet


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_a_resnet_has_the_published_number_of_parameters(depth, millions):
    """He et al. 2016 (https://arxiv.org/abs/1512.03385, table 6), in millions."""
    count = sum(p.numel() for p in ResNet(depth).parameters())
    assert round(count / 1e6, 1 if depth == 110 else 2) == millions
    if depth == 20:
        assert count == 269_722


@pytest.mark.parametrize("depth", [8, 20])
def test_a_resnets_depth_counts_its_convolutions_and_its_head(depth):
    model = ResNet(depth, width=4)
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == depth


def convolve(x, w, stride):
    """A 3x3 convolution with padding 1, by its definition."""
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    high, wide = (x.shape[2] - 3) // stride + 1, (x.shape[3] - 3) // stride + 1
    y = np.zeros((x.shape[0], w.shape[0], high, wide))
    for i in range(high):
        for j in range(wide):
            y[:, :, i, j] = np.einsum("bchw,ochw->bo", x[:, :, i * stride : i * stride + 3, j * stride : j * stride + 3], w)
    return y


def normalise(x):
    """Batch normalisation at its initial gain and bias, in train mode."""
    return (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)


def test_a_block_halves_the_image_and_fills_its_shortcut_with_zeros():
    block = Block(2, 5, stride=2).double()
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w1, w2 = block.conv1.weight.detach().numpy(), block.conv2.weight.detach().numpy()
    inner = normalise(convolve(np.maximum(normalise(convolve(x.numpy(), w1, 2)), 0), w2, 1))
    shortcut = np.concatenate([x.numpy()[:, :, ::2, ::2], np.zeros((3, 3, 3, 3))], axis=1)
    assert np.allclose(block(x).detach().numpy(), np.maximum(inner + shortcut, 0), rtol=0, atol=1e-12)


def test_the_logits_are_the_head_of_the_mean_over_pixels():
    model = ResNet(8, width=4, classes=3, channels=1, seed=0).double().eval()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kept = []
    model.blocks[-1].register_forward_hook(lambda module, args, output: kept.append(output))
    logits = model(x)
    assert kept[0].shape == (2, 16, 2, 2)
    truth = kept[0].flatten(2).mean(-1) @ model.head.weight.T + model.head.bias
    assert torch.allclose(logits, truth, rtol=0, atol=1e-13)


def test_depths_and_images_that_do_not_fit_are_one_clear_sentence():
    with pytest.raises(ValueError, match=r"depth must be 6n \+ 2 .* write depth=20"):
        ResNet(18)
    with pytest.raises(ValueError, match="write depth=8"):
        ResNet(2)
    with pytest.raises(ValueError, match="images"):
        ResNet(8)(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="let the stream normalise"):
        ResNet(8)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
