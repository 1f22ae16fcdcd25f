"""MultiBitModel: one calibrated network that switches its bit-widths at run time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, fx, nn

from ptmq.common.bits import FP, FULL_PRECISION, BitWidth
from ptmq.common.device import images_at_a_time, joined
from ptmq.common.errors import InputError, one_of
from ptmq.network.cut import to_layers, to_units
from ptmq.network.graph.coverage import Coverage
from ptmq.network.layers import GridLayer, QuantizedLayer
from ptmq.network.place import Edge, QuantizationSpec
from ptmq.network.recording.prepare import example_for
from ptmq.quantization.activation_quantizer import ActivationQuantizer
from ptmq.quantization.quantizer import ChannelCorrection, Quantizer
from ptmq.quantization.step_size import Histogram


class Unit(nn.Module):
    """A reconstruction unit: the stem, one block or the head; one tensor in, one tensor out."""

    def __init__(self, name: str, graph: fx.GraphModule):
        super().__init__()
        self.name, self.graph = name, graph
        self.is_edge = isinstance(name, Edge)  # a stem or a head
        self.channel_axis: int = graph.meta["channel_axis"]  # of its output
        self.layers: list[GridLayer] = [m for m in graph.modules() if isinstance(m, QuantizedLayer)]
        self.quantizers = [m for m in graph.modules() if isinstance(m, ActivationQuantizer)]

    def forward(self, x: Tensor) -> Tensor:
        return self.graph(x)

    @property
    def corrections(self) -> dict[GridLayer, ChannelCorrection]:
        """The layers that have a correction, each with it."""
        return {layer: layer.correction for layer in self.layers if layer.correction is not None}

    @property
    def output_quantizer(self) -> ActivationQuantizer | None:
        """The quantizer that puts out what the unit puts out, where there is one."""
        (output,) = self.graph.graph.output_node().all_input_nodes
        last = self.graph.get_submodule(str(output.target)) if output.op == "call_module" else None
        return last if isinstance(last, ActivationQuantizer) else None

    @property
    def device(self) -> torch.device:
        """Where the unit computes."""
        return next(chain(self.parameters(), self.buffers())).device

    def set_bits(self, width: BitWidth) -> None:
        """Select the width of every layer and quantizer of this unit."""
        for layer in self.layers:
            layer.set_width(width)
        for quantizer in self.quantizers:
            quantizer.set_bits(width.activation)

    def by_layer(self) -> "list[Unit]":
        """Every layer with the activation function and quantizer that directly follow, as units of the same modules."""
        return [Unit(name, graph) for name, graph in to_layers(self.graph)]


class Switchable(nn.Module):
    """A network that switches between bit-widths: (batch, ...) images -> (batch, classes) logits.

    widths: what it can take · spec: how the network is quantized · image_shape: of one image · rows: of its coverage ·
    modes: its ways to run at a width, each evaluated; '' is the one that counts · recalibrated: whether the mode that
    is set needs BatchNorm re-estimated at every switch · description: what a folder says of it, see `ptmq.api`.
    """

    widths: tuple[BitWidth, ...]
    spec: QuantizationSpec
    image_shape: tuple[int, ...]
    rows: Coverage
    description: dict[str, Any] | None = None
    modes: ClassVar[tuple[str, ...]] = ("",)
    recalibrated = False

    def set_bits(self, weight: int, activation: int) -> None:
        """Switch the whole network to `weight` and `activation` bits; 32 is floating point."""
        raise NotImplementedError

    def set_mode(self, mode: str) -> None:
        """Take one of `modes`."""

    def bits_per_weight(self) -> float:
        """Bits that a weight takes for all widths together; here it is stored in FP32."""
        return 32.0

    def coverage(self) -> Coverage:
        """What is quantized, and why the rest is not: rows of (layer, kind, parameters, bits, reason)."""
        return self.rows


def known_width(widths: Sequence[BitWidth], weight: int, activation: int) -> BitWidth:
    """The two as a width. Raises InputError where either is in none of `widths` and not 32."""
    known_w, known_a = {w.weight for w in widths} | {FP}, {w.activation for w in widths} | {FP}
    width = BitWidth(weight, activation)
    if weight not in known_w or activation not in known_a:
        raise InputError(
            f"width {width} was not calibrated. Weight bits: {sorted(known_w)}; activation bits: {sorted(known_a)}."
        )
    return width


class MultiBitModel(Switchable):
    """A network cut into quantized units: (batch, ...) images -> (batch, classes) logits.

    network: a trained FP network; it is not changed · spec: its blocks, widths and edges · example: images that it
    takes, (n, ...), see `ptmq.network.trace.trace`. It computes in float32, on the network's device. Raises InputError
    where the network cannot be followed, leaves weights out that `spec` does not name, or is not the same afterwards.
    """

    def __init__(self, network: nn.Module, spec: QuantizationSpec, example: Tensor | None = None):
        super().__init__()
        self.spec, self.widths = spec, tuple(spec.widths)
        example = example_for(network, example)
        self.image_shape = tuple(example.shape[1:])
        found = to_units(network, spec, example)
        self.rows = found[0][1].meta["coverage"]
        units = nn.ModuleList(Unit(name, graph) for name, graph in found)
        self.units = cast(Sequence[Unit], units)  # torch knows its items as modules only
        self.requires_grad_(False)
        self.to(next((parameter.device for parameter in network.parameters()), None))
        self.set_bits(FP, FP)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        try:
            for unit in self.units:
                out = unit(out)
        except RuntimeError as error:
            self._require_shape(x, error)
            raise
        if len(out) != len(x):
            self._require_shape(x, None)
        return out

    def _require_shape(self, x: Tensor, cause: Exception | None) -> None:
        """Raise InputError where images are not of the shape that sizes in the network's graph belong to."""
        if tuple(x.shape[1:]) != self.image_shape:
            raise InputError(
                f"this model takes images of shape {self.image_shape}, those that the network was converted with. Got "
                f"{tuple(x.shape[1:])}. Convert the network again, with an example of that shape."
            ) from cause

    @property
    def layers(self) -> Iterator[GridLayer]:
        """Every quantized layer, in order."""
        return (layer for unit in self.units for layer in unit.layers)

    @property
    def quantizers(self) -> Iterator[ActivationQuantizer]:
        """Every activation quantizer, in order."""
        return (quantizer for unit in self.units for quantizer in unit.quantizers)

    def set_bits(self, weight: int, activation: int, unit: str | None = None) -> None:
        """Switch to `weight` and `activation` bits, the whole network or the one unit named.

        32 selects floating point. Nothing is re-estimated and no image is needed. Weights and activations may
        be switched apart; InputError names weight or activation bits that were not calibrated.
        """
        width = known_width(self.widths, weight, activation)
        if unit is not None:
            one_of("unit", unit, [u.name for u in self.units])
        for candidate in self.units:
            if unit in (None, candidate.name):
                candidate.set_bits(width)

    def prepare(self) -> "MultiBitModel":
        """Compute the weights of all widths now instead of at first use, so that every switch is instant."""
        for layer in self.layers:
            for bits in layer.quantizer.widths:
                layer.weight_at(bits)
        return self

    @property
    def prepared_mib(self) -> float:
        """Memory of the weights that are kept ready, in MiB."""
        return sum(w.numel() * w.element_size() for layer in self.layers for w in layer.quantizer.prepared()) / 2**20

    def bits_per_weight(self) -> float:
        """Bits that a weight takes for all widths together, averaged over the weights of all quantized layers.

        Step sizes, zero points, biases and corrections, of which there is one for each output channel, are not counted.
        """
        sizes = [layer.quantizer.shape.numel() for layer in self.layers]
        bits = (size * layer.quantizer.bits_per_weight() for size, layer in zip(sizes, self.layers, strict=True))
        return sum(bits) / sum(sizes)

    def forget(self) -> None:
        """Give the memory of prepared weights back; they are computed anew at the next use."""
        for layer in self.layers:
            layer.quantizer.forget()

    @torch.no_grad()
    def search_step_sizes(self, images: Tensor, search: str, batch_size: int = 64) -> None:
        """Find all step sizes by `search` and round weights to nearest.

        Weights by themselves; every activation on what the FP network gives for `images`.
        """
        for layer in self.layers:
            layer.search_step_sizes(search)
        x = images
        for unit in self.units:
            unit.set_bits(FULL_PRECISION)
            x, seen = observe(unit, x, batch_size, unit.quantizers)
            for quantizer, histogram in seen.items():
                quantizer.search_in(histogram, search)


