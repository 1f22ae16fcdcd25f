"""What training does to its images at random: the field's shifts and mirror images."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ptmq.data.images import Images


def shifted(images: Tensor, pixels: int, border: str, black: Tensor, generator: torch.Generator) -> Tensor:
    """Every image (batch, channels, h, w) shifted at random by up to `pixels` each way.

    border: what comes in, `black`, a pixel of (channels, 1, 1), or the image's `edge` again. BatchNorm statistics are
    of what a network was trained on: crops of padded small images have black borders, those of photographs none.
    """
    if not pixels:
        return images
    padded = F.pad(images, [pixels] * 4, mode="replicate")
    if border == "black":
        padded.copy_(black)
        padded[:, :, pixels:-pixels, pixels:-pixels] = images
    down, right = torch.randint(2 * pixels + 1, (2, len(images)), generator=generator)
    h, w = images.shape[2:]
    return torch.stack([x[:, d : d + h, r : r + w] for x, d, r in zip(padded, down, right, strict=True)])


def flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image (batch, channels, h, w) mirrored with probability 1/2."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


def augment(images: Tensor, shift: int, flip: bool, border: str, black: Tensor, generator: torch.Generator) -> Tensor:
    """Normalised images (batch, channels, h, w), shifted by up to `shift` pixels and mirrored where `flip`."""
    images = shifted(images, shift, border, black, generator)
    return flipped(images, generator) if flip else images


def augmented(images: Images, index: Tensor, generator: torch.Generator) -> Tensor:
    """Normalised images (len(index), channels, height, width) as training sees them."""
    return augment(images.batch(index)[0], **images.augmentation, black=images.black, generator=generator)
