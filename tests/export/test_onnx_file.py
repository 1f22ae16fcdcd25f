"""Exported files: they compute what was calibrated, as integers, at every width and from one file."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ptmq
from ptmq.cli import main
from ptmq.common.errors import InputError
from ptmq.export import onnx_file, skeleton
from ptmq.export.frozen import FrozenLayer, simulate
from ptmq.export.graph.nodes import Constants, Nodes
from ptmq.export.graph.stored import signed_codes
from ptmq.export.session import Deployed, open_session, operators
from ptmq.methods.interface import create
from ptmq.network.layers import QuantizedLayer
from ptmq.quantization.weight_quantizer import TIES, NestedWeightQuantizer
from tests.toys import GROUPS, W3, W4, W8, random_network, toy_images, toy_network

IMAGES = toy_images()
METHODS = {"nested": {"iterations": 3, "batch_size": 8}, "nearest_mse": {}, "ptmq": {"iterations": 3, "batch_size": 8}}


@pytest.fixture(autouse=True, scope="module")
def recorded_once():
    """Equal networks are written as ONNX once: that takes seconds."""
    found = {}

    def once(model, name):
        key = model.image_shape, *(unit.graph.code for unit in model.units)
        if key not in found:
            found[key] = skeleton.skeleton(model, name)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "skeleton", once)
        yield


@cache
def calibrated(method: str, target: str = "onnx", widths="W3A3..W8A8"):
    options = {"blocks": ["blocks.*"], "target": target, "progress": False}
    return ptmq.calibrate(toy_network(), IMAGES, method, widths, **options, **METHODS[method])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("export")


@cache
def exported(folder: Path, method: str, width: str | None = None, target: str = "onnx"):
    """A file of the toy's model, at all widths or at one, and what was said of it."""
    return ptmq.export_onnx(calibrated(method, target), folder / f"{method}_{width}_{target}.onnx", width)


@torch.no_grad()
def simulated(model: nn.Module, width, images=IMAGES) -> np.ndarray:
    return simulate(model, width)(images.double()).numpy()


def agrees(logits: np.ndarray, expected: np.ndarray) -> bool:
    """Whether logits (images, classes) are the same, but for images of which a value lies on the border of two codes."""
    apart = np.abs(logits - expected).max(1) / np.abs(expected).max()
    return bool((apart < 1e-5).mean() >= 0.9 and apart.max() < 0.05)


def all_graphs(graph) -> list:
    """A graph and those within its nodes, in order."""
    inner = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return [graph, *(found for part in inner for found in all_graphs(part))]


# ---------------------------------------------------------------- what it computes
@pytest.mark.parametrize("method", METHODS)
def test_one_file_computes_at_every_width_what_was_calibrated(folder, method):
    deployed, model = Deployed(exported(folder, method).path), calibrated(method)
    assert list(deployed.widths) == [str(width) for width in GROUPS.widths]
    found = {width: deployed(IMAGES.numpy(), str(width)) for width in GROUPS.widths}
    for width, logits in found.items():
        assert agrees(logits, simulated(model, width))
        model.set_bits(width.weight, width.activation)
        assert agrees(logits, model(IMAGES).detach().numpy())
    assert not np.array_equal(found[W3], found[W8])


@pytest.mark.parametrize("method, width", [("nested", W4), ("nested", W8), ("ptmq", W3)], ids=str)
def test_the_one_file_gives_what_a_file_of_one_width_gives(folder, method, width):
    alone = Deployed(exported(folder, method, str(width)).path)
    assert alone.widths == (str(width),) and not alone.switches
    together = Deployed(exported(folder, method).path)
    assert np.array_equal(alone(IMAGES.numpy()), together(IMAGES.numpy(), str(width)))


def test_everything_runs_as_integers(folder):
    done = exported(folder, "nested", "W4A4")
    open_session(done.path, optimized=folder / "optimized.onnx")
    found = operators(folder / "optimized.onnx")
    assert found["QLinearConv"] == 5 and found["QLinearAdd"] == 2 and found["QGemm"] == 1
    assert not {"Conv", "Gemm", "MatMul"} & {*found}
    assert done.integer == 6 and done.floats == ()


@pytest.mark.parametrize("method", ["nested", "nearest_mse"])
def test_without_the_target_it_computes_the_same_in_floating_point_and_says_so(folder, method):
    done = exported(folder, method, "W4A4", "none")
    assert done.integer == 0 and len(done.floats) == 6
    assert ("blocks.0.conv1", "the model was not calibrated with target: onnx") in done.floats
    assert "blocks.0.conv1 stays in floating point" in str(done)
    assert agrees(Deployed(done.path)(IMAGES.numpy()), simulated(calibrated(method, "none"), W4))


