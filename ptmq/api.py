"""The public face: calibrate any network, convert it without calibration, save the model and load it again.

The workflow and the command line take the same path: `fit` is what runs a method, `save_model` and `load_model` keep
what it made.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ptmq.common.bits import FP, BitGroups, BitWidth, read_widths
from ptmq.common.errors import InputError, require
from ptmq.common.settings import from_dict
from ptmq.data.images import PreparedImages
from ptmq.methods.interface import Method, Task, create
from ptmq.methods.label_training import TrainedMethod
from ptmq.models.backbone import DEPTHWISE, get_backbone
from ptmq.network import serialization
from ptmq.network.model import MultiBitModel, Switchable
from ptmq.network.recording.prepare import example_for
from ptmq.network.spec import QuantizationSpec, Rule
from ptmq.reconstruction.engine import ResumeFile
from ptmq.reconstruction.settings import Execution

WIDTHS = "W3A3..W8A8"
Widths = str | BitWidth | Iterable[str | BitWidth]
Groups = BitGroups | Mapping[str, Sequence[str]] | Sequence[Sequence[str | BitWidth]]
Network = nn.Module | Callable[[], nn.Module]


# ---------------------------------------------------------------- the four verbs
def calibrate(
    network: nn.Module,
    images: Tensor | Iterable[Any],
    method: str = "ptmq",
    widths: Widths | None = None,
    *,
    seed: int = 0,
    blocks: Sequence[str] | None = None,
    groups: Groups | None = None,
    strict: bool = True,
    keep_fp: Sequence[str] = (),
    rules: Mapping[str, Any] | None = None,
    target: str | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    calibration_images: int = 1024,
    resume: Path | str | None = None,
    execution: Mapping[str, bool] | None = None,
    **settings: Any,
) -> MultiBitModel:
    """A model of `network` that switches between `widths`, calibrated by `method` on `images`.

    network: any trained vision network, (batch, ...) images -> (batch, classes) logits; it stays as it is, and so does
    everything else that is given, and the global random state
    images: a tensor (count, ...), or any iterable, Dataset or DataLoader of tensors or (tensor, label) batches,
    prepared as the network wants them; the first `calibration_images` are used
    widths: a range 'W3A3..W8A8' (the default), one width 'W4A4', or a list
    groups: the widths in two to four groups, lowest first, for PTMQ; else split evenly
    blocks: names of what is reconstructed at a time, with wildcards ('layer1.*'); else they are found
    strict: refuse a network of which a weight cannot be quantized and is not named in keep_fp
    keep_fp: names of layers that stay in floating point, with wildcards · rules: what single layers get, by name with
    wildcards, see `ptmq.network.place.QuantizationSpec`
    target: `onnx` for a model that `export_onnx` shall write so that it runs as integers, `none` for one that quantizes
    less; else that of the method: `onnx` for nested, `none` for the others
    device: where to compute; else where the network is · progress: show a bar
    resume: a file that is written after every block, and continued from if the same calibration was interrupted
    execution: `compile`, `autocast`, `features_in_main_memory`, see `ptmq.reconstruction.settings.Execution`
    settings: of the method, such as iterations=500; `python -m ptmq methods` lists them

    The same arguments give the same model. Raises InputError, one sentence, for whatever is wrong with them.
    """
    if not isinstance(network, nn.Module):
        raise InputError(f"network must be a torch.nn.Module. Got a {type(network).__name__}.")
    made = method_for(network, method, settings, widths, groups)
    if isinstance(made, TrainedMethod):
        raise InputError(
            f"{method} trains with labels on all training images, not on a few without. Run it in the workflow, on a "
            "registered dataset; or take a method that calibrates, such as ptmq."
        )
    place = device_of(network, device)
    conversion = {"strict": strict, "keep_fp": keep_fp, "rules": rules or {}}
    if target is not None:  # else the method's own
        conversion["target"] = target
    name = type(network).__name__
    with own_random_state(place, seed), torch.inference_mode(False), torch.enable_grad():
        task = Task(
            network,
            blocks,
            PreparedImages(images := gathered(images, calibration_images)),
            torch.arange(len(images)),
            seed,
            place,
            ResumeFile(Path(resume) if resume else None),
            f"{name} {method}" if progress else "",
            from_dict(Execution, dict(execution or {}), "execution"),
            conversion,
        )
        model, _ = fit(made, task, name)
    if not isinstance(model, MultiBitModel):
        raise InputError(
            f"{method} makes a model that re-estimates BatchNorm on training images at every switch. Run it in the "
            "workflow; or take a method whose models switch by themselves, such as ptmq."
        )
    used = {"method": method, "settings": asdict(made.settings), "seed": seed, "images": len(task.index)}
    model.description = {**described(model, name), "calibration": used}
    if task.resume.path:
        task.resume.path.unlink(missing_ok=True)
    return model


def convert(
    network: nn.Module,
    example: Tensor | None = None,
    widths: Widths = "W8A8",
    *,
    blocks: Sequence[str] | None = None,
    strict: bool = True,
    keep_fp: Sequence[str] = (),
    rules: Mapping[str, Any] | None = None,
    edge_bits: int = 8,
    quantize_softmax: bool = False,
    target: str = "none",
) -> MultiBitModel:
    """The switchable model of `network` with nothing calibrated: at FP (W32A32) it equals the network.

    At other widths it rounds to nearest on grids that span the range of the weights and of the example: a start, which
    `search_step_sizes` of the model betters.
    example: a few images (count, ...) as the network wants them. Other arguments are those of `calibrate`. Raises
    InputError where the network cannot be followed, where a weight is neither quantized nor named in keep_fp, or where
    the model differs from the network on the example.
    """
    place = device_of(network, None)
    spec = QuantizationSpec(
        blocks,
        read_widths(widths),
        edge_bits,
        quantize_softmax,
        strict=strict,
        keep_fp=keep_fp,
        rules=rules or {},
        target=target,
    )
    with own_random_state(place, 0), torch.inference_mode(False):
        images = example_for(network, example)
        model = MultiBitModel(network, spec, images).to(place).eval().requires_grad_(False)
        model.search_step_sizes(images.detach().to(place, torch.float32), "minmax")
        model.set_bits(FP, FP)
    model.description = described(model, type(network).__name__)
    return model


def save(model: Switchable, folder: Path | str) -> None:
    """Write a model that `calibrate` or `convert` made to `folder`: model.safetensors and model.json, no pickle."""
    if model.description is None:
        raise InputError("this model was not made by ptmq.calibrate or ptmq.convert, so it cannot be saved.")
    serialization.save_model(Path(folder), model, model.description, {})


def load(folder: Path | str, network: Network | None = None, device: torch.device | str = "cpu") -> Switchable:
    """The model of a folder, ready to switch: at every width the logits of the saved one, bit for bit.

    network: a function that builds the network that was calibrated, or the network itself, with any weights; it stays
    as it is. A registered backbone needs none.
    """
    model, _ = load_model(folder, network)
    return model.to(device)


# ---------------------------------------------------------------- what the suite calls, too
def fit(method: Method, task: Task, name: str, backbone: str | None = None) -> tuple[Any, dict[str, Any]]:
    """The model that a method makes of a task, and what its record says of the calibration.

    name: the network's, in messages · backbone: its registered name, by which the model is loaded; None without one.
    """
    with told(method, task, name):
        model, details = method.fit(task)
    model.eval().requires_grad_(False)
    model.set_bits(FP, FP)  # like a model that is loaded
    model.description = described(model, name, backbone, method)
    return model, details


def save_model(folder: Path, model: Switchable, backbone: str | None, method: Method, info: dict[str, Any]) -> None:
    """Write a model that `method` calibrated; `info` is kept in model.json beside what loading needs."""
    name = model.description["network"] if model.description else ""
    serialization.save_model(folder, model, described(model, name, backbone, method), info)


def load_model(folder: Path | str, network: Network | None = None) -> tuple[Switchable, dict[str, Any]]:
    """The calibrated model of a folder, ready to switch, and the content of its model.json.

    At every width it gives, bit for bit, the logits that the saved model gave. network: as for `load`. Raises
    InputError for missing or damaged files, and where the network is needed and not given.
    """

    def build(shape: dict[str, Any]) -> Switchable:
        with own_random_state(torch.device("cpu"), 0):  # the weights drawn here are overwritten
            fp = _network(shape["backbone"], shape["network"], network, folder)
            try:
                return _build(shape, fp)
            except InputError as error:
                raise InputError(f"model {str(folder)!r} does not fit {serialization.owner(shape)}: {error}") from None

    model, info = serialization.load_model(Path(folder), build)
    model.description = info["model"]
    return model, info


# ---------------------------------------------------------------- what a folder says of its model
def described(
    model: Switchable, name: str, backbone: str | None = None, method: Method | None = None
) -> dict[str, Any]:
    """What building the model anew needs: its network's name, and how it is converted, or by which method."""
    shape = asdict(model.spec) | {"widths": [str(width) for width in model.widths], "image_shape": model.image_shape}
    if method is not None and not isinstance(model, MultiBitModel):  # a kind of its own
        shape |= {"method": method.name, "settings": asdict(method.settings)}
    return {"backbone": backbone, "network": name, **shape}


