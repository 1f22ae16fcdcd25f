"""Backbones: what can be quantized, one registry entry each. Importing this file does not import torch.

An entry names the code that builds the network, its reconstruction blocks, how its images are preprocessed,
and its public checkpoint (or how it is trained here).
"""

import importlib
from dataclasses import dataclass, field
from typing import Any

from ptmq.errors import one_of, require


@dataclass(frozen=True)
class Checkpoint:
    """A public weight file: where it comes from, its SHA-256, how its keys become the network's."""

    file: str
    url: str
    sha256: str
    source: str  # who published it, under which licence
    entry: str | None = None  # the key under which the file keeps the state dict
    rename: tuple[tuple[str, str], ...] = ()  # prefix in the file -> prefix in the network


@dataclass(frozen=True)
class Training:
    """How a backbone without a checkpoint is trained: AdamW, one-cycle cosine with a linear warm-up."""

    epochs: int = 30
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.05
    warmup: float = 0.1  # share of the steps
    shift: int = 1  # random shift of the images, in pixels

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("lr", "weight_decay", "shift"):
            require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        require(0 <= self.warmup < 1, "warmup", "in [0, 1)", self.warmup)


@dataclass(frozen=True)
class Preprocessing:
    """How a checkpoint wants its photographs: the shorter side resized, the centre cropped, in pixels."""

    size: int = 224
    resize: int = 256
    interpolation: str = "bilinear"


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

    def network(self):
        """A new network with random weights."""
        module, function = self.build.split(":")
        return getattr(importlib.import_module(module), function)(**self.options)


CIFAR_STAGES = ("layer1.*", "layer2.*", "layer3.*")
CIFAR_RESNET = "ptmq.models.cifar_resnet:CifarResNet"


def _option_a(depth: int, digest: str) -> Backbone:
    """A CIFAR-10 ResNet with parameter-free shortcuts and the public weights of Yerlan Idelbayev."""
    file = f"resnet{depth}-{digest[:8]}.th"
    return Backbone(
        CIFAR_RESNET,
        "cifar10",
        CIFAR_STAGES,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        options={"depth": depth},
        checkpoint=Checkpoint(
            file,
            f"https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/{file}",
            digest,
            "akamaster/pytorch_resnet_cifar10, BSD-2-Clause",
            entry="state_dict",
            rename=(("module.linear.", "fc."), ("module.", "")),
        ),
    )


def _option_b(depth: int, digest: str) -> Backbone:
    """A CIFAR-10 ResNet with 1x1-convolution shortcuts and the public weights of Yaofo Chen."""
    file = f"cifar10_resnet{depth}-{digest[:8]}.pt"
    return Backbone(
        CIFAR_RESNET,
        "cifar10",
        CIFAR_STAGES,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        options={"depth": depth, "projection": True},
        checkpoint=Checkpoint(
            file,
            f"https://github.com/chenyaofo/pytorch-cifar-models/releases/download/resnet/{file}",
            digest,
            "chenyaofo/pytorch-cifar-models, BSD-3-Clause",
        ),
    )


BACKBONES: dict[str, Backbone] = {
    "resnet20": _option_a(20, "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8"),
    "resnet56": _option_a(56, "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367"),
    "resnet20_1x1": _option_b(20, "4118986f0df73003d572b0e397f0ac7b3f60af1f31aff3d2da164536e36f6ec8"),
    "resnet56_1x1": _option_b(56, "187c023aee0c9cf3093a682d9447a538cbaf5489f7ae78a7df4edf2246ce380b"),
    "digits_resnet": Backbone(
        CIFAR_RESNET,
        "digits",
        CIFAR_STAGES,
        mean=(0.305,),
        std=(0.376,),
        options={"depth": 14, "channels": 1},
        training=Training(),
    ),
    "digits_vit": Backbone(
        "ptmq.models.digits_vit:digits_vit",
        "digits",
        ("blocks.*",),
        mean=(0.305,),
        std=(0.376,),
        training=Training(epochs=60, shift=0),
    ),
}


def get_backbone(name: str) -> Backbone:
    """The registry entry `name`. Raises InputError for an unknown name."""
    return BACKBONES[one_of("backbone", name, BACKBONES)]
