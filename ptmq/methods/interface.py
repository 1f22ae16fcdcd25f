"""Methods: the interface, and the registry that finds them.

A method is a class in `baselines/<name>.py` (or in another package, through the entry-point group
`ptmq.methods`), decorated with @register. Its first docstring line and its settings describe it.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ptmq.common.bits import BitGroups, BitWidth
from ptmq.common.errors import InputError, one_of
from ptmq.common.progress import Bar
from ptmq.common.settings import from_dict
from ptmq.data.images import Images
from ptmq.network.model import MultiBitModel, Switchable
from ptmq.network.place import QuantizationSpec
from ptmq.reconstruction.engine import Progress, ResumeFile, silent
from ptmq.reconstruction.matching import match_network
from ptmq.reconstruction.settings import CorrectionSettings, Execution, StepSizeSettings

EXAMPLE = 3  # images that a network is followed by
METHODS: dict[str, type["Method"]] = {}
BROKEN: dict[str, str] = {}  # modules that could not be imported, and why
OWN = ("ptmq.methods.ptmq", "ptmq.methods.nested")  # modules of methods that are no baselines


@dataclass(frozen=True)
class Task:
    """What a method is given: a trained network, training images, and where an interrupted run left off.

    blocks: names of the network's reconstruction blocks, None: they are found · images: the training images with
    labels · index: which of them calibrate · title: of the progress bar, '' for none · conversion: more fields of the
    `QuantizationSpec`, such as keep_fp.
    """

    network: nn.Module
    blocks: Sequence[str] | None
    images: Images
    index: Tensor
    seed: int
    device: torch.device
    resume: ResumeFile
    title: str
    execution: Execution = field(default_factory=Execution)
    conversion: Mapping[str, Any] = field(default_factory=dict)

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
    target: ClassVar[str] = "none"  # what its models are to run on where nobody says; read as text, too
    style: ClassVar[tuple[Any, ...]] = ()  # in figures: label, colour, marker, line; read as text, so a plain literal
    settings: Any

    def __init__(self, settings: dict[str, Any], widths: Sequence[BitWidth], groups: BitGroups | None = None):
        self.settings = from_dict(self.Settings, settings, self.name)
        self.widths, self.groups = tuple(widths), groups
        if self.per_width and len(self.widths) != 1:
            raise InputError(
                f"{self.name} calibrates one width at a time. Got {', '.join(map(str, self.widths))}. "
                "Set per_width: true for it in the profile, or give one width."
            )

    def spec(self, blocks: Sequence[str] | None, **conversion: Any) -> QuantizationSpec:
        """How a network with these blocks is quantized; conversion: more fields of that, the target among them."""
        settings = self.settings
        correction = settings.correction if isinstance(settings, CorrectionSettings) else "none"
        edges = settings.edge_bits, settings.quantize_softmax
        own = {"correction": correction, "target": self.target}
        return QuantizationSpec(blocks, self.widths, *edges, **{**own, **conversion})

    def build(
        self, network: nn.Module, blocks: Sequence[str] | None, example: Tensor | None = None, **conversion: Any
    ) -> Switchable:
        """The multi-bit model of a network, with nothing calibrated: what a calibrated model is loaded into.

        example: a few images, by which the network is followed · conversion: as for `spec`.
        """
        return MultiBitModel(network, self.spec(blocks, **conversion), example)

    def built(self, task: Task) -> Switchable:
        """The model of a task, with nothing calibrated."""
        return self.build(task.network, task.blocks, task.images.batch(task.index[:EXAMPLE])[0], **task.conversion)

    def fit(self, task: Task) -> tuple[Switchable, dict[str, Any]]:
        """The calibrated model, and what its record says of the calibration: `units`, see `reconstruct`."""
        model = self.built(task).to(task.device).eval()
        with Bar(task.title, self.count_iterations(model)) as bar:
            units = self.calibrate(model, task.calibration(), task.seed, task.execution, task.resume, bar.advance)
        return model, {"units": units}

    def calibrate(
        self,
        model: Any,
        images: Tensor,
        seed: int,
        execution: Execution = Execution(),  # noqa: B008 (frozen)
        resume: ResumeFile | None = None,
        progress: Progress = silent,
    ) -> list[dict[str, Any]]:
        """Calibrate `model`, in place, on (count, ...) images; returns a record a unit, see `reconstruct`.

        Here nothing is learned: step sizes are searched, weights and activations rounded to the nearest code, and
        layers corrected if the settings say so.
        """
        self.search_step_sizes(model, images)
        self.correct(model, images)
        return []

    def search_step_sizes(self, model: Any, images: Tensor) -> None:
        """Find all step sizes and round to nearest, as the settings say."""
        model.search_step_sizes(images[: self.settings.step_size_images], self.settings.step_size_search)

    def correct(self, model: Any, images: Tensor) -> None:
        """Match what the output of every layer is corrected by at every width, where the settings ask for it."""
        if isinstance(self.settings, CorrectionSettings) and self.settings.correction != "none":
            match_network(model, images, self.settings)

    def count_iterations(self, model: Any) -> int:
        """How many iterations `calibrate` reports to `progress`."""
        return 0


def register(cls: type[Method]) -> type[Method]:
    """Class decorator: make a method known under its `name`. Raises InputError where another class has it."""
    other = METHODS.get(cls.name, cls)
    if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise InputError(f"method {cls.name!r} is registered already, by {other.__module__}. Give yours another name.")
    METHODS[cls.name] = cls
    return cls


@cache
def discover() -> dict[str, type[Method]]:
    """Import the package's own methods, all baselines, and the entry points; a broken one does not stop the others.

    Done once a process.
    """
    baselines = importlib.import_module("baselines")  # by its name: this room stands below
    modules = [*OWN, *(f"baselines.{module.name}" for module in pkgutil.iter_modules(baselines.__path__))]
    loaders: dict[str, Any] = {name: partial(importlib.import_module, name) for name in modules}
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


def method_file(method: type[Method]) -> Path:
    """The file that defines a method: with what it imports, the code that is the method's own."""
    return Path(inspect.getfile(method)).resolve()
