"""Running an exported file in onnxruntime: images in, logits out, at the width that is asked for."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ptmq.common.errors import InputError, one_of
from ptmq.export.onnx_file import BITS, described
from ptmq.export.skeleton import IMAGES

INTEGER_OPERATORS = (
    *("QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "ConvInteger", "MatMulInteger"),
    *("DynamicQuantizeMatMul", "QLinearAdd", "QLinearConcat", "QLinearAveragePool", "QLinearGlobalAveragePool"),
)


def open_session(path: Path | str, threads: int = 1, optimized: Path | None = None) -> Any:
    """An onnxruntime session of a file on the CPU. optimized: where the graph that it runs is to be written."""
    if find_spec("onnxruntime") is None:
        raise InputError("running ONNX needs onnxruntime. Install it: pip install 'ptmq-suite[onnx]'.")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class for every reason
        raise InputError(f"onnxruntime cannot open {str(path)!r}: {str(error).splitlines()[0]}") from None


class Deployed:
    """An exported file, ready to run.

    widths: what it can take, such as 'W4A4' · about: what the file says of itself · switches: whether it has an input
    `bits` · takes_bytes: whether images are uint8.
    """

    def __init__(self, path: Path | str, threads: int = 1):
        self.session = open_session(path, threads)
        self.about = described(self.session.get_modelmeta().custom_metadata_map)
        self.keys = {width: key for key, width in self.about["widths"].items()}
        self.widths: Sequence[str] = tuple(self.keys)
        inputs = {node.name: node.type for node in self.session.get_inputs()}
        self.switches, self.takes_bytes = BITS in inputs, inputs[IMAGES] == "tensor(uint8)"

    def __call__(self, images: np.ndarray, width: str | None = None) -> np.ndarray:
        """Logits (batch, classes) of images (batch, ...), uint8 or float32 as the file was written; width: 'W4A4'."""
        if width is None and self.switches:
            raise InputError(f"this file has several widths. Give one of {', '.join(self.widths)}.")
        feed = {IMAGES: np.ascontiguousarray(images)}
        if width is not None:
            one_of("width", width, self.widths)
        if self.switches and width is not None:
            feed[BITS] = np.array(self.keys[width], dtype=np.int64)
        (logits,) = self.session.run(None, feed)
        return logits


def operators(path: Path | str) -> dict[str, int]:
    """How many nodes of each kind an ONNX file has, branches included."""
    import onnx

    found: dict[str, int] = {}

    def count(graph: Any) -> None:
        for node in graph.node:
            found[node.op_type] = found.get(node.op_type, 0) + 1
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    count(attribute.g)

    count(onnx.load(str(path), load_external_data=False).graph)
    return found
