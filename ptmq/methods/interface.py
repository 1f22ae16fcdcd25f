"""Methods: the interface, and the registry that finds them.

A method is a class in `baselines/<name>.py` (or in another package, through the entry-point group
`ptmq.methods`), decorated with @register. Its first docstring line and its settings describe it.
"""

import importlib
import math
import pkgutil
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ptmq.common.bits import FP, BitGroups, BitWidth
from ptmq.common.errors import InputError, one_of
from ptmq.common.progress import Bar
from ptmq.common.settings import AdaptiveRoundingSettings, ReconstructionSettings, StepSizeSettings, from_dict
from ptmq.data.datasets import Images
from ptmq.network.layers import QuantizedLayer
from ptmq.network.model import MultiBitModel
from ptmq.quantization.rounding import AdaptiveRounding
from ptmq.reconstruction.engine import Checkpoint, count_steps, reconstruct
from ptmq.reconstruction.phase import Phase, StepSizes

METHODS: dict[str, type["Method"]] = {}
BROKEN: dict[str, str] = {}  # modules that could not be imported, and why

Progress = Callable[[str, int, float], None]


@dataclass(frozen=True)
class Task:
    """What a method is given: a trained network, training images, and where an interrupted run left off.

    blocks: names of the network's reconstruction blocks · images: the training images with labels · index: which of
    them calibrate · title: of the progress bar.
    """

    network: nn.Module
    blocks: Sequence[str]
    images: Images
    index: Tensor
    seed: int
    device: torch.device
    checkpoint: Checkpoint
    title: str

    def calibration(self) -> Tensor:
        """The calibration images, without their labels, (count, ...), on the device."""
        return self.images.batch(self.index)[0].to(self.device)


class Method:
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

    def build(self, network: nn.Module, blocks: Sequence[str]) -> nn.Module:
        """The multi-bit model of a network, with nothing calibrated: what a calibrated model is loaded into."""
        return MultiBitModel(network, blocks, self.widths, self.settings.edge_bits, self.settings.quantize_softmax)

    def fit(self, task: Task) -> tuple[nn.Module, dict[str, Any]]:
        """The calibrated model, and what its record says of the calibration: `units`, see `reconstruct`."""
        model = self.build(task.network, task.blocks).to(task.device).eval()
        with Bar(task.title, self.count_steps(model)) as bar:
            units = self.calibrate(model, task.calibration(), task.seed, task.checkpoint, bar.advance)
        return model, {"units": units}

    def calibrate(
        self, model: MultiBitModel, images: Tensor, seed: int, checkpoint: Checkpoint | None, progress: Progress
    ) -> list[dict[str, Any]]:
        """Calibrate `model`, in place, on (count, ...) images; returns a record a unit, see `reconstruct`.

        Here nothing is learned: step sizes are searched, and weights and activations rounded to the nearest code.
        """
        model.search_steps(images[: self.settings.step_size_images], self.settings.step_size_search)
        return []

    def count_steps(self, model: MultiBitModel) -> int:
        """How many steps `calibrate` reports to `progress`."""
        return 0


class Reconstruction(Phase, Method):
    """A method that learns with the engine; the hooks of Phase say how, subclasses say what differs."""

    Settings = ReconstructionSettings

    def phases(self) -> Sequence[Phase]:
        """The passes over the network, one after the other; here one, which learns everything together."""
        return [self]

    def count_steps(self, model):
        return count_steps(model, self.phases())

    def calibrate(self, model, images, seed, checkpoint, progress):
        super().calibrate(model, images, seed, checkpoint, progress)
        images = images.cpu() if self.settings.features_in_main_memory else images
        return reconstruct(model, images, self.phases(), seed, checkpoint, progress)

    def weights_alone(self) -> Phase:
        """This method with FP activations, at its one width."""
        (width,) = self.widths
        phase = copy(self)
        phase.widths = (BitWidth(width.weight, FP),)
        return phase

    def weights_then_step_sizes(self, activation_steps: int) -> Sequence[Phase]:
        """BRECQ's two passes: weights under FP activations, then activation step sizes, where there are any.

        activation_steps: of the second pass, a unit; 0 for a quarter of the first. The method's hooks are for the
        first; the second is `StepSizes`.
        """
        phases = [self.weights_alone()]
        if self.widths[0].activation != FP:
            steps = activation_steps or math.ceil(self.settings.steps / 4)
            phases.append(StepSizes(replace(self.settings, steps=steps), self.widths))
        return phases


class AdaptiveReconstruction(Reconstruction):
    """A reconstruction that learns for every weight whether it is rounded down or up."""

    Settings = AdaptiveRoundingSettings

    def relax(self, layer: QuantizedLayer) -> AdaptiveRounding:
        """Adaptive rounding, started so that the soft weight is the FP weight."""
        return AdaptiveRounding(layer.weight, layer.steps(), layer.zero_points(), self.settings.initial_v)

    def regularizer(self, relaxations: Sequence[AdaptiveRounding], step: int) -> Tensor | float:
        """λ_r times the pull of every V towards 0 or 1, after the warm-up."""
        beta = self.settings.beta_at(step)
        return 0.0 if beta is None else self.settings.regularizer * sum(r.regularizer(beta) for r in relaxations)


def register(cls: type[Method]) -> type[Method]:
    """Class decorator: make a method known under its `name`. Raises InputError where another class has it."""
    other = METHODS.get(cls.name, cls)
    if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise InputError(f"method {cls.name!r} is registered already, by {other.__module__}. Give yours another name.")
    METHODS[cls.name] = cls
    return cls


@cache
def discover() -> dict[str, type[Method]]:
    """Import PTMQ, every module of `baselines`, and the entry points; a broken one does not stop the others.

    Done once a process.
    """
    import baselines

    modules = ["ptmq.methods.ptmq", *(f"baselines.{m.name}" for m in pkgutil.iter_modules(baselines.__path__))]
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
    try:
        one_of("method", name, known)
    except InputError as error:
        raise InputError(f"{error} A method is a class with that name, decorated with @register.") from None
    return known[name](settings, widths, groups)
