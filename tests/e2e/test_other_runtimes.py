"""Exported files in other runtimes than Python's onnxruntime: OpenVINO, and JavaScript as the page on deployment has it."""

import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch

import ptmq
from ptmq.data.datasets import open_images
from ptmq.export.session import Deployed
from ptmq.models.backbone import get_backbone
from tests.toys import ROOT

DEMO = ROOT / "docs" / "demo"


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    images, _ = open_images("digits_resnet", "train", None)
    return images.batch(torch.arange(300))[0]


@pytest.fixture(scope="module")
def model(digits):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = get_backbone("digits_resnet").network()
    return ptmq.calibrate(network, digits[:32], "nearest_minmax", ["W4A4", "W8A8"], target="onnx", progress=False)


@pytest.mark.parametrize("width", ["W8A8", None])
def test_openvino_computes_what_onnxruntime_computes(model, digits, tmp_path, width):
    openvino = pytest.importorskip("openvino", reason="openvino is missing: pip install openvino")
    file = ptmq.export_onnx(model, tmp_path / "file.onnx", width).path
    compiled = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_NUM_THREADS": 1})
    feed = {"images": digits.numpy()} | ({} if width else {"bits": np.array(8)})
    found, expected = compiled(feed)[compiled.output(0)], Deployed(file)(digits.numpy(), "W8A8")
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.98
    assert np.abs(found - expected).mean() < 0.1 * expected.std()
    if width:
        ran = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
        convolutions = [
            info["runtimePrecision"].astype(str) for info in ran if info["layerType"].astype(str) == "Convolution"
        ]
        assert convolutions and set(convolutions) <= {"u8", "i8"}, "they run on bytes"


def test_the_javascript_of_the_page_reads_what_python_reads(tmp_path):
    (code,) = re.findall(r"```js\n(.*?)```", (ROOT / "docs/deploy.md").read_text(), re.DOTALL)
    assert code == (DEMO / "example.mjs").read_text(), "the page shows the file as it is"
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node or npm is missing: install Node.js")
    for name in ("example.mjs", "digits.onnx", "digits.json", "package.json"):
        shutil.copy(DEMO / name, tmp_path)
    if (DEMO / "node_modules").is_dir():
        (tmp_path / "node_modules").symlink_to(DEMO / "node_modules")
    else:
        install = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund"]
        done = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"npm cannot bring onnxruntime-web: {done.stderr.strip().splitlines()[-1]}")
    done = subprocess.run(["node", "example.mjs"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    about = json.loads((DEMO / "digits.json").read_text())
    pixels = np.frombuffer(base64.b64decode(about["pixels"]), dtype=np.uint8)[:64].reshape(1, 1, 8, 8)
    image = ((pixels / about["white"] - about["mean"]) / about["std"]).astype(np.float32)
    deployed = Deployed(DEMO / "digits.onnx")
    read = {bits: deployed(image, about["widths"][str(bits)]).argmax() for bits in (3, 8)}
    assert done.stdout.splitlines() == [f"{bits} bits: {digit}" for bits, digit in read.items()]
