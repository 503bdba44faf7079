"""activations → SAEs: all that a run wants and that are not there yet, in one pass."""

from contextlib import ExitStack
from typing import NamedTuple

import numpy as np

from flows.artifact import Artifact, Draft, Work, finished, keep_piece, kept_piece
from flows.config import RunConfig
from flows.place import Place, StepReport
from flows.recipes import Choice
from flows.steps.batches import Needed, batches_for
from flows.steps.curves import Curve, write_curves
from flows.steps.loading import use_threads
from flows.stopping import Stop, stopping
from saelib.architectures import Recipe
from saelib.errors import ActivationError
from saelib.evaluation import sites_of
from saelib.lm import model_fingerprint
from saelib.objective import L0, L1, TanhL0
from saelib.together import train_together
from saelib.training import Progress, Training

__all__ = ["train", "train_work"]

CHECKPOINT = "checkpoint.safetensors"


def train_work(config: RunConfig, choice: Choice, tokens: Artifact, activations: Artifact) -> Work:
    """Depends on the activations, or on what they are streamed from; on the recipe, its sites, and how it is trained.

    What else is trained in the same pass leaves no trace.
    """
    device = config.lm.resolved_device()
    plan = {
        "architecture": choice.recipe.architecture,
        "recipe": choice.settings,
        "read": [str(site) for site in choice.ends.read],
        "write": [str(site) for site in choice.ends.write],
        "product": choice.training.resolved_product(device),
        "training": choice.training.model_dump(mode="json", exclude={"checkpoint_every_steps"}),
        "order_seed": config.training.seed,
        "device": device,
        "threads": config.resolved_threads(),
    }
    if not config.training.stream:
        return Work("sae", 3, plan, (activations,))
    planned = activations.manifest["plan"]["harvest"]
    plan |= {
        "harvest": {key: value for key, value in planned.items() if key not in ("max_tokens", "max_bytes")},
        "sink_norms": activations.facts["sink_norms"],
        "lm": config.lm.model_dump(mode="json", exclude={"model"}),
        "model": model_fingerprint(config.lm),
    }
    return Work("sae", 3, plan, (tokens,))


class _Pupil(NamedTuple):
    """An SAE in the making; `end` makes its artifact finished."""

    choice: Choice
    work: Work
    draft: Draft
    report: StepReport
    end: ExitStack


class _Trained(NamedTuple):
    """A pupil, its training, and its curve."""

    pupil: _Pupil
    training: Training
    curve: Curve

    def checkpoint(self) -> None:
        """Keep the whole state."""
        keep_piece(self.pupil.draft.directory / CHECKPOINT, self.training.save())

    def finish(self) -> None:
        """Its artifact, whole."""
        training, draft, ends = self.training, self.pupil.draft, self.pupil.choice.ends
        training.published(ends).save(draft.directory)
        (draft.directory / CHECKPOINT).unlink(missing_ok=True)
        places = dict.fromkeys((*training.read, *training.write))
        draft.facts |= {
            "sites": [str(site) for site in sites_of(ends)],
            "activation_scale": [training.site_scales[place] for place in places],
            "threshold": training.threshold / training.scales.write.square().mean().sqrt().item(),
            "plan": training.plan._asdict(),
            "sparsity_weight": _sparsity_weight(training.recipe),
            "n_tokens": training.n_tokens,
            "n_features": training.recipe.n_features,
        }
        self.pupil.end.close()


def _sparsity_weight(recipe: Recipe) -> float | None:
    """Of the term that counts firings or weighs them; None where k does."""
    return next((float(term.weight) for term in recipe.objective if isinstance(term, L0 | L1 | TanhL0)), None)


def train(config: RunConfig, tokens: Artifact, activations: Artifact, place: Place) -> list[Artifact]:
    """Every SAE of the run, in its order. Those that are missing are trained together: each batch is read once.

    Each has its own artifact, checkpoint and curve; a killed run continues each exactly from its last checkpoint.
    """
    wanted = [(choice, train_work(config, choice, tokens, activations)) for choice in config.choices()]
    with ExitStack() as stack:
        pupils = _missing(wanted, place, stack)
        if pupils:
            use_threads(config.resolved_threads())
            _train(_resumed(config, tokens, activations, pupils, place), place)
    return [finished(place.store, work) for _, work in wanted]


