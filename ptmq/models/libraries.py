"""Networks of timm and torchvision by name: how they are built, how their images are prepared, where their weights are.

`timm/mobilenetv3_small_100` and `torchvision/resnet50` are backbones without a registry entry; a tag behind a dot
chooses among several published weights, as in `timm/resnet50.a1_in1k` or `torchvision/resnet50.IMAGENET1K_V1`.
Importing this file imports neither library, nor torch.
"""

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ptmq.common.errors import InputError, one_of
from ptmq.models.backbone import Checkpoint, Preprocessing

if TYPE_CHECKING:
    from torch import Tensor, nn

HUB = "https://huggingface.co/{}/resolve/main/{}"
HASH = re.compile(r"-([0-9a-f]{8,64})\.(?:pth|pt|pth\.tar|safetensors)$")  # in the name of a published file
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d\.)")  # names of an older release: norm.1. for norm1.
SLOW_INITIALISATION = ("googlenet", "inception_v3")  # seconds for random weights that are replaced


def _known(library: str, name: str, names: list[str]) -> str:
    """`name` where the library has it, else InputError with the nearest name: all would be hundreds."""
    if name in names:
        return name
    near = get_close_matches(name, names, n=1)
    hint = f" Did you mean {library + '/' + near[0]!r}?" if near else ""
    raise InputError(f"backbone {library + '/' + name!r} is unknown: {library} has no network of that name.{hint}")


def _hash_in(url: str) -> str:
    """The beginning of the SHA-256 that a file's name ends with, '' where it has none."""
    found = HASH.search(url)
    return found[1] if found else ""


# ---------------------------------------------------------------- timm
def timm_model(name: str, **options: Any) -> "nn.Module":
    """timm's network `name` with random weights."""
    import timm

    return timm.create_model(_timm_name(name), **options)


def _timm_name(name: str) -> str:
    """`name` where timm has such a network and such weights of it, else InputError."""
    import timm

    architecture, _, tag = name.partition(".")
    _known("timm", architecture, timm.list_models())
    if tag:
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
        one_of(f"backbone 'timm/{architecture}': tag", tag, tags)
    return name


def timm_facts(name: str) -> dict[str, Any]:
    """What timm knows of a network and its weights: fields of a `Backbone`."""
    import timm
    from timm.data import resolve_data_config

    found = timm.get_pretrained_cfg(_timm_name(name))
    facts = found.to_dict() if found else {}
    images = resolve_data_config(pretrained_cfg=facts) if facts else resolve_data_config({"in_chans": 3})
    _, height, width = images["input_size"]
    if height != width or images["crop_mode"] == "border":
        raise InputError(
            f"backbone {'timm/' + name!r} wants images of {height} x {width}, crop mode {images['crop_mode']!r}. "
            "Known are squares, crop modes 'center' and 'squash'. Calibrate it with ptmq.calibrate, on images that you "
            "prepare."
        )
    preprocessing = Preprocessing(
        height, int(height / images["crop_pct"]), images["interpolation"], squash=images["crop_mode"] == "squash"
    )
    return {
        "mean": tuple(images["mean"]),
        "std": tuple(images["std"]),
        "preprocessing": preprocessing,
        "checkpoint": _timm_checkpoint(name, facts),
    }


def _timm_checkpoint(name: str, facts: dict[str, Any]) -> Checkpoint | None:
    """Where timm's weights are published, None where they are not; of two places the one that gives the file's hash.

    Its archives of numpy arrays are left out: they are not plain tensors.
    """
    url, hub, plain = facts.get("url") or "", facts.get("hf_hub_id"), not facts.get("custom_load")
    source = f"timm, {facts.get('license') or 'licence not given'}"
    if plain and _hash_in(url):
        return Checkpoint(url.rsplit("/", 1)[-1], url, _hash_in(url), source)
    if hub:
        full = ".".join(filter(None, (facts.get("architecture"), facts.get("tag"))))
        address = HUB.format(hub, facts.get("hf_hub_filename") or "model.safetensors")
        return Checkpoint(f"{full or name}.safetensors", address, "", source)
    return Checkpoint(url.rsplit("/", 1)[-1], url, "", source) if plain and url else None


def timm_state(state: dict[str, "Tensor"], name: str) -> dict[str, "Tensor"]:
    """Published weights under the names of timm's network, by timm's own conversion."""
    import timm

    try:
        network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"state_dict": state})
    except (RuntimeError, KeyError) as error:
        raise InputError(f"the weights do not fit backbone {'timm/' + name!r}: {error}") from None
    return network.state_dict()


# ---------------------------------------------------------------- torchvision
def torchvision_model(name: str, **options: Any) -> "nn.Module":
    """torchvision's network `name` with random weights."""
    from torchvision.models import get_model

    architecture = _torchvision_name(name)
    if architecture in SLOW_INITIALISATION:
        options = {"init_weights": False, **options}
    network = get_model(architecture, weights=None, **options)
    if hasattr(network, "transform_input"):  # its weights want another range than its images are prepared in
        network.transform_input = True
    return network


def _torchvision_name(name: str) -> str:
    """The architecture of a name, without the tag, where torchvision has it as a classifier, else InputError."""
    from torchvision import models

    return _known("torchvision", name.partition(".")[0], models.list_models(module=models))


def torchvision_facts(name: str) -> dict[str, Any]:
    """What torchvision knows of a network and its weights: fields of a `Backbone`."""
    from torchvision.models import get_model_weights

    architecture, tag = _torchvision_name(name), name.partition(".")[2]
    known = get_model_weights(architecture)
    weights = known[one_of(f"backbone 'torchvision/{architecture}': tag", tag or "DEFAULT", known.__members__)]
    images = weights.transforms()
    file = weights.url.rsplit("/", 1)[-1]
    return {
        "mean": tuple(images.mean),
        "std": tuple(images.std),
        "preprocessing": Preprocessing(images.crop_size[0], images.resize_size[0], images.interpolation.value),
        "checkpoint": Checkpoint(file, weights.url, _hash_in(file), "torchvision, BSD-3-Clause"),
    }


def torchvision_state(state: dict[str, "Tensor"], name: str) -> dict[str, "Tensor"]:
    """Published weights under the names of torchvision's network."""
    return {OLD_DENSENET.sub(r"\1\2", key): value for key, value in state.items()}
