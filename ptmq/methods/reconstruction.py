"""Methods that learn with the reconstruction engine: they have passes over the network, one after the other."""

import math
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from ptmq.common.bits import FP, BitWidth
from ptmq.methods.interface import Method
from ptmq.network.model import MultiBitModel
from ptmq.reconstruction.engine import Progress, ResumeFile, count_iterations, reconstruct, silent
from ptmq.reconstruction.passes import AdaptiveRoundingPass, Pass, Passes, StepSizePass
from ptmq.reconstruction.settings import AdaptiveRoundingSettings, Execution


class Reconstruction(Method):
    """A method that learns with the engine. As it stands, it learns adaptive rounding in one pass.

    Pass: the hooks of that pass.
    """

    Settings: ClassVar[type] = AdaptiveRoundingSettings
    Pass: ClassVar[type[Pass]] = AdaptiveRoundingPass

    def passes(self) -> Passes:
        """The passes over the network; here one, which learns everything together."""
        return [self.Pass(self.settings, self.widths)]

    def count_iterations(self, model: MultiBitModel) -> int:
        """All iterations of all passes."""
        return count_iterations(model, self.passes())

    def calibrate(
        self,
        model: MultiBitModel,
        images: Tensor,
        seed: int,
        execution: Execution = Execution(),  # noqa: B008 (frozen)
        resume: ResumeFile | None = None,
        progress: Progress = silent,
    ) -> list[dict[str, Any]]:
        """Search step sizes, then learn, see `reconstruct`; correct what has come of it, where that is asked for."""
        self.search_step_sizes(model, images)
        records = reconstruct(model, images, self.passes(), seed, execution, resume, progress)
        self.correct(model, images)
        return records

    def weights_alone(self) -> Passes:
        """One pass under FP activations, at the method's one width."""
        (width,) = self.widths
        return [self.Pass(self.settings, [BitWidth(width.weight, FP)])]

    def weights_then_step_sizes(self, activation_iterations: int) -> Passes:
        """BRECQ's two passes: weights under FP activations, then activation step sizes, where there are any.

        activation_iterations: of the second pass, a unit; 0 for a quarter of the first.
        """
        if self.widths[0].activation == FP:
            return self.weights_alone()
        iterations = activation_iterations or math.ceil(self.settings.iterations / 4)
        return [*self.weights_alone(), StepSizePass(replace(self.settings, iterations=iterations), self.widths)]
