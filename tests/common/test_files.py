"""Files are written whole or not at all, and read back as they were."""

import json

import pytest
import torch

from ptmq.common.errors import InputError
from ptmq.common.files import atomic, load_tensors, read_json, save_tensors, sha256, write_json


def test_tensors_round_trip_with_their_info(tmp_path):
    tensors = {"a": torch.arange(6).view(2, 3).T, "b": torch.tensor(1.5)}
    save_tensors(tmp_path / "t", tensors, {"b": [1]})
    read, info = load_tensors(tmp_path / "t")
    assert read.keys() == tensors.keys() and all(torch.equal(read[key], tensors[key]) for key in tensors)
    assert info == {"b": [1]}


def test_json_round_trips_in_the_order_that_it_has(tmp_path):
    write_json(tmp_path / "deep" / "file.json", {"z": "größer", "a": [1.5, None]})
    assert list(read_json(tmp_path / "deep" / "file.json").items()) == [("z", "größer"), ("a", [1.5, None])]


def test_equal_content_has_one_hash_and_other_content_another(tmp_path):
    for name, content in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).write_text(content)
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b") != sha256(tmp_path / "c")


def test_what_was_there_before_stays_when_a_write_fails(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_tensors(path, {"a": torch.ones(2)}, None)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ptmq.common.files.save_file", full)
    with pytest.raises(InputError, match="cannot be written: No space left on device. Make room"):
        save_tensors(path, {"a": torch.zeros(2)}, None)
    assert torch.equal(load_tensors(path)[0]["a"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "nothing half written is left"


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with atomic(path) as part:
        part.write_text("ne")
        assert path.read_text() == "old"
        part.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_an_error_of_the_writer_is_its_own(tmp_path):
    with pytest.raises(KeyError), atomic(tmp_path / "file"):
        raise KeyError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content, message", [(None, "cannot be read: No such file"), ("{", "is not valid JSON")])
def test_json_that_cannot_be_read_names_its_file(tmp_path, content, message):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=f"x.json' {message}"):
        read_json(path)


@pytest.mark.parametrize("damage, message", [
    (lambda p: p.unlink(), "cannot be read: no such file"),
    (lambda p: p.write_bytes(p.read_bytes()[:40]), "is not a whole safetensors file"),
    (lambda p: p.write_text(json.dumps({})), "is not a whole safetensors file"),
])  # fmt: skip
def test_damaged_tensors_are_refused(tmp_path, damage, message):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.ones(100)}, None)
    damage(path)
    with pytest.raises(InputError, match=f"x.safetensors' {message}"):
        load_tensors(path)
