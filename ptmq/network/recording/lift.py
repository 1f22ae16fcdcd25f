"""Layers, norms and dropouts of operations whose weights are constant: what `F.conv2d(x, weight)` is as a module."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmq.common.errors import InputError

CONVOLUTIONS: dict[Callable, type[nn.Module]] = {F.conv1d: nn.Conv1d, F.conv2d: nn.Conv2d, F.conv3d: nn.Conv3d}
TRANSPOSED: dict[Callable, type[nn.Module]] = {
    F.conv_transpose1d: nn.ConvTranspose1d,
    F.conv_transpose2d: nn.ConvTranspose2d,
    F.conv_transpose3d: nn.ConvTranspose3d,
}
DROPOUTS: dict[Callable, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}
PRODUCTS = ("matmul", "__matmul__", torch.matmul, operator.matmul)
ARGUMENTS: dict[Any, tuple[str, ...]] = {
    F.linear: ("input", "weight", "bias"),
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    F.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    **dict.fromkeys(CONVOLUTIONS, ("input", "weight", "bias", "stride", "padding", "dilation", "groups")),
    **dict.fromkeys(
        TRANSPOSED, ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    ),
    **dict.fromkeys(DROPOUTS, ("input", "p", "training")),
    **dict.fromkeys(PRODUCTS, ("input", "weight")),
}


def bound(function: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of one of ARGUMENTS, by name."""
    return dict(zip(ARGUMENTS[function], args, strict=False)) | kwargs


def layer_of(function: Any, given: dict[str, Any], dimensions: int, where: str) -> nn.Module | None:
    """The module of an operation of ARGUMENTS; None where it is none after all.

    given: its arguments, constants as tensors · dimensions: of its output · where: it is computed, for messages.
    """
    given = {name: value for name, value in given.items() if name != "input"}
    if function in CONVOLUTIONS or function in TRANSPOSED:
        return _convolution((CONVOLUTIONS | TRANSPOSED)[function], **given)
    if function is F.batch_norm:
        return _batch_norm(dimensions, where, **given)
    if function is F.layer_norm:
        return _layer_norm(**given)
    if function in DROPOUTS:
        return _dropout(DROPOUTS[function], **given)
    weight = given["weight"]
    if weight.dim() != 2:
        return None
    return _linear(weight.T) if function in PRODUCTS else _linear(**given)


def _parameter(value: Tensor) -> nn.Parameter:
    """A copy that learns as the given one does."""
    return nn.Parameter(value.detach().clone(), value.requires_grad or not isinstance(value, nn.Parameter))


def _fill(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Give a layer on no device its parameters."""
    layer.register_parameter("weight", _parameter(weight))
    layer.register_parameter("bias", None if bias is None else _parameter(bias))
    return layer.eval()


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    return _fill(nn.Linear(weight.shape[1], weight.shape[0], device="meta"), weight, bias)


def _convolution(kind: type, weight: Tensor, bias: Tensor | None = None, **how: Any) -> nn.Module:
    groups = how.get("groups", 1)
    first, second = (weight.shape[1] * groups, weight.shape[0]) if kind in CONVOLUTIONS.values() else (
        weight.shape[0], weight.shape[1] * groups)  # fmt: skip
    return _fill(kind(first, second, tuple(weight.shape[2:]), **how, device="meta"), weight, bias)


def _layer_norm(
    normalized_shape: tuple[int, ...], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> nn.Module | None:  # fmt: skip
    if weight is None and bias is None:
        return None
    return _fill(
        nn.LayerNorm(list(normalized_shape), eps, device="meta"),
        torch.ones(normalized_shape) if weight is None else weight,
        bias,
    )


def _dropout(kind: type, p: float = 0.5, training: bool = True) -> nn.Module | None:
    return None if training else kind(p).eval()


def _batch_norm(
    dimensions: int, where: str, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> nn.Module:  # fmt: skip
    """A BatchNorm at inference."""
    if running_mean is None or running_var is None or training:
        raise InputError(
            f"{where}: a BatchNorm without running statistics gives every image a result that depends on the others. "
            "Use track_running_stats=True."
        )
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    affine = weight is not None or bias is not None
    norm = kinds[dimensions](len(running_mean), eps, momentum, affine, device="meta")
    norm.running_mean, norm.running_var = running_mean.clone(), running_var.clone()
    norm.num_batches_tracked = torch.zeros((), dtype=torch.long)
    if affine:
        norm.weight = _parameter(torch.ones_like(running_mean) if weight is None else weight)
        norm.bias = _parameter(torch.zeros_like(running_mean) if bias is None else bias)
    return norm.eval()
