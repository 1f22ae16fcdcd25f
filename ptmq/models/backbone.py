"""A backbone: what can be quantized, and how its registry entry is found. Importing this file does not import torch."""

import importlib
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from ptmq.common.errors import one_of, require

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Checkpoint:
    """A public weight file: where it comes from, how it is known, how its keys become the network's.

    A file is known by its SHA-256 (or the beginning that its name gives), or by that of its tensors, which is the same
    in whatever container they are published. `url` is None where a file has to be brought.
    """

    file: str
    url: str | None
    sha256: str
    source: str  # who published it, under which licence
    entry: str | None = None  # the key under which the file keeps the state dict
    rename: tuple[tuple[str, str], ...] = ()  # prefix in the file -> prefix in the network
    tensors_sha256: str = ""


OPTIMIZERS, DECAYS, BORDERS = ("adamw", "adam", "sgd"), ("cosine", "step"), ("black", "edge")


@dataclass(frozen=True)
class Training:
    """How a network is trained; as it stands, how a backbone without a checkpoint is."""

    epochs: int = 30
    batch_size: int = 64
    optimizer: str = "adamw"  # or adam, or sgd with a momentum of 0.9
    lr: float = 3e-3
    decay: str = "cosine"  # to 0, or step: to a tenth after each of `drops`
    drops: tuple[float, ...] = ()  # shares of the training
    weight_decay: float = 0.05
    warmup: float = 0.1  # share of the steps, linear
    shift: int = 1  # random shift of the images, in pixels
    border: str = "black"  # what comes in there: black, or the edge again
    flip: bool = False  # every other image mirrored, at random
    amp: bool = False  # bfloat16 where a GPU computes

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("lr", "weight_decay", "shift"):
            require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        one_of("decay", self.decay, DECAYS)
        one_of("border", self.border, BORDERS)
        require(all(0 < share < 1 for share in self.drops), "drops", "shares between 0 and 1", self.drops)
        require(0 <= self.warmup < 1, "warmup", "in [0, 1)", self.warmup)


@dataclass(frozen=True)
class Preprocessing:
    """How a checkpoint wants its photographs: the shorter side resized, the centre cropped, in pixels."""

    size: int = 224
    resize: int = 256
    interpolation: str = "bilinear"


CNN_GROUPS = {"low": ["W3A3", "W4A4"], "medium": ["W5A5", "W6A6"], "high": ["W7A7", "W8A8"]}
MOBILENET_GROUPS = {"low": ["W4A4"], "medium": ["W5A5", "W6A6"], "high": ["W7A7", "W8A8"]}
VIT_GROUPS = {"low": ["W4A6", "W5A6"], "medium": ["W6A6"], "high": ["W7A7", "W8A8"]}


@dataclass(frozen=True)
class Backbone:
    """One network of the suite."""

    build: str  # "module:function"
    dataset: str
    blocks: tuple[str, ...]  # module names of the reconstruction blocks, with wildcards
    mean: tuple[float, ...]  # per channel, of images scaled to 0..1
    std: tuple[float, ...]
    options: dict[str, Any] = field(default_factory=dict)  # arguments of `build`
    checkpoint: Checkpoint | None = None
    training: Training | None = None
    preprocessing: Preprocessing | None = None  # of datasets that are files
    groups: dict[str, list[str]] = field(default_factory=lambda: CNN_GROUPS)  # where a profile names none
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)  # by method, where a profile says nothing else

    def network(self) -> "nn.Module":
        """A new network with random weights."""
        module, function = self.build.split(":")
        return getattr(importlib.import_module(module), function)(**self.options)


@cache
def backbones() -> dict[str, Backbone]:
    """The registry, by name.

    It is data: found by its name, so that a new entry is no change of the code that results depend on.
    """
    return importlib.import_module("ptmq.models.zoo").BACKBONES


def get_backbone(name: str) -> Backbone:
    """The registry entry `name`. Raises InputError for an unknown name."""
    return backbones()[one_of("backbone", name, backbones())]
