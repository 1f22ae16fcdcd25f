"""Training of the floating-point networks that have no public checkpoint."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ptmq.common.device import keep_freed_memory
from ptmq.common.errors import InputError
from ptmq.common.files import save_tensors
from ptmq.common.progress import Bar
from ptmq.common.provenance import code_sha256, fingerprint
from ptmq.common.settings import from_dict
from ptmq.data.datasets import open_images
from ptmq.models.backbone import Training, get_backbone
from ptmq.training import trainer


def training_of(backbone: str, values: dict[str, Any]) -> Training | None:
    """The training settings of a backbone with some values replaced; None for one with public weights."""
    standard = get_backbone(backbone).training
    if standard is None:
        if not values:
            return None
        raise InputError(
            f"backbone {backbone!r} has public weights and is not trained. Got training settings {values}."
        )
    return from_dict(type(standard), {**asdict(standard), **values}, f"training of {backbone}")


def train_backbone(
    backbone: str, values: dict[str, Any], seed: int, data_dir: str | None, out: Path, device: torch.device
) -> float:
    """Train a network and write its weights to `out`; returns the seconds that it took.

    values: training settings that replace the backbone's own. An interrupted training continues from its last epoch.
    """
    settings = training_of(backbone, values)
    if settings is None:
        raise InputError(f"backbone {backbone!r} has public weights. Get them: python -m ptmq weights.")
    entry = get_backbone(backbone)
    images, hashes = open_images(backbone, "train", data_dir)
    keep_freed_memory()
    with torch.random.fork_rng():  # torch initialises layers from its global generator
        torch.manual_seed(seed)
        network = entry.network()
    info = {"backbone": backbone, "seed": seed, "training": asdict(settings)}
    code = code_sha256("ptmq.training.floating_point", entry.build.split(":")[0])
    unfinished = out.with_suffix(f".unfinished-{fingerprint([info, hashes, code, device.type])}.pt")
    with Bar(f"{backbone} training", settings.epochs, "epoch") as bar:
        state = trainer.train(
            network,
            images,
            settings,
            seed,
            device,
            lambda epoch, loss: bar.advance(f"epoch {epoch}", 1, loss),
            checkpoint=unfinished,
        )
    # no time of day and no duration in the file: the same training gives the same bytes
    save_tensors(out, {key: value.cpu() for key, value in network.state_dict().items()}, info)
    for path in out.parent.glob(f"{out.stem}.unfinished-*"):  # this one, and those of settings given up
        path.unlink(missing_ok=True)
    return state.seconds
