"""Methods: the interface, and the registry that finds them.

A method is a class in `baselines/<name>.py` (or in another package, through the entry-point group
`ptmq.methods`), decorated with @register. Its first docstring line and its settings describe it.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar

import torch
from torch import Tensor

from ptmq.bits import BitGroups, BitWidth
from ptmq.errors import InputError, one_of
from ptmq.fake_quant import keep_mask
from ptmq.layers import QuantizedLayer
from ptmq.losses import distance
from ptmq.mixer import choose
from ptmq.multibit import MultiBitModel
from ptmq.reconstruct import Checkpoint, reconstruct
from ptmq.rounding import AdaptiveRounding
from ptmq.settings import ReconstructionSettings, StepSizeSettings, from_dict

METHODS: dict[str, type["Method"]] = {}
BROKEN: dict[str, str] = {}  # modules that could not be imported, and why

Progress = Callable[[str, int, float], None]


class Method(ABC):
    """A way to make a multi-bit model out of a trained network.

    widths: what the model shall be able to take · groups: the same widths split into low, medium and high,
    for the methods that need it (None otherwise).
    """

    name: ClassVar[str]
    Settings: ClassVar[type] = StepSizeSettings
    per_width: ClassVar[bool] = False  # True: one calibration for every width

    def __init__(self, settings: dict[str, Any], widths: Sequence[BitWidth], groups: BitGroups | None = None):
        self.settings = from_dict(self.Settings, settings, self.name)
        self.widths, self.groups = tuple(widths), groups
        if self.per_width and len(self.widths) != 1:
            raise InputError(
                f"{self.name} calibrates one width at a time. Got {', '.join(map(str, self.widths))}. "
                "Set per_width: true for it in the profile, or give one width."
            )

    @abstractmethod
    def calibrate(
        self, model: MultiBitModel, images: Tensor, seed: int, checkpoint: Checkpoint | None, progress: Progress
    ) -> list[dict[str, Any]]:
        """Calibrate `model`, in place, on (count, ...) images; returns a record a unit, see `reconstruct`."""


class Reconstruction(Method):
    """A method that learns rounding with the engine; the defaults are QDrop's, subclasses say what differs."""

    Settings = ReconstructionSettings

    def calibrate(self, model, images, seed, checkpoint, progress):
        model.search_steps(images[: self.settings.step_size_images], self.settings.step_size_search)
        return reconstruct(model, images, self, seed, checkpoint, progress)

    def relax(self, layer: QuantizedLayer) -> torch.nn.Module:
        """Adaptive rounding, started so that the soft weight is the FP weight."""
        return AdaptiveRounding(layer.weight, layer.steps(), layer.zero_points(), self.settings.initial_v)

    def draw(self, generator: torch.Generator) -> Sequence[BitWidth]:
        """The one width."""
        return self.widths

    def mix(self, fp: Tensor, quantized: Sequence[Tensor], generator: torch.Generator) -> Sequence[Tensor]:
        """FP and quantized features mixed element-wise, each width with its own (QDrop)."""
        if self.settings.keep == 1:
            return quantized
        mask = keep_mask(fp, self.settings.keep, generator)
        return [choose(mask, feature, fp) for feature in quantized]

    def loss(self, target: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """Sum over the widths of the squared error to the FP output."""
        return sum(distance(output, target) for output in outputs)


def register(cls: type[Method]) -> type[Method]:
    """Class decorator: make a method known under its `name`."""
    METHODS[cls.name] = cls
    return cls


@cache
def discover() -> dict[str, type[Method]]:
    """Import PTMQ, every module of `baselines`, and the entry points; a broken one does not stop the others.

    Done once a process.
    """
    import baselines

    modules = ["ptmq.ptmq", *(f"baselines.{m.name}" for m in pkgutil.iter_modules(baselines.__path__))]
    loaders = {name: lambda name=name: importlib.import_module(name) for name in modules}
    loaders |= {f"{point.name} ({point.value})": point.load for point in entry_points(group="ptmq.methods")}
    for name, load in loaders.items():
        try:
            load()
        except Exception as error:  # whatever a plug-in raises: told when its method is asked for
            BROKEN[name] = f"{type(error).__name__}: {error}"
    return METHODS


def create(name: str, settings: dict[str, Any], widths: Sequence[BitWidth], groups: BitGroups | None = None) -> Method:
    """The method `name` with its settings. Raises InputError for an unknown name or bad settings."""
    known = discover()
    if name not in known and BROKEN:
        broken = "; ".join(f"{module}: {why}" for module, why in BROKEN.items())
        raise InputError(f"method {name!r} is unknown, and these modules could not be imported: {broken}.")
    return known[one_of("method", name, known)](settings, widths, groups)