def _build(shape: Mapping[str, Any], network: nn.Module) -> Switchable:
    """The model of `network` that model.json describes, with nothing calibrated."""
    widths, example = read_widths(shape["widths"]), torch.randn(2, *shape["image_shape"])
    conversion = {"keep_fp": shape["keep_fp"], "strict": shape["strict"], "target": shape.get("target", "none")}
    conversion["rules"] = {name: Rule(**rule) for name, rule in shape["rules"].items()}
    if "method" in shape:
        method = create(shape["method"], shape["settings"], widths)
        return method.build(network, shape["blocks"], example, **conversion)
    protocol = {name: shape[name] for name in ("edge_bits", "quantize_softmax", "edges", "anchor", "correction")}
    protocol["ties"] = shape.get("ties", "up")  # as they all went before there was a choice
    return MultiBitModel(network, QuantizationSpec(shape["blocks"], widths, **protocol, **conversion), example)


def _network(backbone: str | None, name: str, given: Network | None, folder: Path | str) -> nn.Module:
    """The FP network of a saved model, with any weights."""
    if given is None:
        if backbone is None:
            raise InputError(
                f"model {str(folder)!r} is of {name}, which is no registered backbone. Give network=: a function that "
                "builds it, or the network itself, with any weights."
            )
        return get_backbone(backbone).network()
    network = given if isinstance(given, nn.Module) else given()
    if not isinstance(network, nn.Module):
        raise InputError(f"network= must be, or give, a torch.nn.Module. Got a {type(network).__name__}.")
    return network


