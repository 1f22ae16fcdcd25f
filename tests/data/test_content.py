"""The hash of image files: what it is of, that files are read once, and again after any change."""

import hashlib
import os
import time

import pytest

from ptmq.common.errors import InputError
from ptmq.data import content

HOUR = 3600


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Three files that were written an hour ago, and a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    return [(written(tmp_path / "images" / f"{number}.jpg", f"image {number}"), number) for number in range(3)]


@pytest.fixture
def read(monkeypatch):
    """The names of the files that are read."""
    names = []
    whole = content.sha256
    monkeypatch.setattr(content, "sha256", lambda path: names.append(path.name) or whole(path))
    return names


def written(path, text: str, age: float = HOUR):
    path.write_text(text)
    os.utime(path, (time.time() - age,) * 2)
    return path


def of(files) -> str:
    return content.content_sha256(files[0][0].parent, files)


def test_it_is_the_sha256_of_names_classes_and_hashes(files):
    """So that it can be worked out without the suite: docs/data.md says how."""
    lines = [f"{path.name} {label} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path, label in files]
    assert of(files) == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_it_is_the_same_however_many_files_a_thread_reads(files, monkeypatch):
    whole = of(files)
    monkeypatch.setenv("XDG_CACHE_HOME", str(files[0][0].parent.parent / "another"))
    monkeypatch.setattr(content, "CHUNK", 2)
    assert of(files) == whole


def test_files_are_read_once(files, read):
    first = of(files)
    assert sorted(read) == ["0.jpg", "1.jpg", "2.jpg"]
    read.clear()
    assert of(files) == first and not read


@pytest.mark.parametrize("change", [
    lambda path: written(path, "image 9", HOUR / 2),  # of the same size
    lambda path: written(path, "longer image", HOUR),
], ids=["time", "size"])  # fmt: skip
def test_they_are_read_again_after_a_change(files, read, change):
    first = of(files)
    read.clear()
    change(files[1][0])
    assert of(files) != first and len(read) == 3


def test_another_class_or_order_is_another_hash(files):
    found = {of(files), of(files[::-1]), of([(path, label + 1) for path, label in files])}
    assert len(found) == 3


def test_what_was_written_just_now_is_not_kept(files, read):
    """It could be written again within one tick of the clock."""
    written(files[0][0], "image 0", age=0)
    of(files)
    read.clear()
    of(files)
    assert len(read) == 3


def test_without_a_place_to_keep_it_the_files_are_read_again(files, read, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(files[0][0]))  # a file: no folder can be made in it
    assert of(files) == of(files) and len(read) == 6


def test_a_listed_file_that_is_absent_is_said(files):
    with pytest.raises(InputError, match="an image of .*images' cannot be read: .*No such file.*9.jpg.*Get it again"):
        of([*files, (files[0][0].with_name("9.jpg"), 0)])
