"""A classification source on disk that takes more than a mean to solve."""

from pathlib import Path

import numpy as np
import torch
from conftest import tiny

from iwm.model import weights
from iwm.model.world_model import ImageWorldModel
from iwm.run_folder import RunFolder


def corners(folder: Path, train: int = 320, val: int = 160) -> tuple[str, str]:
    """Train and validation .npz of noisy 16 px pictures with two coloured corners: class 1 where the corners' colours
    are equal. Each colour alone says nothing."""
    paths = []
    for number, (name, count) in enumerate((("corners", train), ("corners-val", val))):
        generator = np.random.default_rng(number)
        images = generator.integers(90, 166, (count, 16, 16, 3), dtype=np.uint8)
        ours, theirs = generator.integers(0, 2, (2, count))
        images[:, :8, :8] = np.array([[250, 20, 20], [20, 20, 250]], dtype=np.uint8)[ours][:, None, None]
        images[:, 8:, 8:] = np.array([[250, 20, 20], [20, 20, 250]], dtype=np.uint8)[theirs][:, None, None]
        np.savez(folder / f"{name}.npz", images=images, labels=(ours == theirs).astype(np.int64))
        paths.append(str(folder / f"{name}.npz"))
    return paths[0], paths[1]


def exported(folder: Path, seed: int = 0, **groups: object) -> str:
    """An untrained tiny world model's run folder. The student differs from the EMA encoder."""
    torch.manual_seed(seed)
    model = ImageWorldModel(tiny(**groups))
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(0.01)
    run = RunFolder(folder)
    weights.export(model, run.model)
    run.config.write_text("{}")
    return str(folder)


def clouds(count: int, width: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping classes in features of very different scales, correlated, one constant."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    fixed = torch.Generator().manual_seed(99)
    centres = torch.randn(classes, width, generator=fixed) * 0.4
    mixing = torch.randn(width, width, generator=fixed) * torch.logspace(0, -2, width)
    values = (centres[labels] + torch.randn(count, width, generator=generator)) @ mixing
    values[:, 3] = 7.0
    return values, labels


def quadrants(folder: Path, count: int) -> str:
    """A source of four classes: which quadrant is red. The same kind of pictures as `corners`, another question."""
    generator = np.random.default_rng(7)
    arrays = {}
    for prefix, number in (("", count), ("val_", 80)):
        images = generator.integers(90, 166, (number, 16, 16, 3), dtype=np.uint8)
        labels = generator.integers(0, 4, number)
        for image, label in zip(images, labels, strict=True):
            top, left = 8 * (label // 2), 8 * (label % 2)
            image[top : top + 8, left : left + 8] = (250, 20, 20)
        arrays |= {f"{prefix}images": images, f"{prefix}labels": labels}
    np.savez(folder / "quadrants.npz", **arrays)
    return str(folder / "quadrants.npz")


def few_tasks(folder: Path) -> dict[str, str]:
    """Sources of two tasks with few images, for what does not have to be learned."""
    train, val = corners(folder, train=96, val=48)
    return {"equal": train, "equal-val": val, "where": quadrants(folder, count=48)}
