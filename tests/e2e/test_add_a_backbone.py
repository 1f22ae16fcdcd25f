"""docs/add_a_backbone.md, followed word by word in a copy of the project."""

import re

import pandas as pd

from tests.projects import QUICK, copy_of_results, snakemake
from tests.toys import ROOT

GUIDE = (ROOT / "docs" / "add_a_backbone.md").read_text()
ENTRY, LINE = (re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)[0] for language in ("python", "yaml"))


def test_the_guide_adds_a_backbone(project, tmp_path):
    folder = copy_of_results(project, tmp_path / "project")
    path = folder / "ptmq/models/zoo.py"
    text = path.read_text()
    start = "BACKBONES: dict[str, Backbone] = {\n"
    path.write_text(text.replace(start, start + ENTRY))
    profile = folder / "workflow/config/digits.yaml"
    profile.write_text(profile.read_text().replace("backbones:\n", "backbones:\n" + LINE))
    quick = QUICK, "backbones={digits_efficientnet: {training: {epochs: 1}}}"
    done = snakemake(folder, "results/digits/tables/accuracy.md", "--config", *quick)
    assert done.returncode == 0, done.stderr
    assert "backbone=digits_resnet" not in done.stderr, "only what is new is computed"
    runs = pd.read_csv(folder / "results/digits/runs.csv")
    mine = runs[(runs.backbone == "digits_efficientnet") & (runs.method == "ptmq")]
    assert set(mine.w_bits) == {3, 4, 5, 6, 7, 8} and set(mine.status) == {"done"}
    assert set(mine.protocol_regularizer) == {0.1}, "the entry's settings"
