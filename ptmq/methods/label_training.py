"""Methods that train with labels: what they share beside the trainer.

They are not post-training quantization. The suite has them because PTMQ is argued against them: they see every training
image with its label many times over.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ptmq.common.errors import one_of, require
from ptmq.common.progress import Bar
from ptmq.methods.interface import Method, Task
from ptmq.models.backbone import Training
from ptmq.reconstruction.settings import StepSizeSettings
from ptmq.training import trainer

LENGTHS = ("short", "paper")
# of the methods that train for all widths at once; the longer one is of Any-Precision's released code for CIFAR-10
_ADAM = Training(epochs=10, batch_size=128, optimizer="adam", lr=1e-3, weight_decay=0.0, warmup=0.0, amp=True)
SCHEDULES_FOR_ALL_WIDTHS = {"short": _ADAM, "paper": replace(_ADAM, epochs=200, decay="step", drops=(0.5, 0.75, 0.9))}


@dataclass(frozen=True)
class TrainedSettings:
    """How long a method trains: `short` fine-tunes a trained network on a CPU, `paper` is as far as known its own."""

    schedule: str = "short"
    epochs: int = 0  # 0: the schedule's
    lr: float = 0.0  # 0: the schedule's

    def __post_init__(self) -> None:
        one_of("schedule", self.schedule, LENGTHS)
        for name in ("epochs", "lr"):
            require(getattr(self, name) >= 0, name, "0 (the schedule's) or more", getattr(self, name))


@dataclass(frozen=True)
class TrainedStepSizeSettings(TrainedSettings, StepSizeSettings):
    """Of a method that searches step sizes, too."""

    def __post_init__(self) -> None:
        TrainedSettings.__post_init__(self)
        StepSizeSettings.__post_init__(self)


class TrainedMethod(Method):
    """A method that trains with labels.

    schedules: `short` and `paper`, without what the images ask for (how they are shifted and flipped).
    """

    Settings: ClassVar[type] = TrainedSettings
    schedules: ClassVar[dict[str, Training]]

    def losses(self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Iterable[Tensor]:
        """The losses of one batch, see `ptmq.training.trainer`."""
        raise NotImplementedError

    def rates(self, model: nn.Module) -> dict[nn.Parameter, float]:
        """Factors on the learning rate of some parameters."""
        return {}

    def training(self, task: Task) -> Training:
        """The schedule that the settings ask for, with the augmentation of the images."""
        chosen = {name: getattr(self.settings, name) for name in ("epochs", "lr") if getattr(self.settings, name)}
        return replace(self.schedules[self.settings.schedule], **task.images.augmentation, **chosen)

    def train(self, trainee: nn.Module, task: Task) -> dict[str, Any]:
        """Train the network or the model `trainee`, in place; returns what its record says of that."""
        schedule = self.training(task)
        with Bar(task.title, schedule.epochs, "epoch") as bar:
            state = trainer.train(
                trainee,
                task.images,
                schedule,
                task.seed,
                task.device,
                lambda epoch, loss: bar.advance(f"epoch {epoch}", 1, loss),
                self.losses,
                task.resume.path and task.resume.path.with_suffix(".pt"),
                self.rates(trainee),
                task.execution.autocast,
            )
        task.resume.earlier += state.earlier
        iterations = schedule.epochs * (len(task.images) // schedule.batch_size)
        return {
            "units": [],
            "protocol": asdict(schedule),
            "training": {"loss": state.curve, "iterations": iterations},
            "cost": {"images": len(task.images), "labels": len(task.images), "epochs": schedule.epochs},
        }


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy against probabilities, mean over the batch; both (batch, classes)."""
    return -(target * logits.log_softmax(1)).sum(1).mean()
