"""What several SAEs are trained from in one pass: rows from disk, or straight from the language model."""

from collections.abc import Sequence

from torch import Tensor

from flows.artifact import Artifact
from flows.config import RunConfig, RunHarvest
from flows.steps.loading import language_model, load_tokens, shard_name, site_file
from saelib.activations import Harvester
from saelib.base import Ends
from saelib.evaluation import sites_of
from saelib.shuffled import Rows, ShuffledRows
from saelib.streaming import StreamedRows
from saelib.text import TokenShard

__all__ = ["Needed", "batches_for"]


class Needed:
    """Batches of all harvested sites, of which some are read: a site keeps its place, whoever else is trained."""

    def __init__(self, rows: Rows, sites: Sequence[str], read: Sequence[int]) -> None:
        self.rows, self.sites, self.read = rows, list(sites), list(read)
        self._sample: list[Tensor] | None = None

    def batch(self, step: int) -> list[Tensor]:
        """Batch `step`."""
        self._sample = None
        return self._placed(self.rows.batch(step))

    def sample(self) -> list[Tensor]:
        """For scale and mean; kept until the first batch, since everyone who is trained asks for it."""
        if self._sample is None:
            self._sample = self._placed(self.rows.sample())
        return self._sample

    def position(self) -> dict[str, int]:
        """Of the rows."""
        return self.rows.position()

    def seek(self, position: dict[str, int]) -> None:
        """Of the rows."""
        self.rows.seek(position)

    def _placed(self, some: Sequence[Tensor]) -> list[Tensor]:
        """A one stands for a site that nobody reads."""
        placed = dict(zip(self.read, some, strict=True))
        return [placed.get(place, some[0].new_ones(1, 1)) for place in range(len(self.sites))]


def batches_for(config: RunConfig, tokens: Artifact, activations: Artifact, ends: Sequence[Ends]) -> Needed:
    """Rows to learn from, at the sites of all `ends`."""
    sites: list[str] = activations.facts["sites"]
    if config.training.stream:
        return Needed(_streamed(config, tokens, activations), sites, range(len(sites)))
    wanted = {str(site) for each in ends for site in sites_of(each)}
    places = [place for place, site in enumerate(sites) if site in wanted]
    facts = activations.facts
    shards = [
        [activations.file(site_file(shard, place)) for place in places]
        for shard, flag in zip(facts["shards"], facts["held_out"], strict=True)
        if not flag
    ]
    training = config.training
    rows = ShuffledRows(shards, training.batch_tokens, training.seed, config.lm.resolved_device())
    return Needed(rows, sites, places)


def _streamed(config: RunConfig, tokens: Artifact, activations: Artifact) -> StreamedRows:
    """Every token shard to learn from, through the language model, masked as the harvest was."""
    planned = RunHarvest.model_validate(activations.manifest["plan"]["harvest"])
    harvester = Harvester(language_model(config.lm), planned, tuple(activations.facts["sink_norms"]))
    learned_from = [shard for shard, flag in enumerate(tokens.facts["held_out"]) if not flag]

    def load(number: int) -> TokenShard:
        return load_tokens(tokens.file(shard_name(learned_from[number])))

    return StreamedRows(harvester, load, len(learned_from), config.training.batch_tokens, config.training.seed)
