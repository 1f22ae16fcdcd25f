"""The profile of the whole ImageNet on a small one, so that whoever has the real one meets no surprise."""

import os

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from ptmq.common.files import save_tensors
from ptmq.models.backbone import get_backbone
from tests.projects import snakemake
from tests.toys import ROOT, random_network

PROFILE = ROOT / "workflow/config/imagenet.yaml"
BACKBONES = list(yaml.safe_load(PROFILE.read_text())["backbones"])
TABLE = "results/imagenet/tables/accuracy.md"
CLASSES = [f"n{number:08d}" for number in range(20)]
FEW = "methods={ptmq: {settings: {iterations: 2, batch_size: 2}}}"  # the others stay


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A data folder with `imagenet/train` and `imagenet/val`, a folder a class, photographs of different sizes.

    The first 10,000 training images are held out, so there are more. Most are one file under many names.
    """
    folder, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for part, names in (("train", 502), ("val", 1)):
        for name in CLASSES:
            first = folder / "imagenet" / part / name / "0.JPEG"
            first.parent.mkdir(parents=True)
            pixels = generator.integers(0, 256, (*generator.integers(230, 300, 2), 3), dtype=np.uint8)
            Image.fromarray(pixels).save(first)
            for number in range(1, names):
                os.link(first, first.with_stem(str(number)))
    return folder


@pytest.mark.large
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_profile_runs_from_end_to_end(backbone, photographs, tmp_path):
    """From images to the table, with random weights under the networks' names, which nobody has to fetch."""
    weights = tmp_path / f"results/imagenet/weights/{backbone}.safetensors"
    weights.parent.mkdir(parents=True)
    save_tensors(weights, random_network(get_backbone(backbone).network).state_dict(), {})
    done = snakemake(
        tmp_path, "--snakefile", str(ROOT / "Snakefile"), TABLE, "--rerun-triggers", "mtime", "--configfile", str(PROFILE),
        "--config", f"data_dir={photographs}", "device=cpu", "calibration_images=4", "verdict=false", "compare=none",
        f"only={{methods: [ptmq], backbones: [{backbone}]}}", FEW,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = pd.read_csv(tmp_path / "results/imagenet/runs.csv")
    assert set(runs.method) == {"fp32", "ptmq"} and (runs.status == "done").all()
    assert (runs.images == len(CLASSES)).all() and (runs.dataset == "imagenet").all()
    widths = get_backbone(backbone).groups.values()
    assert len(runs[runs.method == "ptmq"]) == sum(map(len, widths))
