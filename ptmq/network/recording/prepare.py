"""What is recorded: a copy of the network at inference, in float32 on the CPU, and a few images for it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from ptmq.common.errors import InputError

SIZES = (32, 224, 8, 28, 16, 64, 96, 128, 256, 299, 384, 4, 2)  # of images that are tried where none are given


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside torch.compile's or DataParallel's wrapper. Raises InputError where it cannot be followed."""
    network = getattr(network, "_orig_mod", network)
    if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        network = network.module
    if isinstance(network, torch.jit.ScriptModule):
        raise InputError("a scripted network cannot be followed. Give the nn.Module that it was made of.")
    given = signature(network.forward).parameters.items()
    named = {name: one for name, one in given if one.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)}
    needed = [name for name, one in named.items() if one.default is Parameter.empty]
    if len(needed) > 1 or not given:
        raise InputError(
            f"{type(network).__name__}.forward must take one input, the images. Got {len(needed)}: "
            f"{', '.join(needed)}. Wrap the network in a module that gives the others."
        )
    return network


def at_inference(network: nn.Module) -> nn.Module:
    """A copy in inference mode, in float32 on the CPU; the network itself stays as it is."""
    memo: dict[int, Any] = {}
    for module in network.modules():
        held = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        memo |= {id(thing): thing for thing in held if isinstance(thing, torch.jit.ScriptFunction)}  # no copies of it
        for tensor in held:
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                value = tensor.detach().cpu().clone()
                value = value.float() if value.is_floating_point() else value
                is_parameter = isinstance(tensor, nn.Parameter)
                memo[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if is_parameter else value
    try:
        return copy.deepcopy(network, memo).eval()
    except Exception as error:
        raise InputError(f"{type(network).__name__} cannot be copied (copy.deepcopy): {error}.") from error


def some_images(example: Tensor, count: int) -> Tensor:
    """`count` images to record with, from the example, over and over where it has fewer."""
    if not isinstance(example, Tensor) or example.dim() < 2 or not len(example) or not example.is_floating_point():
        raise InputError(f"the example must be images, (n, ...), as floating-point numbers. Got {_told(example)}.")
    return example[torch.arange(count) % len(example)].detach().cpu().float()


def _told(example: Any) -> str:
    return f"{example.dtype} of shape {tuple(example.shape)}" if isinstance(example, Tensor) else type(example).__name__


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """Inside, tensors are made on the CPU and in full precision, and know their versions, whatever holds outside."""
    with torch.inference_mode(False), torch.device("cpu"), torch.autocast("cpu", enabled=False), torch.no_grad():
        yield


def example_for(network: nn.Module, example: Tensor | None) -> Tensor:
    """The example, or one of a size found by trial."""
    return found_example(unwrapped(network)) if example is None else example


@on_the_cpu()
def found_example(network: nn.Module) -> Tensor:
    """Two random images of the first size that the network takes."""
    own, generator = at_inference(network), torch.Generator().manual_seed(0)
    for shape in _shapes(network):
        images = torch.randn(2, *shape, generator=generator)
        try:
            own(images)
        except Exception:  # whatever a network says to images of another size
            continue
        return images
    raise InputError(
        f"{type(network).__name__}: no size of images was found that the network takes. Give images as `example`."
    )


def _shapes(network: nn.Module) -> Iterator[tuple[int, ...]]:
    """Shapes of images by what the network says of itself, and by its first layer."""
    says = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None)
    if says and says.get("input_size"):
        yield tuple(says["input_size"])
    for module in network.modules():
        if isinstance(module, nn.Linear):
            yield (module.in_features,)
            yield 4, module.in_features
            return
        if isinstance(module, nn.modules.conv._ConvNd):
            dimensions = len(module.kernel_size)
            yield from ((module.in_channels, *[size] * dimensions) for size in SIZES)
            return
    yield from ((3, size, size) for size in SIZES)


def result_of(result: Any) -> Any:
    """The logits in what a network gives: itself, or what is called logits or out, or the one tensor."""
    for name in ("logits", "out"):  # of classes, or of classes for every pixel
        if isinstance(result, dict) and name in result:
            return result[name]
    if isinstance(result, list | tuple | dict):
        parts = list(result.values() if isinstance(result, dict) else result)
        parts = [part for part in parts if part is not None]
        if len(parts) == 1:
            return parts[0]
        raise InputError(
            f"the network must give one tensor, the logits. Got {len(parts)}. Wrap it in a module that gives one."
        )
    return result
