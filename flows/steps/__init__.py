"""The steps of the path: plain functions from artifacts to artifacts; done already, or resumed where they stopped."""

from flows.steps.features import describe, publish
from flows.steps.harvest import each, harvest, tokenize
from flows.steps.train import evaluate, train

__all__ = ["describe", "each", "evaluate", "harvest", "publish", "tokenize", "train"]
