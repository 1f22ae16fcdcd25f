"""Every layer of a deep file, given the file's own integers, computes the integers of the simulation in float64.

Predictions alone do not say so: in a deep network one value between two steps, rounded the other way, changes a large part
of the integers behind it.
"""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from torchvision.models import mobilenet_v2

import ptmq
from ptmq.export.frozen import FrozenQuantizer, simulate
from ptmq.export.graph.branch import Branch
from ptmq.export.session import open_session

FEW = 1e-3  # share of integers that may differ: values between two steps


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(12, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model(images):
    """MobileNetV2: depthwise convolutions, ReLU6, residual sums, a global average; random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = mobilenet_v2(width_mult=0.25, num_classes=10).eval()
        network.train()(images)  # statistics of BatchNorm that are not those of its first day
    return ptmq.calibrate(network.eval(), images, "nearest_minmax", ["W4A4", "W8A8"], target="onnx", progress=False)


@pytest.mark.parametrize("width", ["W8A8", "W4A4"])
def test_every_layer_computes_the_integers_of_float64(model, images, tmp_path, monkeypatch, width):
    tensors: dict[str, str] = {}
    original = Branch.symbol

    def noting(self, node):
        original(self, node)
        name = next(a.s.decode() for a in node.attribute if a.name == "name")
        if value := self.values[node.output[0]].codes:
            tensors[name] = value

    monkeypatch.setattr(Branch, "symbol", noting)
    path = ptmq.export_onnx(model, tmp_path / "file.onnx", width).path
    proto = onnx.load(path)
    outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in tensors.values()]
    proto.graph.output.extend(outputs)
    onnx.save(proto, path)
    session = open_session(path)
    values = session.run(["logits", *tensors.values()], {"images": images.numpy()})
    logits, codes = values[0], dict(zip(tensors, values[1:], strict=True))
    differing: dict[str, float] = {}

    def given(name):
        def hook(module, inputs, output):
            file = torch.from_numpy(codes[name]).double()
            own = torch.round(output / module.step) + module.grid.zero
            assert (own - file).abs().max() <= 1
            differing[name] = float((own != file).double().mean())
            return (file - module.grid.zero) * module.step

        return hook

    network = simulate(model, next(known for known in model.widths if str(known) == width))
    for name, module in network.named_modules():
        if isinstance(module, FrozenQuantizer):
            module.register_forward_hook(given(name.split(".", 1)[1]))
    last = network(images.double()).numpy()
    assert differing.keys() == codes.keys() and len(codes) > 50
    assert max(differing.values()) < FEW, Counter(differing).most_common(3)
    assert np.abs(last - logits).max() < 1e-4 * np.abs(last).max()
