"""Image files on disk for the tests of pixels, images and loader."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

ORANGE = (200, 100, 50)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def write(path: Path, colour: tuple[int, int, int] = ORANGE, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def noise(folder: Path, count: int, broken: tuple[int, ...] = ()) -> Path:
    """PNGs of noise of several sizes; the broken ones are cut short."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = generator.integers(0, 256, (16 + index % 5, 20 + index % 3, 3), dtype=np.uint8)
        data = encoded(Image.fromarray(pixels), "PNG")
        (folder / f"{index:03}.png").write_bytes(data[:60] if index in broken else data)
    return folder


def zipped(folder: Path, archive: Path, inside: str = "") -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, f"{inside}{path.relative_to(folder).as_posix()}")
    return archive
