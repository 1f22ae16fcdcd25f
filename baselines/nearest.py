"""Round-to-nearest: the floor of every table. Nothing is learned; only the step sizes are chosen."""

from ptmq.methods import Method, register


class Nearest(Method):
    """Weights and activations rounded to the nearest code of every width."""

    def calibrate(self, model, images, seed, checkpoint, progress):
        model.search_steps(images[: self.settings.step_size_images], self.search)
        return []


@register
class NearestMinMax(Nearest):
    """Round to nearest on a grid that spans the whole range."""

    name, search = "nearest_minmax", "minmax"


@register
class NearestMSE(Nearest):
    """Round to nearest on the grid of least error, by the search that the learned methods start from."""

    name = "nearest_mse"

    @property
    def search(self) -> str:
        return self.settings.step_size_search
