"""Several SAEs over one stream of activations: where the language model is large, the stream is the cost."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from saelib.errors import ConfigError
from saelib.training import Batches, Progress, Training

__all__ = ["train_together"]


class _Shared:
    """Batches that are read once and handed to several trainings."""

    def __init__(self, batches: Batches) -> None:
        self.batches, self.step = batches, -1
        self.rows: Sequence[Tensor] = ()

    def batch(self, step: int) -> Sequence[Tensor]:
        """Batch `step`, kept until another one is asked for."""
        if step != self.step:
            self.rows, self.step = self.batches.batch(step), step
        return self.rows

    def sample(self) -> Sequence[Tensor]:
        """For scale and mean."""
        return self.batches.sample()

    def position(self) -> dict[str, int]:
        """Of the batches themselves."""
        return self.batches.position()

    def seek(self, position: dict[str, int]) -> None:
        """Of the batches themselves."""
        self.batches.seek(position)


def train_together(trainings: Sequence[Training]) -> Iterator[tuple[int, Progress]]:
    """Several trainings over the same batches, each of which is read once: yields (which, progress).

    They go in step; one that was resumed further on waits for the others.
    """
    for training in trainings:
        if training.batches is not trainings[0].batches:
            raise ConfigError("trainings go together over one object of batches; they were given different ones")
    shared = _Shared(trainings[0].batches)
    for training in trainings:
        training.batches = shared
    while behind := [training for training in trainings if not training.done]:
        step = min(training.step for training in behind)
        for index, training in enumerate(trainings):
            if training.step == step and not training.done:
                yield index, training.advance()
