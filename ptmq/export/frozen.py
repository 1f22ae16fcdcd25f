"""The numbers of a calibrated model at one width, as integer kernels take them, and the same model made of them.

`simulate` is what an exported file is held against: in float64 its rounding errors are out of sight.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ptmq.common.bits import FP, BitWidth
from ptmq.network.layers import GridLayer, QuantizedLayer
from ptmq.network.model import MultiBitModel
from ptmq.quantization.activation_quantizer import RELUS, ActivationQuantizer
from ptmq.quantization.fake_quantization import largest_code

LARGEST_BIAS = 2**31 - 1


@dataclass(frozen=True)
class Grid:
    """The grid of an activation, and the codes that are used of it: those within its width, and its ReLU's bounds."""

    step: Tensor  # (), float32
    zero: int
    low: int
    high: int

    @property
    def fits(self) -> bool:
        """Whether an unsigned byte holds the zero point."""
        return 0 <= self.zero <= largest_code(8)


class FrozenQuantizer(nn.Module):
    """An activation quantizer at one width. grid: None where that is floating point."""

    step: Tensor

    def __init__(self, quantizer: ActivationQuantizer, activation_bits: int):
        super().__init__()
        bits = quantizer.fixed if quantizer.fixed and activation_bits != FP else activation_bits
        self.relu: Callable | None = quantizer.relu
        self.bounds = None if quantizer.relu is None else RELUS[quantizer.relu]
        self.grid: Grid | None = None
        if bits == FP:
            return
        step = quantizer.step[str(bits)].detach().float().reshape(())
        zero, high = int(quantizer.zero_point[quantizer.widths.index(bits)]), largest_code(bits)
        low = 0
        if self.bounds is not None:
            low, high = (torch.round(torch.tensor(self.bounds) / step) + zero).clamp(0, high).int().tolist()
        self.grid = Grid(step, zero, low, high)
        self.register_buffer("step", step)

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape on its grid, of the same shape."""
        if self.grid is None:
            return x if self.relu is None else self.relu(x)
        codes = torch.clamp(torch.round(x / self.step) + self.grid.zero, self.grid.low, self.grid.high)
        return (codes - self.grid.zero) * self.step


class FrozenLayer(nn.Module):
    """A layer at the width that is selected: its weight is (codes - zero) * scale.

    codes: uint8, (out, in, ...); None at a floating-point width, where `weight` is the weight · zero, scale: (out,),
    the correction's gain included · bias: (out,) or None · bias_codes: int32, (out,), where the bias is that many times
    `bias_scale` · why_float: why no integer kernel can compute the layer, where none can.
    """

    codes: Tensor | None
    weight: Tensor | None
    zero: Tensor
    scale: Tensor
    bias: Tensor | None
    bias_codes: Tensor | None
    bias_scale: Tensor

    def __init__(self, layer: GridLayer):
        super().__init__()
        self.kind, self.moves, self.computation = layer.kind, layer.moves, layer.computation
        self.bits, self.why_float = layer.quantizer.bits, ""
        codes = weight = bias_codes = None
        bias: Tensor | None = layer.bias
        factor: Tensor | float = 1.0
        if layer.correction is not None and (selected := layer.correction.selected):
            shift, factor = layer.correction.shift[selected], layer.correction.factor()
            bias = shift if bias is None else bias + shift
        if self.bits == FP:
            weight = layer.weight.clone()
        else:
            step, zero = layer.quantizer.grid(self.bits)
            codes = layer.quantizer.codes(layer.weight, self.bits).contiguous()
            self.register_buffer("zero", zero.flatten().clone())
            self.register_buffer("scale", step.flatten() * factor)
        bias_scale = None if layer.bias_grid is None else layer.bias_grid.step_size(layer)
        if bias is not None and bias_scale is not None:
            wide = torch.round(bias / bias_scale).double()
            bias_codes = wide.clamp(-LARGEST_BIAS, LARGEST_BIAS).to(torch.int32)
            if wide.abs().max() > LARGEST_BIAS:
                self.why_float, bias_codes = "its bias does not fit 32 bits", None
        for name, value in (("codes", codes), ("weight", weight), ("bias", bias), ("bias_codes", bias_codes)):
            self.register_buffer(name, value)
        self.register_buffer("bias_scale", bias_scale)
        if codes is not None and not self.fits():
            self.why_float = "its codes minus their zero points do not fit a signed byte"

    def fits(self) -> bool:
        """Whether a signed byte holds every code minus its zero point."""
        values = self.values()
        return bool((values == values.round()).all() and values.min() >= -128 and values.max() <= 127)

    def values(self) -> Tensor:
        """Codes minus zero points, in floating point, of the weight's shape."""
        assert self.codes is not None
        return self.codes.to(self.scale.dtype) - self.per_channel(self.zero)

    def per_channel(self, numbers: Tensor) -> Tensor:
        """(out,) -> (out, 1, ...), to broadcast against the weight."""
        assert self.codes is not None
        return numbers.view(-1, *[1] * (self.codes.dim() - 1))

    def full_weight(self) -> Tensor:
        """The weight (out, in, ...) in floating point."""
        return self.weight if self.weight is not None else self.values() * self.per_channel(self.scale)

    def full_bias(self) -> Tensor | None:
        """The bias (out,) in floating point."""
        return self.bias if self.bias_codes is None else self.bias_codes.to(self.bias_scale.dtype) * self.bias_scale

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, ...) -> (batch, out, ...)."""
        return self.computation(x, self.full_weight(), self.full_bias())


Frozen = dict[str, FrozenQuantizer | FrozenLayer]


@torch.no_grad()
def frozen(model: MultiBitModel, width: BitWidth) -> Frozen:
    """All layers and quantizers of a model at a width, by name; the model keeps the width that it has."""
    found: Frozen = {}
    for unit in model.units:
        for name, module in unit.graph.named_modules():
            if isinstance(module, QuantizedLayer):
                with _at(module, width):
                    found[name] = FrozenLayer(module)
            elif isinstance(module, ActivationQuantizer):
                found[name] = FrozenQuantizer(module, width.activation)
    return found


@contextmanager
def _at(layer: GridLayer, width: BitWidth) -> Iterator[None]:
    """A layer at a width for a while."""
    bits, entering = layer.bits, layer.activation_bits
    selected = None if layer.correction is None else layer.correction.selected
    layer.set_width(width)
    yield
    layer.set_bits(bits)
    layer.activation_bits = entering
    if layer.correction is not None:
        layer.correction.selected = selected


def rebuilt(model: MultiBitModel, replaced: dict[str, nn.Module]) -> nn.Sequential:
    """The network of a model with other modules in the places named."""
    units = []
    for unit in model.units:
        own = {str(node.target): unit.graph.get_submodule(str(node.target))
               for node in unit.graph.graph.nodes if node.op == "call_module"}  # fmt: skip
        constants = {str(node.target): _attribute(unit.graph, str(node.target))
                     for node in unit.graph.graph.nodes if node.op == "get_attr"}  # fmt: skip
        units.append(fx.GraphModule({**own, **constants, **{k: v for k, v in replaced.items() if k in own}},
                                    copy.deepcopy(unit.graph.graph)))  # fmt: skip
    return nn.Sequential(*units).eval()


def _attribute(graph: nn.Module, name: str) -> object:
    owner, _, last = name.rpartition(".")
    return getattr(graph.get_submodule(owner), last)


def simulate(model: MultiBitModel, width: BitWidth) -> nn.Module:
    """What an exported file of the model at `width` is to compute, in float64: (batch, ...) -> (batch, classes).

    Codes and step sizes are those of float32: they decide, and rounding errors behind them do not.
    """
    network = copy.deepcopy(rebuilt(model, dict(frozen(model, width))))
    return network.double().requires_grad_(False)