def _missing(wanted: list[tuple[Choice, Work]], place: Place, stack: ExitStack) -> list[_Pupil]:
    """Those that are not there yet, each under its lock, in one order: no two builds wait for each other."""
    pupils: dict[str, _Pupil] = {}
    for choice, work in sorted(wanted, key=lambda pair: pair[1].fingerprint):
        end = stack.enter_context(ExitStack())
        draft, report = end.enter_context(place.making("train", work))
        if draft is None:
            end.close()
        else:
            pupils[work.fingerprint] = _Pupil(choice, work, draft, report, end)
    return [pupils[work.fingerprint] for _, work in wanted if work.fingerprint in pupils]


def _resumed(
    config: RunConfig, tokens: Artifact, activations: Artifact, pupils: list[_Pupil], place: Place
) -> list[_Trained]:
    """Trainings over one object of batches, each from its checkpoint where it has one."""
    batches = batches_for(config, tokens, activations, [pupil.choice.ends for pupil in pupils])
    trained = []
    for pupil in pupils:
        training = _training(pupil, batches)
        path = pupil.draft.directory / CHECKPOINT
        was_there, of = path.exists(), f" ({pupil.choice.name})" if len(pupils) > 1 else ""
        if kept_piece(path):
            training.restore(path)
            place.watch.say(f"train: resumed at step {training.step} of {training.plan.n_steps}{of}")
        elif was_there:
            place.watch.say(f"train: the checkpoint is damaged, so training starts anew{of}")
        pupil.report.n_tokens = (training.plan.n_steps - training.step) * training.config.batch_tokens
        trained.append(_Trained(pupil, training, Curve(training, pupil.work.fingerprint, pupil.report.run_id)))
    return trained


def _training(pupil: _Pupil, batches: Needed) -> Training:
    ends = pupil.choice.ends
    read, write = ([batches.sites.index(str(site)) for site in sites] for sites in (ends.read, ends.write))
    return Training(pupil.choice.recipe, pupil.choice.training, batches, read, write)


def _train(trained: list[_Trained], place: Place) -> None:
    """The loop: watched, checkpointed at intervals, and ended between two steps where a signal asks for it."""
    every, batch = (getattr(trained[0].training.config, name) for name in ("checkpoint_every_steps", "batch_tokens"))
    last = max(one.training.plan.n_steps for one in trained)
    trainings = [one.training for one in trained]
    first = min(training.step for training in trainings)
    with stopping() as stop, place.watch.bar("train", last * batch, "tokens") as tick:
        tick(first * batch)
        done: list[_Trained] = [one for one in trained if one.training.done]
        made: list[_Trained] = []
        for index, progress in train_together(trainings):
            made.append(_advanced(trained[index], progress))
            if any(training.step == progress.step and not training.done for training in trainings):
                continue
            tick(batch)
            is_due = (progress.step + 1) % every == 0 or stop.signal is not None
            done += [one for one in made if one.training.done]
            _keep(trained, [one for one in made if is_due and not one.training.done], done, place)
            made, done = [], []
            _leave_if_asked(stop, progress.step + 1, last, place)
        _keep(trained, [], done, place)
        stop.leave()


def _advanced(one: _Trained, progress: Progress) -> _Trained:
    if not np.isfinite(progress.loss):
        raise ActivationError(
            f"the loss of {one.pupil.choice.name} became {progress.loss} at step {progress.step}; finite numbers are "
            "wanted: lower training.learning_rate, or look for NaN in the activations"
        )
    one.curve.add(progress)
    return one


def _keep(trained: list[_Trained], due: list[_Trained], done: list[_Trained], place: Place) -> None:
    """Checkpoints of those that are due, artifacts of those that are done, and curves now and then."""
    for one in due:
        one.checkpoint()
    write_curves([one.curve for one in trained], place, at_once=bool(due or done))
    for one in done:
        one.finish()


def _leave_if_asked(stop: Stop, step: int, last: int, place: Place) -> None:
    if stop.signal is not None and step < last:
        place.watch.say(f"train: stopped at step {step} of {last}; run the same command to go on")
        stop.leave()