def test_codes_of_nested_widths_are_stored_once(folder):
    import onnx

    sizes = {}
    for method in ("nested", "nearest_mse"):
        graphs = all_graphs(onnx.load(exported(folder, method).path).graph)
        stored = [tensor for graph in graphs for tensor in graph.initializer]
        sizes[method] = sum(len(t.raw_data) for t in stored if t.data_type == onnx.TensorProto.UINT8)
    inner = sum(layer.weight.numel() for layer in calibrated("nested").layers if not layer.quantizer.fixed)
    edges = sum(layer.weight.numel() for layer in calibrated("nested").layers if layer.quantizer.fixed)
    other = 100 + 6 * sum(len(layer.weight) for layer in calibrated("nested").layers)  # zero points
    assert inner * (8 + 2) / 8 + edges <= sizes["nested"] <= inner * (8 + 2) / 8 + edges + other  # two learned planes
    assert inner * sum(range(3, 9)) / 8 + edges <= sizes["nearest_mse"] <= inner * sum(range(3, 9)) / 8 + edges + other


def test_a_branch_reads_from_outside_what_others_read_too(folder):
    import onnx

    main = onnx.load(exported(folder, "nested").path).graph
    assert main.initializer
    leaves = [graph for graph in all_graphs(main)[1:] if graph.initializer]
    assert {graph.name for graph in leaves} == {str(width.weight) for width in GROUPS.widths}
    read = [{name for node in graph.node for name in node.input} for graph in [main, *leaves]]
    for tensor in main.initializer:
        assert sum(tensor.name in names for names in read) >= 2 or tensor.name in read[0]


def test_a_call_passes_few_ifs(folder):
    import onnx

    def depth(graph) -> int:
        return max([0] + [1 + depth(a.g) for node in graph.node for a in node.attribute if a.HasField("g")])

    assert depth(onnx.load(exported(folder, "nested").path).graph) == 3  # of six widths


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("width", GROUPS.widths, ids=str)
def test_the_file_rounds_the_byte_as_the_model_does(tmp_path, width, ties):
    import onnx

    layer = nn.Conv2d(4, 8, 3).requires_grad_(False)
    quantizer = NestedWeightQuantizer(
        layer.weight.shape, [width.weight for width in GROUPS.widths], in_a_byte=True, ties=ties
    )
    quantizer.search_step_sizes(layer.weight, "shrink")
    grid_layer = QuantizedLayer(layer, quantizer)
    grid_layer.set_width(width)
    nodes = Nodes(Constants(), "n")
    named = signed_codes(nodes, grid_layer, frozen := FrozenLayer(grid_layer), packed=True)
    output = onnx.helper.make_tensor_value_info(named, onnx.TensorProto.INT8, None)
    graph = onnx.helper.make_graph(nodes.nodes, "codes", [], [output], nodes.constants.tensors)
    opset = onnx.helper.make_opsetid("", skeleton.OPSET)
    onnx.save(onnx.helper.make_model(graph, ir_version=onnx_file.IR, opset_imports=[opset]), tmp_path / "codes.onnx")
    (codes,) = open_session(tmp_path / "codes.onnx").run(None, {})
    assert np.array_equal(codes, frozen.values().numpy())


