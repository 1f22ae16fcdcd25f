"""Shifts and mirror images."""

import pytest
import torch

from ptmq.training.augmentation import flipped, shifted


@pytest.mark.parametrize(("border", "padding"), [("black", {"value": -9.0}), ("edge", {"mode": "replicate"})])
def test_shifts_move_whole_images(border, padding):
    x = torch.arange(20 * 1 * 4 * 4.0).view(20, 1, 4, 4)
    black = torch.tensor([-9.0]).view(1, 1, 1)
    assert torch.equal(shifted(x, 0, border, black, torch.Generator()), x)
    moved = shifted(x, 1, border, black, torch.Generator().manual_seed(0))
    seen = set()
    for image, original in zip(moved, x, strict=True):
        padded = torch.nn.functional.pad(original[None], [1] * 4, **padding)[0]
        crops = [padded[:, d : d + 4, r : r + 4] for d in range(3) for r in range(3)]
        (found,) = [number for number, crop in enumerate(crops) if torch.equal(image, crop)]
        seen.add(found)
    assert len(seen) > 4, "in every direction"


def test_half_of_the_images_are_mirrored_whole():
    x = torch.arange(400 * 2.0).view(400, 1, 1, 2)
    out = flipped(x, torch.Generator().manual_seed(0))
    mirrored = (out[:, 0, 0, 0] > out[:, 0, 0, 1]).float()
    assert torch.equal(out.sort(3).values, x) and 0.4 < float(mirrored.mean()) < 0.6
