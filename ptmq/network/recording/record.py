"""Recording what a network computes: every operation on tensors, in order, in place of nothing.

The network runs on real images, and each operation that Python hands to torch is written down. So whatever the
network does in Python is followed (sizes, conditions, shared modules, wrapped functions), and only the arithmetic
stays. Weights and what is computed from them alone are constants. A write into a tensor becomes a new value: who reads
the tensor, or a view of it, afterwards reads that value.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from types import FunctionType
from typing import Any
from weakref import ReferenceType

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ptmq.common.errors import InputError
from ptmq.network.recording.attention import TAKEN_APART
from ptmq.network.recording.prepare import result_of

# a number that Python decides by: of images, it would be that of the images recorded
DECIDES = ("__bool__", "__int__", "__float__", "__index__", "__complex__", "item", "tolist", "numpy", "__array__")
AS = {"reshape_as": "reshape", "view_as": "view", "expand_as": "expand"}
SAME = ("detach", "requires_grad_", "detach_", "data")  # the same values under another name


@dataclass(frozen=True)
class Ref:
    """The output of a call; `position` where it gives several tensors. The images are the output of call -1."""

    call: int
    position: int | None = None


@dataclass(frozen=True)
class Entry:
    """A module at work: its name in the network, its type, and the how manieth call of any module this is."""

    name: str
    type: type
    number: int


@dataclass
class Call:
    """One operation. args, kwargs: as given, tensors that were computed replaced by a Ref · out: what it gave.

    Of what varies with the images the shapes are kept (on the device "meta"), of constants the values.
    """

    function: Callable | str
    args: tuple
    kwargs: dict[str, Any]
    out: Any
    inside: tuple[Entry, ...]  # the modules at work, outermost first


@dataclass(eq=False)
class Known:
    """A tensor that a call gave, as long as the network holds it.

    ref: None where it was changed in a way that is not followed · base: what it is a view of, and `view` how.
    """

    held: "ReferenceType[Tensor]"
    ref: Ref | None
    varies: bool  # with the images; else it is a constant
    base: "Known | None" = None
    view: tuple[Callable, tuple, dict[str, Any], int | None] | None = None
    kept: Tensor | None = None  # the tensor of the base, while this view of it is held

    @property
    def tensor(self) -> Tensor:
        """The tensor itself."""
        tensor = self.held()
        assert tensor is not None
        return tensor


@dataclass
class Recording:
    """All calls of one forward pass, and its result."""

    calls: list[Call] = field(default_factory=list)
    result: Any = None


def put_item(x: Tensor, index: Any, value: Any) -> Tensor:
    """A copy of x with x[index] = value."""
    x = x.clone()
    x[index] = value
    return x


def written(x: Tensor, method: str, *args: Any, **kwargs: Any) -> Tensor:
    """A copy of x after a method that changes it."""
    x = x.clone()
    getattr(x, method)(*args, **kwargs)
    return x


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of nested tuples, lists, dicts and slices."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        value = list(value.values())
    elif isinstance(value, slice):
        value = [value.start, value.stop, value.step]
    if isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Nested tuples, lists, dicts and slices with `change` done to all that they hold."""
    inner = partial(mapped, change=change)
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(map(inner, value))
    if isinstance(value, dict):
        return {key: inner(item) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(inner(value.start), inner(value.stop), inner(value.step))
    return change(value)


class Recorder(TorchFunctionMode):
    """Writes down what is computed while it is active."""

    def __init__(self, images: Tensor, values: bool):
        super().__init__()
        self.recording, self.values = Recording(), values
        self.known: dict[int, Known] = {}  # by id of the tensor
        self.in_storage: dict[int, dict[int, Known]] = {}  # those that share memory, by id
        self.inside: list[Entry] = []
        self.entered = 0
        self.other_names: dict[int, tuple[Tensor, Tensor]] = {}  # of constants: the other name, the constant
        self._know(images, Ref(-1), True)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in TAKEN_APART:
            with self:
                return TAKEN_APART[func](*args, **kwargs)
        name = _name(func)
        if name in DECIDES and self._varies(args):
            raise InputError(
                f"{self._where()} decides by the values of a tensor (Tensor.{name}). Control flow that depends on "
                "tensor values must be moved out of forward()."
            )
        given = list(dict.fromkeys(tensors_in([args, kwargs])))
        before = [_version(tensor) for tensor in given]
        out = func(*args, **kwargs)
        changed = [tensor for tensor, version in zip(given, before, strict=True) if _version(tensor) != version]
        if given and given[0].is_inference() and _says_in_place(name, kwargs):
            changed = given[:1]
        if name in SAME:
            self._same(args[0], out)
        elif changed:
            self._write(func, args, kwargs, changed)
        elif any(not any(tensor is one for one in given) for tensor in tensors_in(out)):
            self._note(func, args, kwargs, out)
        return out

    # what is known of tensors

    def _known(self, tensor: Tensor) -> Known | None:
        return self.known.get(id(tensor))

    def _varies(self, value: Any) -> bool:
        known = (self._known(tensor) for tensor in tensors_in(value))
        return any(one is not None and one.varies for one in known)

    def _know(self, tensor: Tensor, ref: Ref, varies: bool, base: Known | None = None, view: Any = None) -> Known:
        key, storage = id(tensor), _storage(tensor)

        def forget(_: Any) -> None:
            self.known.pop(key, None)
            self.in_storage[storage].pop(key, None)

        known = Known(weakref.ref(tensor, forget), ref, varies, base, view, base.tensor if base else None)
        self.known[key] = self.in_storage.setdefault(storage, {})[key] = known
        return known

    def _ref(self, value: Any) -> Any:
        """What stands for a value in a call: the Ref of a computed tensor, else the value."""
        if not isinstance(value, Tensor):
            return value
        if (known := self._known(value)) is None:
            return self.other_names.get(id(value), (value, value))[1]
        if known.ref is None:
            raise InputError(
                f"{self._where()} reads a tensor that was changed in place through another view of it, which is not "
                "followed. Write the change without in-place operations."
            )
        return known.ref

    def _note(self, func: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        """Write a call down, and know its output."""
        number, varies = self._call(func, args, kwargs, out), self._varies([args, kwargs])
        single = isinstance(out, Tensor)
        for position, tensor in enumerate([out] if single else tensors_in(out)):
            place = None if single else position
            source = args[0] if args and isinstance(args[0], Tensor) else None
            base = self._known(source) if source is not None and _storage(source) == _storage(tensor) else None
            self._know(tensor, Ref(number, place), varies, base, (func, args[1:], kwargs, place) if base else None)

    def _call(self, func: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> int:
        value = self.values or not self._varies([args, kwargs])
        if value:
            out = mapped(out, lambda one: one.clone() if isinstance(one, Tensor) else one)  # it may be written into
        else:
            out = mapped(out, lambda one: torch.empty_like(one, device="meta") if isinstance(one, Tensor) else one)
        function, args, kwargs = _canonical(func, args, kwargs)
        call = Call(function, mapped(args, self._ref), mapped(kwargs, self._ref), out, tuple(self.inside))
        self.recording.calls.append(call)
        return len(self.recording.calls) - 1

    def _same(self, source: Tensor, out: Tensor) -> None:
        """`out` is `source` under another name."""
        known = self._known(source)
        if known is None:
            self.other_names[id(out)] = out, self._ref(source)
        elif out is not source and known.ref is not None:
            self._know(out, known.ref, known.varies)

    # writes

    def _write(self, func: Any, args: tuple, kwargs: dict[str, Any], changed: list[Tensor]) -> None:
        """A call that changes a tensor becomes one that gives a new value, which others that share its memory read."""
        target = changed[0]
        if target is not (args[0] if args else None) or len({_storage(tensor) for tensor in changed}) > 1:
            raise InputError(
                f"{self._where()} writes into a tensor by {_name(func)}(out=...) or the like, which is not followed. "
                "Give the result a name of its own."
            )
        name = _name(func)
        if name == "__setitem__" and self._is_there(*args):
            return
        plain = getattr(torch.Tensor, name.removesuffix("_"), None) if name.endswith("_") else None
        if name == "__setitem__":
            func = put_item
        elif name.endswith("_") and not name.endswith("__"):
            home = torch if getattr(torch, name, None) is func else torch.nn.functional
            if getattr(torch.Tensor, name, None) is not func and hasattr(home, name.removesuffix("_")):
                func = getattr(home, name.removesuffix("_"))
            elif plain is not None:
                func = plain
            else:
                func, args = written, (args[0], name, *args[1:])
        new, varies = Ref(self._call(func, args, kwargs, target)), self._varies([args, kwargs])
        known = self._known(target) or self._know(target, new, varies)
        known.ref, known.varies = new, varies
        self._propagate(known)

    def _is_there(self, target: Tensor, index: Any, value: Any) -> bool:
        """Whether target[index] = value writes what is there: x[i] += 1 adds in place, and then sets the item."""
        if not isinstance(value, Tensor) or _storage(value) != _storage(target):
            return False
        return _geometry(target[index]) == _geometry(value)

    def _propagate(self, known: Known) -> None:
        """Bring all that share the memory of a changed tensor up to date."""
        sharing = self.in_storage[_storage(known.tensor)]
        fresh = {id(known)}
        child = known
        while child.base is not None:  # upwards: what it is a view of
            child.base.ref, child.base.varies = self._scattered(child), child.base.varies or child.varies
            child = child.base
            fresh.add(id(child))
        for other in list(sharing.values()):
            if id(other) in fresh:
                continue
            if _geometry(other.tensor) == _geometry(known.tensor):
                other.ref, other.varies = known.ref, known.varies
            elif other.base is not None and id(other.base) in fresh and other.view and other.base.ref is not None:
                func, args, kwargs, position = other.view  # downwards: made again of the new value
                out = func(other.base.tensor, *args, **kwargs)
                other.ref = Ref(self._call(func, (other.base.tensor, *args), kwargs, out), position)
                other.varies = other.base.varies
            else:
                other.ref = None
            fresh.add(id(other))

    def _scattered(self, view: Known) -> Ref | None:
        """The new value of what `view` is a view of; None where it is not known how to make it."""
        base = view.base
        assert base is not None and view.view is not None
        func, args, _, position = view.view
        if view.ref is None or base.ref is None:
            return None
        if view.tensor.numel() == base.tensor.numel() and view.tensor.is_contiguous() and base.tensor.is_contiguous():
            return Ref(self._call(torch.Tensor.reshape, (view.tensor, tuple(base.tensor.shape)), {}, base.tensor))
        if _name(func) == "__getitem__" and position is None:
            return Ref(self._call(put_item, (base.tensor, args[0], view.tensor), {}, base.tensor))
        return None

    # modules

    def enter(self, name: str, module: nn.Module, args: Any) -> None:
        """A module begins to work."""
        self.inside.append(Entry(name, type(module), self.entered))
        self.entered += 1

    def leave(self, module: nn.Module, args: Any, out: Any) -> None:
        """A module is done."""
        self.inside.pop()

    def _where(self) -> str:
        return f"module {self.inside[-1].name!r}" if self.inside and self.inside[-1].name else "forward()"


@contextmanager
def told_of_modules(network: nn.Module, recorder: Recorder) -> Iterator[None]:
    """While a recorder knows which module is at work."""
    hooks = []
    for name, module in network.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            hooks.append(module.register_forward_pre_hook(partial(recorder.enter, name)))
            hooks.append(module.register_forward_hook(recorder.leave, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def record(network: nn.Module, images: Tensor, values: bool = False) -> Recording:
    """What a network in inference mode computes on images, (n, ...), which stay as they are; its state may change.

    values: keep those of every call, not their shapes alone.
    """
    images = images.clone()
    recorder = Recorder(images, values)
    with told_of_modules(network, recorder), recorder:
        result = network(images)
    recorder.recording.result = recorder._ref(result_of(result))
    return recorder.recording


def _name(func: Any) -> str:
    """The name of a function, or of the property whose getter it is."""
    name = getattr(func, "__name__", type(func).__name__)
    return func.__self__.__name__ if name == "__get__" else name


def _canonical(func: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, tuple, dict[str, Any]]:
    """A method of tensors as its name, the getter of a property as getattr; a function's arguments by position."""
    name = _name(func)
    if getattr(func, "__name__", "") == "__get__":
        return getattr, (args[0], name), {}
    if name in AS and getattr(torch.Tensor, name) is func:  # another tensor's shape, not its values
        return AS[name], (args[0], tuple(args[1].shape)), {}
    method = getattr(torch.Tensor, name, None)
    if method is func or (method is not None and getattr(func, "__module__", "") == "torch._tensor"):
        return name, args, kwargs
    if isinstance(func, FunctionType):
        given = signature(func).bind(*args, **kwargs)
        if "inplace" in given.arguments:
            given.arguments["inplace"] = False
        args, kwargs = given.args, given.kwargs
    return func, args, kwargs


def _says_in_place(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether a function is one that writes, by its name; for tensors of inference mode, which have no versions."""
    return (name.endswith("_") and not name.endswith("__")) or name == "__setitem__" or bool(kwargs.get("inplace"))


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() or id(tensor)


def _geometry(tensor: Tensor) -> tuple:
    return tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
