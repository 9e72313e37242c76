"""The frozen-random twin of a run: the same predictor and the same budget on a random encoder that stands still."""

from dataclasses import replace
from pathlib import Path

from iwm import config
from iwm.model.pretrained import random_and_still
from iwm.run_folder import RunFolder
from iwm.runtime.console import console
from iwm.runtime.errors import UserError
from iwm.training import loop


def train_twin(run: str, speed: config.Speed) -> RunFolder:
    """RUN's twin, trained as RUN was. A finished twin is kept.

    The twin of a run that went on from another run's weights goes on from that run's twin. Raises UserError when RUN is
    no run folder.
    """
    folder = RunFolder.of(run)
    if not folder.config.is_file():
        raise UserError(
            f"A twin repeats the training of a run folder, and {run} has no config.yaml; give the --out folder."
        )
    settings = folder.settings()
    # Weights from elsewhere are an encoder that is not random: the twin begins without them.
    before = RunFolder(Path(settings.init).expanduser()) if settings.init else None
    init = str(train_twin(settings.init, speed).path) if before and before.config.is_file() else ""
    console.print(f"Training the twin with a frozen random encoder in {folder.twin.path}")
    settings = replace(
        settings,
        init=init,
        encoder=random_and_still(settings.encoder),
        objective=replace(settings.objective, invariance_weight=0.0),  # it has no block to train
        speed=replace(settings.speed, device=speed.device, workers=speed.workers, threads=speed.threads),
        run=replace(settings.run, out=str(folder.twin.path), resume=True),
    )
    return RunFolder(loop.pretrain(settings))
