"""The public face: a calibrated model is taken away in a folder and opened by another process."""

import subprocess
import sys

import torch

from ptmq.api import load_model, save_model
from ptmq.methods.interface import create
from ptmq.models.zoo import BACKBONES
from tests.toys import GROUPS, ROOT, logits, random_network

SCRIPT = """
import sys, torch
from ptmq.api import load_model
model, info = load_model(sys.argv[1])
x = torch.load(sys.argv[2], weights_only=True)
out = {}
with torch.no_grad():
    for width in model.widths:
        model.set_bits(width.weight, width.activation)
        out[str(width)] = model(x)
torch.save(out, sys.argv[3])
print(info["note"], *sorted({name.split(".")[0] for name in sys.modules}))
"""


def test_a_fresh_process_gives_the_same_logits_bit_for_bit(tmp_path):
    backbone = BACKBONES["digits_resnet"]
    method = create("nearest_mse", {"edge_bits": 6}, GROUPS.widths)
    model = method.build(random_network(backbone.network), backbone.blocks).eval()
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    method.calibrate(model, x, 0)
    save_model(tmp_path / "model", model, "digits_resnet", method, {"note": "taken away"})
    torch.save(x, tmp_path / "x.pt")
    command = [sys.executable, "-c", SCRIPT, *(str(tmp_path / name) for name in ("model", "x.pt", "y.pt"))]
    said = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    loaded = torch.load(tmp_path / "y.pt", weights_only=True)
    for width in GROUPS.widths:
        assert torch.equal(loaded[str(width)], logits(model, x, width)), width
    assert said.startswith("taken away")
    assert not {"snakemake", "mlflow", "pandas", "matplotlib"} & set(said.split()), "the library stands alone"


def test_what_was_loaded_can_be_saved_again(tmp_path):
    backbone = BACKBONES["digits_resnet"]
    method = create("nearest_mse", {}, GROUPS.widths[:2])
    model = method.build(random_network(backbone.network), backbone.blocks).eval()
    save_model(tmp_path / "one", model, "digits_resnet", method, {"a": 1})
    loaded, info = load_model(tmp_path / "one")
    info.pop("model")
    save_model(tmp_path / "two", loaded, "digits_resnet", method, info)
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
