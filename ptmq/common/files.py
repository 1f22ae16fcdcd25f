"""Files: atomic writes, hashes, and tensors with JSON metadata (safetensors, never pickle)."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ptmq.common.errors import InputError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, renamed to it on success: a reader never sees half a file.

    Raises InputError where it cannot be written: no space, no permission.
    """
    path = Path(path)
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        part = Path(name)
        yield part
        part.chmod(0o644)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"file {str(path)!r} cannot be written: {reason}. Make room, or the folder writable, and run again: what "
            "is finished is kept."
        ) from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON with a stable order, atomically."""
    with atomic(path) as part:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; InputError names the file when it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text())
    except OSError as error:
        raise InputError(f"file {str(path)!r} cannot be read: {error.strerror}.") from None
    except json.JSONDecodeError as error:
        raise InputError(f"file {str(path)!r} is not valid JSON: {error}. Delete it and run again.") from None


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes and values, whatever file or device they are on."""
    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], info: Any) -> None:
    """Write tensors and a JSON-able `info` to one safetensors file, atomically."""
    with atomic(path) as part:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, part, {"info": json.dumps(info)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Read what `save_tensors` wrote, on the CPU. Raises InputError for a missing or damaged file."""
    if not Path(path).exists():
        raise InputError(f"file {str(path)!r} cannot be read: no such file.")
    try:
        with safe_open(path, framework="pt") as file:
            info = json.loads((file.metadata() or {}).get("info", "null"))
            return {key: file.get_tensor(key) for key in file.keys()}, info  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"file {str(path)!r} is not a whole safetensors file: {error}. Make it again; a public checkpoint "
            "is converted by: python -m ptmq weights."
        ) from None
