"""Read this function to know the project."""

from types import ModuleType

from flows import steps
from flows.artifact import Artifact
from flows.config import RunConfig
from flows.naming import with_module_paths
from flows.place import Place
from flows.planning import reads_rows
from flows.retention import building, evict_unwanted
from flows.workers import Workers

__all__ = ["path"]


def path(config: RunConfig, place: Place, do: ModuleType = steps) -> Artifact:
    """text → tokens → activations → SAEs → features → catalog. `do` holds the steps: plain, or as Prefect tasks."""
    config = with_module_paths(config)
    with Workers(config, place.watch.say) as workers, building(place.store):
        each = do.each(workers)
        adopted = do.adopt(config, place)
        tokens = do.tokenize(config, place)
        activations = do.harvest(config, tokens, place, each, reads_rows(config, tokens, place.store))
        trained = adopted + do.train(config, tokens, activations, place)
        metrics = [do.evaluate(config, sae, tokens, activations, place) for sae in trained]
        features = [do.describe(config, sae, tokens, activations, place, each) for sae in trained]
        published: Artifact = do.publish(
            config, tokens, activations, list(zip(trained, metrics, features, strict=True)), place
        )
    evict_unwanted(config, activations, place)
    return published
