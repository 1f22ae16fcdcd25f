"""What the image files of a dataset hold, as one SHA-256: they are read once, and again only after a change."""

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path

from ptmq.common.errors import InputError
from ptmq.common.files import atomic, sha256

CHUNK = 256  # files that a thread reads one after the other
SETTLED = 2  # seconds: a file written later than that may be written again at the same time of its clock


def content_sha256(root: Path, files: Sequence[tuple[Path, int]]) -> str:
    """A hash of the files in their order: of each its name below `root`, its class and its content.

    It is kept under another hash, of names, classes, sizes and times of modification. Where that one is known, no file
    is read. Raises InputError for a file that cannot be read.
    """

    def lines(chunk: Sequence[tuple[Path, int]]) -> str:
        return "".join(f"{path.relative_to(root)} {label} {sha256(path)}\n" for path, label in chunk)

    try:
        stats = [path.stat() for path, _ in files]
        seen = (
            f"{path} {label} {stat.st_size} {stat.st_mtime_ns}\n"
            for (path, label), stat in zip(files, stats, strict=True)
        )
        kept = cache_folder() / _sha256_of(chain([f"{root.resolve()}\n"], seen))
        if kept.exists():
            return kept.read_text()
        chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = _sha256_of(pool.map(lines, chunks))
    except OSError as error:
        raise InputError(f"an image of {str(root)!r} cannot be read: {error}. Get it again.") from None
    if time.time() - max((stat.st_mtime for stat in stats), default=0) > SETTLED:
        with suppress(InputError), atomic(kept) as part:  # without room or permission the files are read once more
            part.write_text(found)
    return found


def cache_folder() -> Path:
    """Where hashes are kept: a folder of the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ptmq"


def _sha256_of(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode())
    return digest.hexdigest()
