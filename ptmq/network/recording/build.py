"""A torch.fx graph of two recordings of one network, with 2 and with 3 images.

What differs between the two is the number of images, and stays open; all else is constant. Operations with a weight
that is constant, however it is computed, become layers again, named by the parameter that the weight comes from: one
layer a call.
"""

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ptmq.common.errors import InputError
from ptmq.network.recording.lift import ARGUMENTS, PRODUCTS, bound, layer_of
from ptmq.network.recording.record import Call, Recording, Ref, mapped, tensors_in

COUNTS = 2, 3  # images of the two recordings

MADE = (torch.zeros, torch.ones, torch.full, torch.empty, torch.arange, torch.linspace, torch.eye)  # of nothing


@dataclass(frozen=True)
class Images:
    """`times` the number of images."""

    times: int


@dataclass(frozen=True)
class Constant:
    """A tensor that does not vary with the images, and the parameters that it comes from."""

    value: Tensor
    origins: frozenset[str]


class Builder:
    """The graph while it is made. names: of the parameters and buffers, by id, of the network recorded first."""

    def __init__(self, first: Recording, second: Recording, network: nn.Module):
        self.first, self.second = first, second
        self.state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        self.names = {id(tensor): name for name, tensor in self.state.items()}
        self.root, self.graph = nn.Module(), fx.Graph()
        self.images = self.graph.placeholder("images")
        self.nodes: dict[Ref, fx.Node] = {Ref(-1): self.images}
        self.of_images: dict[Any, fx.Node] = {}  # their number, multiples of that, their device
        self.varies: list[bool] = []  # of every call
        self.constants: dict[Ref, Constant] = {}
        self.attributes: dict[int, fx.Node] = {}
        self.taken: set[str] = set()  # names of layers

    def build(self) -> fx.GraphModule:
        """The graph of all calls that the result depends on."""
        if len(self.first.calls) != len(self.second.calls):
            raise InputError("what forward() computes depends on the number of images.")
        calls = zip(self.first.calls, self.second.calls, strict=True)
        for number, (call, other) in enumerate(calls):
            args = self._merge(call.args, other.args, call)
            kwargs = self._merge(call.kwargs, other.kwargs, call)
            self.varies.append(any(self._open(value) for value in _leaves([args, kwargs])))
            if self.varies[-1]:
                self._emit(number, call, other, *_positional(call.function, args, kwargs))
            else:
                self._constant(number, call, other, [args, kwargs])
        result = self._merge(self.first.result, self.second.result, None)
        if not isinstance(result, Ref) or not self._open(result):
            raise InputError("the network's result does not depend on the images.")
        self.graph.output(self._node(result))
        module = fx.GraphModule(self.root, self.graph)
        module.graph.eliminate_dead_code()
        _mark_of_images(module.graph)
        module.delete_all_unused_submodules()
        module.recompile()
        module.meta["parameters"] = {n: p.numel() for n, p in self.state.items() if isinstance(p, nn.Parameter)}
        return module

    # the two recordings as one

    def _merge(self, one: Any, two: Any, call: Call | None) -> Any:
        """What both recordings say, with the number of images where they differ."""
        if isinstance(one, dict) and isinstance(two, dict) and list(one) == list(two):
            return {key: self._merge(one[key], two[key], call) for key in one}
        if isinstance(one, list | tuple) and isinstance(two, list | tuple) and len(one) == len(two):
            return type(one)([self._merge(a, b, call) for a, b in zip(one, two, strict=True)])
        if isinstance(one, slice) and isinstance(two, slice):
            ends = ((getattr(one, end), getattr(two, end)) for end in ("start", "stop", "step"))
            return slice(*(self._merge(a, b, call) for a, b in ends))
        if isinstance(one, Tensor) and isinstance(two, Tensor):
            if id(one) not in self.names and not same(one, two):
                raise InputError(
                    f"{where(call)} computes a tensor in a way that is not followed, such as a scripted function or "
                    "one of another library. Compute it with the functions of torch."
                )
            return one
        number = isinstance(one, int) and isinstance(two, int) and not isinstance(one, bool)
        if number and one != two and one == (two - one) * COUNTS[0]:
            return Images(two - one)
        if one != two and not (one != one and two != two):
            raise InputError(
                f"{where(call)} depends on the number of images: {one!r} for {COUNTS[0]} images, {two!r} for "
                f"{COUNTS[1]}. Only multiples of it are followed."
            )
        return one

    def _open(self, value: Any) -> bool:
        """Whether a value varies with the images."""
        if isinstance(value, Ref):
            return value.call < 0 or self.varies[value.call]
        return isinstance(value, Images)

    def _constant(self, number: int, call: Call, other: Call, given: Any) -> None:
        """Keep what a call gives that does not vary."""
        origins = frozenset(name for value in _leaves(given) for name in self._origins(value))
        outs = zip(tensors_in(call.out), tensors_in(other.out), strict=True)
        for position, (one, two) in enumerate(outs):
            place = None if isinstance(call.out, Tensor) else position
            self.constants[Ref(number, place)] = Constant(one, origins)
            if not same(one, two):
                raise InputError(f"{where(call)} computes at random: what it gives differs from call to call.")

    def _origins(self, value: Any) -> frozenset[str]:
        if isinstance(value, Tensor):
            return frozenset([self.names[id(value)]] if id(value) in self.names else [])
        return self.constants[value].origins if isinstance(value, Ref) and value in self.constants else frozenset()

    def _constant_of(self, value: Any) -> Constant | None:
        """The constant that an argument stands for, None where it is none."""
        if isinstance(value, Tensor):
            return Constant(value, self._origins(value))
        return self.constants.get(value) if isinstance(value, Ref) else None

    # nodes

    def _emit(self, number: int, call: Call, other: Call, args: tuple, kwargs: dict[str, Any]) -> None:
        """The node of a call that varies: of a layer, where it computes with a constant weight."""
        node = self._lifted(call, args, kwargs) if call.function in ARGUMENTS else None
        if node is None:
            if call.function in MADE:
                kwargs = {"device": torch.device("cpu"), **kwargs}
            args, kwargs = mapped(args, self._argument), mapped(kwargs, self._argument)
            if call.function == "__getitem__":
                node = self.graph.call_function(operator.getitem, args, kwargs)
            else:
                op = "call_method" if isinstance(call.function, str) else "call_function"
                node = self.graph.create_node(op, _in_any_layout(call), args, kwargs, name=_leaf_name(call))
        outs = zip(tensors_in(call.out), tensors_in(other.out), strict=True)
        node.meta["inside"] = call.inside
        for position, (one, two) in enumerate(outs):
            single = isinstance(call.out, Tensor)
            ref = Ref(number, None if single else position)
            self.nodes[ref] = node if single else self.graph.call_function(operator.getitem, (node, position))
            shape = tuple(one.shape)
            per_image = one.dim() > 0 and (len(one), len(two)) == COUNTS and one.shape[1:] == two.shape[1:]
            self.nodes[ref].meta |= {"inside": call.inside, "shape": shape, "per_image": per_image, "ref": ref}

    def _node(self, value: Ref) -> fx.Node:
        return self.nodes[value] if value in self.nodes else self._attribute(self.constants[value])

    def _argument(self, value: Any) -> Any:
        """What stands for a value in a node."""
        if isinstance(value, Ref):
            return self._node(value)
        if isinstance(value, Tensor):
            return self._attribute(Constant(value, self._origins(value)))
        return self._of_images(value) if isinstance(value, Images | torch.device) else value

    def _of_images(self, value: Any) -> fx.Node:
        """The number of images times a factor, or their device."""
        if value not in self.of_images:
            if isinstance(value, torch.device):
                node = self.graph.call_function(getattr, (self.images, "device"))
            elif value.times == 1:
                node = self.graph.call_method("size", (self.images, 0))
            else:
                node = self.graph.call_function(operator.mul, (self._of_images(Images(1)), value.times))
            node.meta |= {"inside": (), "of_images": True}
            self.of_images[value] = node
        return self.of_images[value]

    def _attribute(self, constant: Constant) -> fx.Node:
        """A node that gives a constant, which the graph holds."""
        if id(constant.value) not in self.attributes:
            name = self._unique("_".join((self.names.get(id(constant.value)) or "constant").split(".")))
            if isinstance(constant.value, nn.Parameter):
                self.root.register_parameter(name, constant.value)
            else:
                self.root.register_buffer(name, constant.value)
            node = self.graph.get_attr(name)
            node.meta |= {"inside": (), "origins": {"value": constant.origins}}
            self.attributes[id(constant.value)] = node
        return self.attributes[id(constant.value)]

    def _unique(self, name: str) -> str:
        """The name, with a number where it is taken, or where it would lie within another or around it."""
        found, number = name, 1
        while any(f"{found}.".startswith(f"{other}.") or f"{other}.".startswith(f"{found}.") for other in self.taken):
            number += 1
            found = f"{name}_{number}"
        self.taken.add(found)
        return found

    # layers

    def _lifted(self, call: Call, args: tuple, kwargs: dict[str, Any]) -> fx.Node | None:
        """The node of a layer, a norm or a dropout; None of what is none of these."""
        given = bound(call.function, args, kwargs)
        if not self._open(given["input"]):
            return None
        tensors = {name: value for name, value in given.items() if isinstance(value, Ref | Tensor) and name != "input"}
        constants = {name: self._constant_of(value) for name, value in tensors.items()}
        found = {name: constant for name, constant in constants.items() if constant is not None}
        if len(found) < len(tensors):
            return None
        values = {name: constant.value for name, constant in found.items()}
        layer = layer_of(call.function, given | values, call.out.dim(), where(call))
        if layer is None:
            return None
        if "running_mean" in given:
            self._count_batches(given["running_mean"], layer)
        name = self._unique(self._layer_name(call, found))
        _add_submodule(self.root, name, layer)
        node = self.graph.call_module(name, (self._node(given["input"]),))
        node.meta["origins"] = {name: constant.origins for name, constant in found.items()}
        return node

    def _count_batches(self, running_mean: Any, norm: nn.Module) -> None:
        """Give a norm the counter that it has in the network."""
        name = self.names.get(id(running_mean), "").removesuffix("running_mean") + "num_batches_tracked"
        if name in self.state:
            norm.num_batches_tracked = self.state[name].clone()

    def _layer_name(self, call: Call, constants: dict[str, Constant]) -> str:
        """Of the parameter that the layer's weight comes from: 'conv1' of 'conv1.weight'; else of the module."""
        weight = constants.get("weight") or constants.get("running_mean")
        shape = weight.value.numel() if weight else 0
        origins = sorted(weight.origins if weight else (), key=lambda name: (self.state[name].numel() != shape, name))
        if not origins:
            return call.inside[-1].name if call.inside and call.inside[-1].name else "layer"
        owner, _, own = origins[0].rpartition(".")
        owner = owner.partition(".parametrizations.")[0]
        for suffix in ("weight", "running_mean", "original", "original0", "original1", "weight_v", "weight_orig"):
            if own == suffix:
                return owner or own
        own = own.removesuffix("_weight")
        return f"{owner}.{own}" if owner else own


