"""The steps of the path: plain functions from artifacts to artifacts; done already, or resumed where they stopped."""

from flows.steps.adopt import adopt
from flows.steps.evaluate import evaluate
from flows.steps.features import describe
from flows.steps.harvest import harvest
from flows.steps.publish import publish
from flows.steps.tokenize import tokenize
from flows.steps.train import train
from flows.workers import each

__all__ = ["adopt", "describe", "each", "evaluate", "harvest", "publish", "tokenize", "train"]