# ---------------------------------------------------------------- what calibrate is given
def method_for(
    network: nn.Module, name: str, settings: Mapping[str, Any], widths: Widths | None, groups: Groups | None
) -> Method:
    """The method `name` with the settings, widths and groups asked for, else those that suit the network."""
    if isinstance(groups, Mapping):
        groups = list(groups.values())
    split = groups if groups is None or isinstance(groups, BitGroups) else BitGroups(*groups)
    chosen = split.widths if split and widths is None else read_widths(WIDTHS if widths is None else widths)
    if split is None and len(chosen) > 1:
        split = BitGroups.split(chosen)
    return create(name, suited(network, name) | dict(settings), chosen, split)


def suited(network: nn.Module, method: str) -> dict[str, Any]:
    """Settings of a method that suit the network: of one with depthwise convolutions, those for them."""
    layers = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    depthwise = any(1 < layer.groups == layer.in_channels for layer in layers)
    return dict(DEPTHWISE.get(method, {})) if depthwise else {}


def gathered(images: Tensor | Iterable[Any], count: int) -> Tensor:
    """The first `count` images of a tensor, or of an iterable of batches, as float32 (at most count, ...).

    Raises InputError for what is not images.
    """
    require(count >= 1, "calibration_images", "at least 1", count)
    if isinstance(images, Tensor):
        batches: Iterable[Any] = [images[:count]]
    elif isinstance(images, Dataset) and not hasattr(images, "__iter__"):
        batches = DataLoader(images, batch_size=64)
    elif isinstance(images, Iterable):
        batches = images
    else:
        raise InputError(f"images must be a tensor, or an iterable of batches. Got a {type(images).__name__}.")
    found: list[Tensor] = []
    for batch in batches:
        found.append(_pixels(batch))
        if sum(map(len, found)) >= count:
            break
    shapes = {tuple(part.shape[1:]) for part in found}
    if len(shapes) > 1:
        raise InputError(f"images must be of one shape. Got {', '.join(map(str, sorted(shapes)))}.")
    if not sum(map(len, found)):
        raise InputError("images are empty. Give at least one; some hundreds are usual.")
    return torch.cat(found)[:count]  # a copy


def _pixels(batch: Any) -> Tensor:
    """The images of a batch, (n, ...) float32 on the CPU, without labels."""
    images = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if not isinstance(images, Tensor):
        raise InputError(f"a batch must be a tensor (n, ...), or (tensor, labels). Got a {type(images).__name__}.")
    if images.dim() < 2 or not images.is_floating_point():
        raise InputError(
            f"images must be batches (n, ...) of floating-point numbers, prepared as the network wants them. Got "
            f"{images.dtype} of shape {tuple(images.shape)}."
        )
    return images.detach().to("cpu", torch.float32)


def device_of(network: nn.Module, wanted: torch.device | str | None) -> torch.device:
    """Where to compute: the device that is wanted, else where the network is."""
    if wanted is None:
        return next((tensor.device for tensor in network.state_dict().values()), torch.device("cpu"))
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(f"device {str(wanted)!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device


@contextmanager
def own_random_state(device: torch.device, seed: int) -> Iterator[None]:
    """Inside, torch's global random state is the seed's (loaders draw from it); afterwards it is as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


# ---------------------------------------------------------------- what goes wrong
ALLOCATOR = "DefaultCPUAllocator: can't allocate memory"  # a RuntimeError, alas


@contextmanager
def told(method: Method, task: Task, name: str) -> Iterator[None]:
    """What a calibration can run out of, or lack, told in a sentence."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's own, OutOfMemoryError, is a RuntimeError
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"{method.name}: compile: true, but torch.compile fails: {reason}. It needs a C++ compiler and "
                "Python's headers, on a GPU Triton. Set compile: false."
            ) from error
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and ALLOCATOR not in str(error):
            raise
        batch = getattr(method.settings, "batch_size", "")
        raise InputError(
            f"{task.device.type} is out of memory while {method.name} calibrates {name}. Lower batch_size ({batch}) or "
            f"calibration_images ({len(task.index)}), or on a GPU set features_in_main_memory: true."
        ) from error
