"""A page of an untrained tiny model with a decoder, on 64 pictures; and one that is served."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import pictures_file, tiny

from iwm.model.pixel_decoder import PixelDecoder
from iwm.model.world_model import ImageWorldModel
from iwm.page.answers import Answers
from iwm.page.worker import Worker
from iwm.runtime.devices import CPU
from iwm.verbs.app import App


def tiny_world() -> ImageWorldModel:
    """An untrained model for 16 px images, with a random decoder."""
    torch.manual_seed(0)
    model = ImageWorldModel(tiny()).eval().requires_grad_(False)
    for values in model.predictor.parameters():  # untrained it would be blind to the action
        values.add_(0.1 * torch.randn_like(values))
    weight = torch.randn(3 * 4 * 4, model.objective.output_width, generator=torch.Generator().manual_seed(0))
    model.decoder = PixelDecoder(0.05 * weight, torch.full((len(weight),), 0.5))
    return model


def plant_answers(folder: Path) -> Answers:
    """What a page of `tiny_world` answers."""
    source = str(pictures_file(folder / "pictures.npz", labelled=True))
    return Answers(tiny_world(), App(run="runs/tiny", data=source, bank=32, max_megabytes=1, max_megapixels=2))


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of such a page; skips where the extra's packages are not installed."""
    pytest.importorskip("starlette", reason="the extra iwm[app] is not installed")
    uvicorn = pytest.importorskip("uvicorn", reason="the extra iwm[app] is not installed")
    from iwm.page import routes

    answers = plant_answers(folder)
    worker = Worker(CPU, answers.prepare)
    app = routes.build(answers, worker, "127.0.0.1")
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        worker.work_on()
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        worker.close()