def test_images_may_be_bytes(folder):
    normalization = (0.4, 0.6), (0.2, 0.3)
    path = ptmq.export_onnx(calibrated("nested"), folder / "bytes.onnx", normalization=normalization).path
    pixels = torch.randint(256, (20, 2, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in normalization)
    prepared = (pixels.float() / 255 - mean) / std
    plain = Deployed(exported(folder, "nested").path)
    assert np.array_equal(Deployed(path)(pixels.numpy(), "W4A4"), plain(prepared.numpy(), "W4A4"))


def test_widths_that_share_weight_bits_have_values_of_their_own(folder):
    model = calibrated("nearest_mse", widths=("W4A4", "W4A8"))
    done = ptmq.export_onnx(model, folder / "mixed.onnx")
    assert done.widths == {44: "W4A4", 48: "W4A8"}
    deployed = Deployed(done.path)
    for width in model.widths:
        assert agrees(deployed(IMAGES.numpy(), str(width)), simulated(model, width))


def test_floating_point_activations_beside_others_keep_values_of_their_own(folder):
    widths = "W4A4", "W4A32", "W7A2"
    model = calibrated("nearest_mse", widths=widths)
    done = ptmq.export_onnx(model, folder / "floats.onnx")
    assert sorted(done.widths.items()) == [(404, "W4A4"), (432, "W4A32"), (702, "W7A2")]
    deployed = Deployed(done.path)
    for width in model.widths:
        assert agrees(deployed(IMAGES.numpy(), str(width)), simulated(model, width))


def test_widths_of_activations_alone(folder):
    model = calibrated("nearest_mse", widths=("W32A8",))
    done = ptmq.export_onnx(model, folder / "activations.onnx")
    assert done.integer == 0 and set(done.floats) == {
        (layer, "its weight is in floating point") for layer, _ in done.floats
    }
    assert agrees(Deployed(done.path)(IMAGES.numpy(), "W32A8"), simulated(model, model.widths[0]))


def test_widths_of_weights_alone(folder):
    model = calibrated("nearest_mse", widths=("W4A32",))
    done = ptmq.export_onnx(model, folder / "weights.onnx")
    assert ("stem", "what enters it is in floating point") in done.floats
    expected = simulated(model, model.widths[0])
    assert agrees(Deployed(done.path)(IMAGES.numpy(), "W4A32"), expected)


class Attention(nn.Module):
    """Patches, one attention block, a head: (n, 1, 8, 8) -> (n, 3)."""

    def __init__(self):
        super().__init__()
        self.patch, self.norm, self.qkv = nn.Conv2d(1, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 24)
        self.out, self.last, self.head = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out((q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v)
        return self.head(self.last(x).mean(1))


def test_attention_runs_as_integers(folder):
    images = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    model = ptmq.convert(random_network(Attention), images, "W4A4", target="onnx")
    done = ptmq.export_onnx(model, folder / "attention.onnx", "W4A4")
    assert done.floats == (("patch", "what it gives is not quantized"),) and done.integer == 5
    assert agrees(Deployed(done.path)(images.numpy()), simulated(model, W4, images))


# ---------------------------------------------------------------- mistakes
def test_unknown_bits_are_told_at_run_time(folder):
    deployed = Deployed(exported(folder, "nested").path)
    with pytest.raises(Exception, match="bits must be one of 3, 4, 5, 6, 7, 8"):
        deployed.session.run(None, {"images": IMAGES.numpy(), "bits": np.array(2)})
    with pytest.raises(InputError, match="width 'W2A2' is unknown.* Known: W3A3, "):
        deployed(IMAGES.numpy(), "W2A2")
    with pytest.raises(InputError, match="several widths"):
        deployed(IMAGES.numpy())


def test_a_width_that_was_not_calibrated_is_refused(tmp_path):
    with pytest.raises(InputError, match="width 'W2A2' is unknown.* Known: W3A3, "):
        ptmq.export_onnx(calibrated("nested"), tmp_path / "x.onnx", "W2A2")


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        ptmq.export_onnx(calibrated("nested"), tmp_path / "file" / "x.onnx", "W4A4")


def test_a_model_without_grids_is_refused(tmp_path):
    model = create("adaptive_bn", {}, GROUPS.widths).build(toy_network(), ["blocks.*"], IMAGES[:2])
    with pytest.raises(InputError, match="cannot be exported"):
        ptmq.export_onnx(model, tmp_path / "x.onnx")


def test_what_onnx_cannot_say_is_told(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(torch.special.bessel_j0(self.a(x)).mean((2, 3)))

    model = ptmq.convert(random_network(Odd), torch.randn(2, 2, 4, 4), "W4A4", target="onnx")
    with pytest.raises(InputError, match="Odd cannot be written as ONNX"):
        ptmq.export_onnx(model, tmp_path / "x.onnx")


@pytest.mark.parametrize("normalization", [((0.5,), (0.5,)), ((0.5, 0.5), (0.5, 0.0))])
def test_a_normalization_that_does_not_fit_is_told(tmp_path, normalization):
    with pytest.raises(InputError, match=r"normalization must be \(mean, std\), 2 numbers each"):
        ptmq.export_onnx(calibrated("nested"), tmp_path / "x.onnx", "W4A4", normalization=normalization)


def test_a_file_that_is_none_is_told(tmp_path):
    (tmp_path / "x.onnx").write_text("no")
    with pytest.raises(InputError, match="onnxruntime cannot open"):
        Deployed(tmp_path / "x.onnx")


def test_without_onnx_the_way_out_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'ptmq-suite\[onnx\]'"):
        ptmq.export_onnx(calibrated("nested"), tmp_path / "x.onnx")


# ---------------------------------------------------------------- a saved model, the command line
def test_a_loaded_model_is_exported_by_the_command_line(registered_toy, tmp_path, capsys):
    model = calibrated("nested")
    before = model.description
    model.description = {**before, "backbone": registered_toy}
    ptmq.save(model, tmp_path / "model")
    model.description = before
    out = tmp_path / "model.onnx"
    assert main(["export", "--model", str(tmp_path / "model"), "--out", str(out), "--width", "W4A4"]) == 0
    assert "6 of 6 layers and products run as integers" in capsys.readouterr().out
    assert agrees(Deployed(out)(IMAGES.numpy()), simulated(model, W4))
