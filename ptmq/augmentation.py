"""What training does to its images at random: the field's shifts and mirror images."""

import torch
from torch import Tensor


def shifted(images: Tensor, pixels: int, black: Tensor, generator: torch.Generator) -> Tensor:
    """Every image (batch, channels, h, w) shifted at random by up to `pixels` each way.

    black: what comes in at the border, (channels, 1, 1), as in the crops of padded images that networks are
    trained on: their BatchNorm statistics hold those borders.
    """
    if not pixels:
        return images
    n, channels, h, w = images.shape
    padded = black.expand(n, channels, h + 2 * pixels, w + 2 * pixels).clone()
    padded[:, :, pixels:-pixels, pixels:-pixels] = images
    down, right = torch.randint(2 * pixels + 1, (2, n), generator=generator)
    return torch.stack([x[:, d : d + h, r : r + w] for x, d, r in zip(padded, down, right, strict=True)])


def flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image (batch, channels, h, w) mirrored with probability 1/2."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


def augment(images: Tensor, shift: int, flip: bool, black: Tensor, generator: torch.Generator) -> Tensor:
    """Normalised images (batch, channels, h, w), shifted by up to `shift` pixels and mirrored where `flip`."""
    images = shifted(images, shift, black, generator)
    return flipped(images, generator) if flip else images
