"""Every function of the package is checked for its types and shapes while the tests run."""

import gc
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes share the cores; before anything counts them

import hypothesis
import numpy as np
import pytest
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning
from jaxtyping import install_import_hook

warnings.filterwarnings("ignore", category=BeartypeDecorHintPep585DeprecationWarning)
install_import_hook("iwm", "checking.typechecked")
hypothesis.settings.register_profile("tests", deadline=None)  # other processes may take an example's time
hypothesis.settings.load_profile("tests")

import torch  # noqa: E402

from iwm import config  # noqa: E402
from iwm.runtime import devices  # noqa: E402
from iwm.training import loop  # noqa: E402


@pytest.fixture(autouse=True, scope="session")
def _threads() -> Iterator[None]:
    with devices.threads(config.Speed()):
        yield


@pytest.fixture(autouse=True, scope="session")
def _nothing_old_is_collected() -> Iterator[None]:
    """Garbage collection passes over what the imports made: looking through it took a third of the time of every test
    that trains. Training thaws what it froze, and with it the imports; here nothing is thawed."""
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "unfreeze", lambda: None)
        yield
    gc.unfreeze()  # or libraries complain at the end of what was never freed


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def tiny(**groups: object) -> config.Config:
    """A world model of a few thousand parameters: 16 px images, patches of 4, seconds to train.

    Keyword arguments replace whole groups of settings.
    """
    settings = config.Config(
        data=config.Data(image_size=16),
        actions=config.Actions(jitter_probability=1.0),
        masks=config.Masks(predict="all"),
        encoder=config.Encoder(patch_size=4, width=32, depth=2, heads=2, init="xavier"),
        predictor=config.Predictor(depth=2, width=32, conditioning="adaln", init="xavier"),
        objective=config.Objective(target_norm="batch"),
        optim=config.Optim(
            epochs=2,
            batch_size=16,
            lr=2e-3,
            lr_batch=16,
            lr_start=1e-4,
            warmup_epochs=0.5,
            ema=0.9,
            stretch=1.0,
            clip=1.0,
        ),
        speed=config.Speed(precision="fp32", device="cpu", workers=0),
        run=config.Run(log_every=2, save_every=3),
    )
    return replace(settings, **groups)  # pyright: ignore[reportArgumentType]


def pictures_file(path: Path, count: int = 64, size: int = 16, labelled: bool = False, validation: bool = True) -> Path:
    """An .npz of random smooth pictures, with a quarter as many to validate on; labels tell which half is bright."""
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for prefix, number in {"": count, "val_": count // 4 if validation else 0}.items():
        coarse = generator.integers(0, 256, (number, 4, 4, 3), dtype=np.uint8)
        images = np.asarray(coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2))
        labels = np.arange(number) % 2
        if labelled:
            images[:, : size // 2] //= (2 - labels)[:, None, None, None].astype(np.uint8)
            arrays |= {f"{prefix}labels": labels} if number else {}
        arrays |= {f"{prefix}images": images} if number else {}
    np.savez(path, **arrays)
    return path


@pytest.fixture
def images() -> torch.Tensor:
    """Eight random 16 px images, uint8 [8, 3, 16, 16]."""
    return torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    """The path of 64 labelled pictures, and 16 to validate on."""
    return str(pictures_file(tmp_path / "pictures.npz", labelled=True))


def trained_on(settings: config.Config, *, source: str, out: str) -> config.Config:
    """The same settings for another source and another run folder."""
    return replace(settings, data=replace(settings.data, source=source), run=replace(settings.run, out=out))


SAME_DRAWS = torch.__version__.startswith("2.15.")
"""Whether this PyTorch draws the same weights from a seed as the one that the tests' stored sums come from."""


def fingerprint(module: torch.nn.Module) -> float:
    """A sum over all weights in which each has another share."""
    values = (value.double().flatten() for value in module.state_dict().values())
    return sum(float(value @ torch.linspace(0.5, 1.5, len(value), dtype=torch.float64)) for value in values)


def with_run(settings: config.Config, **changes: Any) -> config.Config:
    """The settings with changes to their run group."""
    return replace(settings, run=replace(settings.run, **changes))


@pytest.fixture(scope="session")
def _trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    source = pictures_file(folder / "pictures.npz")
    loop.pretrain(trained_on(tiny(), source=str(source), out=str(folder / "run")))
    return folder


@pytest.fixture
def trained(_trained_once: Path, tmp_path: Path) -> Path:
    """The finished run of `tiny` on `pictures_file`, tmp_path/run on tmp_path/pictures.npz, as if trained there.

    It is trained once for all tests and copied for each, its paths made those of the copy: write into it at will.
    """
    shutil.copytree(_trained_once, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "run").rglob("*"):
        if path.suffix in (".json", ".jsonl", ".yaml"):
            path.write_text(path.read_text().replace(str(_trained_once), str(tmp_path)))
    return tmp_path / "run"


@pytest.fixture(scope="session")
def page_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the interactive page of a tiny model is served."""
    from planted_page import served

    with served(tmp_path_factory.mktemp("page")) as address:
        yield address
