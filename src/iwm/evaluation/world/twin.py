"""The frozen-random twin of a run: the same predictor and the same budget on a random encoder that stands still."""

from dataclasses import replace
from pathlib import Path

from iwm import config
from iwm.actions.action_space import ActionSpace, first_difference
from iwm.data.image_sets import ImageSet
from iwm.data.sources import open_images
from iwm.model import weights
from iwm.model.pretrained import random_and_still
from iwm.run_folder import RunFolder, find_weights, init_identity, is_remote, load_model
from iwm.runtime.console import console
from iwm.runtime.errors import UserError
from iwm.training import checkpoint, loop
from iwm.training.schedule import Schedule


def train_twin(run: str, speed: config.Speed) -> RunFolder:
    """RUN's twin, trained as the weights that RUN holds. A finished twin is kept.

    The twin of a run that went on from another run's weights goes on from that run's twin. Raises UserError, before
    anything is trained, when RUN is no run folder, began with weights that have no twin, does not tell how it was
    trained, or its source holds another number of images now.
    """
    for settings in _stages(run, speed):
        console.print(f"Training the twin with a frozen random encoder in {settings.run.out}")
        loop.pretrain(settings)
    return RunFolder.of(run).twin


def _stages(run: str, speed: config.Speed) -> list[config.Config]:
    """The settings of the twins to train, one after the other, RUN's own last."""
    folder = RunFolder.of(run)
    if not folder.config.is_file():
        raise UserError(
            f"A twin repeats the training of a run folder, and {run} has no config.yaml; give the --out folder."
        )
    settings = folder.settings()
    before = _stages(_init_run(run, settings.init), speed) if settings.init else []
    optim, images = _budget(run)
    settings = replace(
        settings,
        init=init_identity(before[-1].run.out) if before else "",
        encoder=random_and_still(settings.encoder),
        objective=replace(settings.objective, invariance_weight=0.0),  # it has no block to train
        optim=optim,
        speed=replace(settings.speed, device=speed.device, workers=speed.workers, threads=speed.threads),
        run=replace(settings.run, out=str(folder.twin.path), resume=True),
    )
    source = open_images(settings.data.source, "train", size=settings.data.image_size)
    if len(source) != images:
        raise UserError(
            f"{run} was trained on {images:,} images, '{source.name}' now holds {len(source):,}, which would give its "
            "twin another budget; put the same pictures back, or train the run anew."
        )
    actions = ActionSpace.from_config(settings.actions, settings.data.image_size).spec()
    if difference := first_difference(load_model(run).space.spec(), actions):
        raise UserError(
            f"{run} was trained {difference}, so a twin would learn other actions; put the transformations back, or "
            "leave out --frozen-random-twin."
        )
    _require_same_twin(run, folder.twin, settings, source)
    return [*before, settings]


def _init_run(run: str, init: str) -> str:
    """The run folder that RUN went on from. Raises UserError where there is none, and so no twin of it."""
    if is_remote(init) or not Path(init).expanduser().exists() or not RunFolder.of(init).config.is_file():
        raise UserError(
            f"{run} began with the weights of {init}, which from here is no run folder and has no twin to begin with; "
            "leave out --frozen-random-twin, or give a run whose --init is a run folder that is there."
        )
    return str(RunFolder.of(init).path)


def _budget(run: str) -> tuple[config.Optim, int]:
    """How the weights that RUN holds were trained, for its config.yaml may ask for more, and on how many images."""
    place = find_weights(run)
    optim, images = weights.read_model(place).settings.optim, weights.read_meta(place).get("images")
    if images is None:  # older weights do not note it
        state, _ = checkpoint.newest(RunFolder.of(run).checkpoints)
        if state is None:
            raise UserError(
                f"Neither weights nor checkpoints of {run} say on how many images it was trained, which its twin has "
                "to repeat; bring its checkpoints back, or leave out --frozen-random-twin."
            )
        images = state.images
    return optim, images


def _require_same_twin(run: str, twin: RunFolder, settings: config.Config, source: ImageSet) -> None:
    """Raises UserError where the folder holds a twin that cannot go on to these settings, as one trained longer."""
    steps = Schedule(settings.optim, len(source) // settings.optim.batch_size).steps
    try:
        state = loop.newest_state(twin, settings, source)
        loop.require_steps_left(settings, twin, state.step if state else 0, steps)
    except UserError as error:
        raise UserError(
            f"The twin in {twin.path} is another one than {run} needs now; delete that folder, and it is trained anew. "
            f"What does not fit: {error}"
        ) from None
