"""PTMQ and its baselines: post-training multi-bit quantization of vision networks.

The public face, loaded when it is used: `calibrate` and `convert` a network of your own, `save` and `load` the model,
`export_onnx` it.
`python -m ptmq --help` is the command line; the workflow in the Snakefile runs everything.
"""

from importlib import import_module

# by name and not by import: whoever imports a module of this package does not depend on all of it
PUBLIC = {
    "calibrate": "ptmq.api",
    "convert": "ptmq.api",
    "export_onnx": "ptmq.export.onnx_file",
    "load": "ptmq.api",
    "save": "ptmq.api",
    "BitGroups": "ptmq.common.bits",
    "BitWidth": "ptmq.common.bits",
    "InputError": "ptmq.common.errors",
    "MultiBitModel": "ptmq.network.model",
}
__all__ = [*PUBLIC]


def __getattr__(name: str) -> object:
    if name not in PUBLIC:
        raise AttributeError(f"module 'ptmq' has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])
