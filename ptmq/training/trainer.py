"""One trainer: of the floating-point networks without a checkpoint, and of the methods that need labels.

Everything that is drawn comes from one generator, or for dropout from a seed of the epoch. After every epoch a
checkpoint holds all that the next one depends on, so that a run that was interrupted ends where an uninterrupted one
does.
"""

import io
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmq.common.device import memory_format
from ptmq.common.errors import InputError, require
from ptmq.common.files import atomic
from ptmq.data.images import Images
from ptmq.models.backbone import Training
from ptmq.training.augmentation import augment

# (network, images, labels, generator) -> losses, each propagated back when it is made, before the next
Losses = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Iterable[Tensor]]
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": lambda parameters, lr, weight_decay: torch.optim.SGD(
        parameters, lr=lr, weight_decay=weight_decay, momentum=0.9
    ),
}


EPOCHS_APART = 100_003  # between the seeds of two trainings


def cross_entropy(network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Iterable[Tensor]:
    """The loss of a network that is not quantized."""
    yield F.cross_entropy(network(x), y)


def learning_rate(step: int, steps: int, training: Training) -> float:
    """Linear warm-up, then a cosine to 0 or steps down; `step` counts from 0."""
    warm = int(training.warmup * steps)
    if step < warm:
        return training.lr * (step + 1) / warm
    if training.decay == "step":
        return training.lr * 0.1 ** sum(step >= share * steps for share in training.drops)
    return training.lr * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2


class State:
    """What training goes through from epoch to epoch, and the file that keeps it.

    seconds: spent so far, those before an interruption included · curve: mean loss of every epoch.
    """

    def __init__(
        self, network: nn.Module, training: Training, seed: int, path: Path | None, rates: dict[nn.Parameter, float]
    ):
        self.network, self.path = network, path
        self.generator = torch.Generator().manual_seed(seed)
        groups: dict[float, list[nn.Parameter]] = {}
        for parameter in network.parameters():
            groups.setdefault(rates.get(parameter, 1.0), []).append(parameter)
        self.optimizer = OPTIMIZERS[training.optimizer](
            [{"params": parameters, "rate": rate} for rate, parameters in groups.items()],
            lr=training.lr,
            weight_decay=training.weight_decay,
        )
        self.curve: list[float] = []
        self.earlier, self.started = 0.0, time.perf_counter()
        if path is not None and path.exists():
            saved = torch.load(path, weights_only=True, map_location="cpu")
            network.load_state_dict(saved["network"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.generator.set_state(saved["generator"])
            self.curve, self.earlier = saved["curve"], saved["seconds"]

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self.earlier + time.perf_counter() - self.started

    def save(self) -> None:
        """Write the checkpoint, atomically."""
        if self.path is None:
            return
        content = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "curve": self.curve,
            "seconds": self.seconds,
        }
        buffer = io.BytesIO()  # so that a full disk is an OSError, as everywhere
        torch.save(content, buffer)
        with atomic(self.path) as part:
            part.write_bytes(buffer.getbuffer())


def train(
    network: nn.Module,
    images: Images,
    training: Training,
    seed: int,
    device: torch.device,
    progress: Callable[[int, float], None] = lambda epoch, loss: None,
    losses: Losses = cross_entropy,
    checkpoint: Path | None = None,
    rates: dict[nn.Parameter, float] | None = None,
    autocast: bool = False,
) -> State:
    """Train `network` in place, on `device`; it ends in inference mode.

    checkpoint: written after every epoch; a later call continues from it · progress: called with the number of the
    epoch that is done and its mean loss · rates: factors on the learning rate of some parameters · autocast: learns in
    bfloat16, on a CPU, too; on a GPU the schedule may ask for it.
    """
    require(training.batch_size <= len(images), "batch_size", f"at most the {len(images)} images", training.batch_size)
    network.to(device)
    state = State(network, training, seed, checkpoint, rates or {})
    autocast = autocast or (training.amp and device.type == "cuda")
    per_epoch = len(images) // training.batch_size
    steps = training.epochs * per_epoch
    for epoch in range(len(state.curve), training.epochs):
        network.train()
        order = torch.randperm(len(images), generator=state.generator)
        total = torch.zeros((), device=device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed * EPOCHS_APART + epoch)  # dropout knows no other generator
            for number, index in enumerate(order[: per_epoch * training.batch_size].split(training.batch_size)):
                for group in state.optimizer.param_groups:
                    group["lr"] = group["rate"] * learning_rate(epoch * per_epoch + number, steps, training)
                x, y = images.batch(index)
                x = augment(x, training.shift, training.flip, training.border, images.black, state.generator)
                x = x.contiguous(memory_format=memory_format(x))
                total += _update(network, state, losses, x.to(device), y.to(device), autocast)
        state.curve.append(float(total) / per_epoch)
        if not math.isfinite(state.curve[-1]):
            raise InputError(
                f"training: the loss of epoch {epoch + 1} is {state.curve[-1]}. Check the weights and the images for "
                f"NaN, or lower lr ({training.lr})."
            )
        state.save()
        progress(epoch + 1, state.curve[-1])
    network.eval()
    return state


def _update(network: nn.Module, state: State, losses: Losses, x: Tensor, y: Tensor, autocast: bool) -> Tensor:
    """One step of the optimizer on one batch; returns the sum of the losses, a scalar."""
    state.optimizer.zero_grad()
    total = torch.zeros((), device=x.device)
    parts = iter(losses(network, x, y, state.generator))
    while True:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            loss = next(parts, None)
        if loss is None:
            break
        loss.backward()
        total += loss.detach()
    state.optimizer.step()
    return total
