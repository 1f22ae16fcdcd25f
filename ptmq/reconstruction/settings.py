"""Settings that methods share, and how a calibration is executed. Each dataclass checks itself when it is made."""

from dataclasses import dataclass
from typing import ClassVar

from ptmq.common.errors import one_of, require
from ptmq.quantization.quantizer import KINDS
from ptmq.quantization.rounding import INITIAL
from ptmq.quantization.step_size import SEARCHES

SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class Execution:
    """How a calibration is executed: no choice of a method, and the same for all methods of a comparison."""

    compile: bool = False  # fake quantizers by torch.compile: faster after some 20 s; needs a C++ compiler
    autocast: bool = False  # layers and products while learning in bfloat16: another result, faster on a GPU
    features_in_main_memory: bool = False  # not on the GPU: where they do not fit there, at the cost of time


@dataclass(frozen=True)
class StepSizeSettings:
    """How step sizes are found before anything is learned; shared by all methods."""

    step_size_search: str = "shrink"  # shrink, minmax, or as they are brecq and shift (QDrop)
    step_size_images: int = 256  # calibration images that the activation search sees
    edge_bits: int = 8  # weights of the first and the last layer, activation that enters the last
    quantize_softmax: bool = False  # of attention; else it stays in floating point

    def __post_init__(self) -> None:
        one_of("step_size_search", self.step_size_search, SEARCHES)
        require(self.step_size_images >= 1, "step_size_images", "at least 1", self.step_size_images)
        require(2 <= self.edge_bits <= 8, "edge_bits", "2..8", self.edge_bits)


@dataclass(frozen=True)
class CorrectionSettings(StepSizeSettings):
    """How every layer's output is corrected at every width (`ptmq.quantization.quantizer`)."""

    correction: str = "none"  # none, shift, or gain (and shift), of every output channel

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("correction", self.correction, KINDS)


@dataclass(frozen=True)
class ReconstructionSettings(CorrectionSettings):
    """The reconstruction loop: how long, how fast, how much is dropped."""

    iterations: int = 1000  # a unit
    batch_size: int = 32
    lr_rounding: float = 0.1  # Adam; for about 1,000 iterations (docs/defaults.md)
    lr_rounding_schedule: str = "constant"  # or cosine, to 0
    lr_step_size: float = 1e-2  # Adam, cosine to 0
    lr_step_size_relative: bool = True  # to what the search found: alike at any scale of the features; else absolute
    keep: float = 0.5  # probability that an activation of the block stays quantized (QDrop); 1 is no drop

    fewest_iterations: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.iterations >= self.fewest_iterations,
            "iterations",
            f"at least {self.fewest_iterations}",
            self.iterations,
        )
        require(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)
        for name in ("lr_rounding", "lr_step_size"):
            require(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        one_of("lr_rounding_schedule", self.lr_rounding_schedule, SCHEDULES)
        require(0 <= self.keep <= 1, "keep", "a probability in [0, 1]", self.keep)


@dataclass(frozen=True)
class AdaptiveRoundingSettings(ReconstructionSettings):
    """Adaptive rounding: where V starts, how hard h(V) is pushed to 0 or 1."""

    regularizer: float = 0.01  # λ_r, weight of the rounding regularizer
    beta_start: float = 20.0
    beta_end: float = 2.0
    warmup: float = 0.2  # share of the iterations without the regularizer
    initial_v: str = "lowest"  # lowest, mean (over the widths) or zero

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.regularizer >= 0, "regularizer", "0 or more", self.regularizer)
        require(
            self.beta_start >= self.beta_end > 0,
            "beta_start, beta_end",
            "falling and positive",
            (self.beta_start, self.beta_end),
        )
        require(0 <= self.warmup < 1, "warmup", "in [0, 1)", self.warmup)
        one_of("initial_v", self.initial_v, INITIAL)

    def beta_at(self, iteration: int) -> float | None:
        """The regularizer's exponent at an iteration counted from 1; None during warm-up. Linear (BRECQ, QDrop)."""
        start = self.warmup * self.iterations
        if iteration < start:
            return None
        left = max(0.0, 1 - (iteration - start) / (self.iterations - start))
        return self.beta_end + (self.beta_start - self.beta_end) * left
