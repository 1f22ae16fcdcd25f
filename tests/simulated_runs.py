"""Simulated runs whose true accuracies are known, image by image."""

import math

import numpy as np
from scipy.stats import norm

IMAGES, SEEDS, DRAWS = 10_000, 3, 1000

# Shares of the variance of what makes an image hard: for every network, for one method, for one seed; the rest is of one
# run alone. Measured with PTMQ and QDrop on ResNet-20, CIFAR-10, at W3A3 (docs/statistics.md).
SHARED, OF_METHOD, OF_SEED = 0.837, 0.024, 0.004


def runs(rng: np.random.Generator, truth: tuple[float, ...], spread: float) -> np.ndarray:
    """Which images simulated runs classify correctly, (methods, seeds, images).

    truth: the methods' true top-1 in percent, over all seeds and images · spread: of the seeds, in points.
    """

    def noise(share: float, *shape: int) -> np.ndarray:
        return np.float32(math.sqrt(share)) * rng.standard_normal((*shape, IMAGES), dtype=np.float32)

    count = len(truth)
    hard = noise(SHARED, 1, 1) + noise(OF_METHOD, count, 1) + noise(OF_SEED, 1, SEEDS)
    hard = hard + noise(1 - SHARED - OF_METHOD - OF_SEED, count, SEEDS)
    top1 = (np.array(truth)[:, None] + spread * rng.standard_normal((count, SEEDS))) / 100
    return hard < norm.ppf(top1).astype(np.float32)[..., None]
