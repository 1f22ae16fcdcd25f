"""Training of the small floating-point networks that have no public checkpoint."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmq.backbones import Training
from ptmq.datasets import Images
from ptmq.errors import require


def learning_rate(step: int, steps: int, training: Training) -> float:
    """Linear warm-up, then a cosine to 0; `step` counts from 0."""
    warm = int(training.warmup * steps)
    if step < warm:
        return training.lr * (step + 1) / warm
    return training.lr * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2


def shifted(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Every image (batch, channels, h, w) shifted at random by up to `pixels` each way, edges repeated."""
    if not pixels:
        return images
    padded = F.pad(images, [pixels] * 4, mode="replicate")
    down, right = torch.randint(2 * pixels + 1, (2, len(images)), generator=generator)
    h, w = images.shape[2:]
    return torch.stack([x[:, d : d + h, r : r + w] for x, d, r in zip(padded, down, right, strict=True)])


def train(
    network: nn.Module,
    images: Images,
    training: Training,
    seed: int,
    device: torch.device,
    progress: Callable[[int, float], None] = lambda epoch, loss: None,
) -> nn.Module:
    """Train `network` from fresh weights drawn from `seed`, on `device`; returns it in inference mode."""
    require(training.batch_size <= len(images), "batch_size", f"at most the {len(images)} images", training.batch_size)
    generator = torch.Generator().manual_seed(seed)
    network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=training.lr, weight_decay=training.weight_decay)
    per_epoch = len(images) // training.batch_size
    steps, step = training.epochs * per_epoch, 0
    for epoch in range(training.epochs):
        order = torch.randperm(len(images), generator=generator)
        total = 0.0
        for index in order[: per_epoch * training.batch_size].split(training.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, training)
            x, y = images.batch(index)
            x = shifted(x, training.shift, generator)
            loss = F.cross_entropy(network(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, step = total + float(loss.detach()), step + 1
        progress(epoch + 1, total / per_epoch)
    return network.eval()
