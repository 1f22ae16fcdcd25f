"""Units that a graph falls into by itself, cut where a person would cut it.

A *cut* is a tensor through which everything flows, with the images first. Between two cuts lies a segment, which cannot
be divided: a residual branch with its sum, say. Segments are joined along the calls of modules, from the inside out: a
call that holds two blocks or more is a container, and falls into them; another with at least two layers is a block, if
its layers do not merely form a long chain. What lies outside of blocks and has a layer is a unit of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from torch import fx, nn

from ptmq.network.recording.record import Entry

CHAIN = 4  # layers in a row, without a branch, that one unit holds at most
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def is_open(node: fx.Node) -> bool:
    """Whether a node computes with the images: not a constant, nor their number."""
    return node.op not in ("placeholder", "output", "get_attr") and not node.meta.get("of_images")


@dataclass
class Span:
    """A call of a module: the nodes start .. end, both included, and the calls inside."""

    entry: Entry
    start: int
    end: int
    inner: "list[Span]" = field(default_factory=list)


@dataclass(frozen=True)
class Block:
    """A unit: its name and its nodes start .. end, both included."""

    name: str
    start: int
    end: int


def calls_of(nodes: Sequence[fx.Node]) -> Span:
    """The tree of calls that the nodes were made in."""
    root = Span(Entry("", nn.Module, -1), 0, len(nodes) - 1)
    for position, node in enumerate(nodes):
        at = root
        inside: Sequence[Entry] = node.meta.get("inside", ())
        for entry in inside[1:]:  # the first is the network itself
            if not at.inner or at.inner[-1].entry.number != entry.number:
                at.inner.append(Span(entry, position, position))
            at = at.inner[-1]
            at.end = position
    return root


def cuts_of(nodes: Sequence[fx.Node]) -> list[bool]:
    """For each node whether everything flows through it, with the images first."""
    place = {node: position for position, node in enumerate(nodes)}
    last_use = [max((place.get(user, len(nodes)) for user in node.users), default=position)
                for position, node in enumerate(nodes)]  # fmt: skip
    (images,) = (node for node in nodes[0].graph.nodes if node.op == "placeholder")
    from_images = max((place[user] for user in images.users if user in place), default=-1)
    reached = accumulate([from_images, *last_use], max)  # by what is computed before each node
    before = list(reached)[:-1]
    return [before[p] <= p and bool(node.meta.get("per_image")) for p, node in enumerate(nodes)]


class Cutter:
    """Finds the units of a graph; `is_layer` says which nodes are layers."""

    def __init__(self, nodes: Sequence[fx.Node], is_layer: Sequence[bool]):
        self.nodes = nodes
        self.cuts = cuts_of(nodes)
        self.cuts[-1] = True
        self.before = [0, *accumulate(map(int, is_layer))]  # layers before each node
        self.segments: list[Block] = []
        start = 0
        for position, cut in enumerate(self.cuts):
            if cut:
                self.segments.append(Block("", start, position))
                start = position + 1

    def layers(self, part: Any) -> int:
        """How many layers a block or a span has."""
        return self.before[part.end + 1] - self.before[part.start]

    def is_closed(self, part: Any) -> bool:
        """Whether one tensor enters and one leaves."""
        return self.cuts[part.end] and (part.start == 0 or self.cuts[part.start - 1])

    def units(self) -> list[Block]:
        """The units in order; nodes between two of them belong to neither."""
        root = calls_of(self.nodes)
        return self._apart(root, self._inside(root))

    def is_simple(self, part: Block) -> bool:
        """Whether a unit's layers form a chain."""
        return all(self.layers(s) <= 1 for s in self.segments if part.start <= s.start and s.end <= part.end)

    def _inside(self, span: Span) -> list[Block]:
        return [block for inner in span.inner for block in self._blocks(inner)]

    def _blocks(self, span: Span) -> list[Block]:
        """The units that a call holds or is; none where it has too few layers."""
        inside, layers = self._inside(span), self.layers(span)
        if layers < 2 or not self.is_closed(span):
            return inside
        whole = Block(span.entry.name, span.start, span.end)
        in_blocks = sum(map(self.layers, inside))
        if len(inside) > 1 or (inside and layers - in_blocks > CHAIN):
            return self._apart(span, inside)
        if inside and in_blocks == layers and issubclass(span.entry.type, CONTAINERS):
            return [Block(inside[0].name, span.start, span.end)]
        if not inside and self.is_simple(whole) and layers > CHAIN:
            return self._apart(span, inside)
        return [whole]

    def _apart(self, span: Span, inside: list[Block]) -> list[Block]:
        """The units of a container: those inside, and one for what else has layers."""
        found = list(inside)
        for part in [*self._single(span), *self.segments]:
            overlaps = any(part.start <= other.end and other.start <= part.end for other in found)
            if span.start <= part.start and part.end <= span.end and self.layers(part) and not overlaps:
                found.append(part if part.name else Block(self._name(part), part.start, part.end))
        return sorted(found, key=lambda block: block.start)

    def _single(self, span: Span) -> list[Block]:
        """The outermost calls within one that have a single layer."""
        found = []
        for inner in span.inner:
            if self.layers(inner) == 1 and self.is_closed(inner):
                found.append(Block(inner.entry.name, inner.start, inner.end))
            else:
                found += self._single(inner)
        return found

    def _name(self, part: Block) -> str:
        """What the names of the calls in a segment begin with; else that of the first."""
        names = [
            n.meta["inside"][-1].name.split(".") for n in self.nodes[part.start : part.end + 1] if n.meta["inside"]
        ]
        names = [name for name in names if name != [""]]
        if not names:
            return "layer"
        common = []
        for level in zip(*names, strict=False):
            if len(set(level)) > 1:
                break
            common.append(level[0])
        return ".".join(common or names[0])