def observe(
    module: nn.Module, x: Tensor, batch_size: int, quantizers: Sequence[Quantizer]
) -> tuple[Tensor, dict[Quantizer, Histogram]]:
    """The module's output for all of x, and what passes through each of some of its activation quantizers.

    x passes twice: nothing of what is inside the module is kept but its histograms.
    """
    seen = {quantizer: Histogram() for quantizer in quantizers}
    size = images_at_a_time(x.shape[1:], batch_size)
    measures = {quantizer: histogram.measure for quantizer, histogram in seen.items()}
    out = joined(_tapped(module, x, size, measures), len(x))
    for name, quantizer in module.named_modules():
        if isinstance(quantizer, Quantizer) and quantizer in seen and not seen[quantizer].is_finite:
            layer, unit = name.removeprefix("graph.").removesuffix("_quantizer"), getattr(module, "name", "network")
            raise InputError(
                f"unit {unit!r}: the activation {layer!r} is NaN or infinite on the calibration images. Check the "
                "weights and the images."
            )
    if seen:
        for _ in _tapped(module, x, size, {quantizer: histogram.count for quantizer, histogram in seen.items()}):
            pass  # the histograms are what is asked for
    return out, seen


def _tapped(
    module: nn.Module, x: Tensor, batch_size: int, taps: Mapping[Quantizer, Callable[[Tensor], None]]
) -> Iterator[Tensor]:
    """The module's output for all of x, batch by batch; taps get what passes through their quantizers."""
    hooks = [q.register_forward_hook(lambda q, args, out: taps[q](out)) for q in taps]
    try:
        yield from map(module, x.split(batch_size))
    finally:
        for hook in hooks:
            hook.remove()
