"""Transforms against a loop over single images in NumPy."""

import numpy as np
import pytest
import torch

from velodrome.data.hashing import generator
from velodrome.data.transforms import compose, flip_and_crop, normalise


def test_normalise_equals_its_equation_in_float64():
    x = torch.randint(256, (5, 3, 4, 6), generator=generator("x")).byte()
    mean, std = (0.49, 0.48, 0.45), (0.2, 0.3, 0.4)
    truth = (x.numpy().astype(np.float64) / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    found = normalise(mean, std)(x, generator("g"))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), truth, atol=2e-6)


def test_flipped_crops_are_windows_of_the_padded_image_or_of_its_mirror():
    x = torch.randint(1, 256, (64, 2, 6, 7), generator=generator("x")).byte()
    found = flip_and_crop(pad=2)(x, generator("g"))
    assert found.dtype == torch.uint8
    seen = set()
    for image, result in zip(x.numpy(), found.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)))
        crops = {(top, left): padded[:, top : top + 6, left : left + 7] for top in range(5) for left in range(5)}
        fits = [(*place, False) for place, crop in crops.items() if (crop == result).all()]
        fits += [(*place, True) for place, crop in crops.items() if (crop[:, :, ::-1] == result).all()]
        assert len(fits) == 1
        seen |= set(fits)
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(5))
    assert {mirrored for _, _, mirrored in seen} == {False, True}


def test_flips_come_with_their_probability():
    x = torch.tensor([1, 2]).byte().expand(4000, 1, 1, 2)
    share = (flip_and_crop(0, flip=0.3)(x, generator("g"))[:, 0, 0, 0] == 2).double().mean().item()
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5
    assert torch.equal(flip_and_crop(0, flip=0)(x, generator("g")), x)


def test_a_transform_is_a_pure_function_of_inputs_and_generator():
    x = torch.randint(256, (8, 3, 8, 8), generator=generator("x")).byte()
    before = x.clone()
    both = compose(flip_and_crop(), normalise())
    assert torch.equal(both(x, generator("a")), both(x, generator("a")))
    assert not torch.equal(both(x, generator("a")), both(x, generator("b")))
    assert torch.equal(both(x, generator("a")), normalise()(flip_and_crop()(x, generator("a")), generator("c")))
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "make",
    [
        lambda: normalise((0.5,), (0.0,)),
        lambda: normalise((0.5,), (1.0, 1.0)),
        lambda: flip_and_crop(-1),
        lambda: flip_and_crop(flip=1.5),
        lambda: normalise((0.5,) * 3, (1.0,) * 3)(torch.zeros(2, 1, 4, 4), generator("g")),
    ],
)
def test_options_that_make_no_sense_are_refused(make):
    with pytest.raises(ValueError, match=r"must|needs"):
        make()
