"""A backbone: what can be quantized, and how its registry entry is found. Importing this file does not import torch."""

import importlib
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from ptmq.common.errors import InputError, one_of, require

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Checkpoint:
    """A public weight file: where it comes from, how it is known, how its keys become the network's.

    A file is known by its SHA-256 (or the beginning that its name gives), or by that of its tensors, which is the same
    in whatever container they are published. It comes from its `url`, or out of a `package` of the Python index; with
    neither it has to be brought.
    """

    file: str
    url: str | None
    sha256: str
    source: str  # who published it, under which licence
    entry: str | None = None  # the key under which the file keeps the state dict
    rename: tuple[tuple[str, str], ...] = ()  # prefix in the file -> prefix in the network
    tensors_sha256: str = ""
    package: str = ""  # name==version
    member: str = ""  # the file's path in that package


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
    squash: bool = False  # both sides are resized, whatever the shape


CNN_GROUPS = {"low": ["W3A3", "W4A4"], "medium": ["W5A5", "W6A6"], "high": ["W7A7", "W8A8"]}
MOBILENET_GROUPS = {"low": ["W4A4"], "medium": ["W5A5", "W6A6"], "high": ["W7A7", "W8A8"]}
VIT_GROUPS = {"low": ["W4A6", "W5A6"], "medium": ["W6A6"], "high": ["W7A7", "W8A8"]}
# learned rounding wants a stronger regularizer on depthwise convolutions (BRECQ, QDrop)
DEPTHWISE = {method: {"regularizer": 0.1} for method in ("adaround", "brecq", "qdrop", "ptmq")}
Kind = TypeVar("Kind")


def named(reference: str) -> Any:
    """What a "module:name" refers to."""
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)


def loaded(point: EntryPoint, kind: type[Kind]) -> Kind:
    """What an entry point of another package names. Raises InputError where it cannot be imported, or is no `kind`."""
    where = f"{point.group} {point.name!r} ({point.value})"
    try:
        found = point.load()
    except Exception as error:  # whatever a plug-in raises
        raise InputError(f"{where} could not be imported: {type(error).__name__}: {error}.") from error
    if not isinstance(found, kind):
        raise InputError(f"{where} must be a {kind.__name__}. Got a {type(found).__name__}.")
    return found


@dataclass(frozen=True)
class Backbone:
    """One network of the suite."""

    build: str  # "module:function"
    dataset: str
    blocks: tuple[str, ...] | None  # names of the reconstruction blocks, with wildcards; None: they are found
    mean: tuple[float, ...]  # per channel, of images scaled to 0..1
    std: tuple[float, ...]
    options: dict[str, Any] = field(default_factory=dict)  # arguments of `build`
    checkpoint: Checkpoint | None = None
    training: Training | None = None
    preprocessing: Preprocessing | None = None  # of datasets that are files
    groups: dict[str, list[str]] = field(default_factory=lambda: CNN_GROUPS)  # where a profile names none
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)  # by method, where a profile says nothing else
    facts: str = ""  # "module:function" (**options) -> fields that only a library knows, see `complete`
    adapt: str = ""  # "module:function" (published weights, **options) -> weights under the network's own names

    def network(self) -> "nn.Module":
        """A new network with random weights."""
        return named(self.build)(**self.options)

    def complete(self) -> "Backbone":
        """The entry with what only its library knows, which is imported: preprocessing, checkpoint.

        Raises InputError where the library does not know the name.
        """
        return replace(self, **named(self.facts)(**self.options), facts="") if self.facts else self


LIBRARIES = ("timm", "torchvision")
GROUP = "ptmq.backbones"  # of entry points: a backbone's name = "module:name" of a `Backbone`


@cache
def backbones() -> dict[str, Backbone]:
    """The registry, by name.

    It is data: found by its name, so that a new entry is no change of the code that results depend on.
    """
    return importlib.import_module("ptmq.models.zoo").BACKBONES


def find_backbone(name: str) -> Backbone | None:
    """The backbone `name`, without importing a library: of the registry, of a library, of another package.

    None where there is no such name; whether a library has its network is known when it is complete.
    """
    library, _, network = name.partition("/")
    if library in LIBRARIES and network:
        module = "ptmq.models.libraries:" + library
        return Backbone(
            f"{module}_model",
            "imagenet",
            blocks=None,
            mean=(),
            std=(),
            options={"name": network},
            facts=f"{module}_facts",
            adapt=f"{module}_state",
        )
    if name in backbones():
        return backbones()[name]
    point = next((point for point in entry_points(group=GROUP) if point.name == name), None)
    return loaded(point, Backbone) if point else None


def get_backbone(name: str) -> Backbone:
    """The backbone `name`, see `find_backbone`. Raises InputError for an unknown name."""
    if found := find_backbone(name):
        return found
    # Asking what other packages are installed takes longer than all else here.
    known = [*backbones(), *entry_points(group=GROUP).names, *(f"{library}/<name>" for library in LIBRARIES)]
    return backbones()[one_of("backbone", name, known)]