def _mark_of_images(graph: fx.Graph) -> None:
    """Mark what depends on the number of images alone, such as a class token for each; not what a layer reads."""
    for node in graph.nodes:
        made_of = [source for source in node.all_input_nodes if source.op != "get_attr"]
        alone = all(source.meta.get("of_images") for source in made_of)
        if node.op in ("call_function", "call_method") and made_of and alone:
            node.meta["of_images"] = True
    for node in reversed(graph.nodes):
        reads = node.op == "call_module" or node.target in (*PRODUCTS, torch.einsum, torch.bmm, "bmm")
        if reads or (node.op != "output" and "unmarked" in node.meta):
            for source in node.all_input_nodes:
                if source.meta.get("of_images") and "shape" in source.meta:
                    source.meta |= {"of_images": False, "unmarked": True}


def _add_submodule(root: nn.Module, name: str, module: nn.Module) -> None:
    """Add a module under a dotted name."""
    *parents, own = name.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = getattr(root, parent)
    root.add_module(own, module)


def _leaves(value: Any) -> Iterable[Any]:
    """All that nested containers hold."""
    found: list[Any] = []
    mapped(value, found.append)
    return found


def _positional(function: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The arguments with the input as the first of them, not as a keyword."""
    if not args:
        for name in ("input", "tensors", "self", "tensor"):
            if name in kwargs:
                return (kwargs[name],), {key: value for key, value in kwargs.items() if key != name}
    return args, kwargs


def _in_any_layout(call: Call) -> Callable | str:
    """The operation; a view, if not of another type, as a reshape: features may lie otherwise than those recorded."""
    types = any(isinstance(argument, torch.dtype) for argument in (*call.args, *call.kwargs.values()))
    return "reshape" if call.function == "view" and not types else call.function


def _leaf_name(call: Call) -> str | None:
    """A node's name where one of torch's own modules computes: 'layer1_0_relu'; None for that of the function."""
    innermost = call.inside[-1] if call.inside else None
    if innermost is None or not innermost.name or not innermost.type.__module__.startswith("torch.nn"):
        return None
    return innermost.name.replace(".", "_")


def same(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors hold the same values."""
    if one.is_floating_point():
        one, two = one.nan_to_num(), two.nan_to_num()
    return one.dtype == two.dtype and torch.equal(one, two)


def where(call: Call | None) -> str:
    """The module in which a call is made."""
    name = call.inside[-1].name if call is not None and call.inside else ""
    return f"module {name!r}" if name else "forward()"
