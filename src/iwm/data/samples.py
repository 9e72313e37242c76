"""The embedded images, so that everything runs without a download: 919 photographs (`sample`) and drawn objects pasted
onto them (`sample-objects`). A scene is a pure function of (seed, split, index): a random crop of a photo, on it one
sprite at a random place, 0.3-0.8 of the image's side long, turned by up to 30 degrees, perhaps mirrored, its hue,
saturation and brightness changed; the label is the sprite's class, the mask its pixels. Train and test use disjoint
photos (for `sample` as well, so nothing seen in pretraining returns in a test scene) but the same sprites: what is
tested is recognising a known drawing at a new place, size, angle and colour on a new background, not new drawings.
"""

import functools
import io
import math
import zipfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image

from iwm.runtime.randomness import permutation, uniforms

SCENES = {"train": 10_000, "val": 2_000}
"""Scenes of `sample-objects` in each split."""

ATTRIBUTION = Path(__file__).parent / "assets" / "photos-attribution.csv"
"""Who took the photos: goes wherever a picture of them goes (CC BY 2.0)."""

VAL_PHOTOS = 119
"""Photos kept for the validation split; the other 800 are for training."""

SCALE = (0.3, 0.8)
"""Longer side of the drawn object, as a fraction of the image's side."""
TURN = 30.0
"""Largest rotation either way, degrees."""
HUE = 0.12
"""Largest hue shift either way, turns."""

_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], dtype=np.float32)
_RGB = np.linalg.inv(_YIQ)


@functools.cache
def photos(split: str) -> tuple[tuple[str, ...], tuple[Image.Image, ...]]:
    """Names and decoded photos (RGB, 120 x 120) of "train", "val" or "all"; shared, not to be written to."""
    if split != "all":
        names, pictures = photos("all")
        order = permutation(0, "sample photos", 0, len(names))
        chosen = np.sort(order[:VAL_PHOTOS] if split == "val" else order[VAL_PHOTOS:])
        return tuple(names[i] for i in chosen), tuple(pictures[i] for i in chosen)
    files = _files("photos.zip")
    return tuple(files), tuple(Image.open(io.BytesIO(data)).convert("RGB") for data in files.values())


@functools.cache
def sprites() -> dict[str, tuple[UInt8[np.ndarray, "h w 4"], ...]]:
    """The drawn objects of every class (RGBA, cut to their outline's box), classes in alphabetical order."""
    kinds: dict[str, list[np.ndarray]] = {}
    for name, data in _files("objects.zip").items():
        picture = Image.open(io.BytesIO(data)).convert("RGBA")
        kinds.setdefault(name.split("/")[0], []).append(np.asarray(picture.crop(picture.getchannel("A").getbbox())))
    return {kind: tuple(pictures) for kind, pictures in kinds.items()}


def labels(split: str) -> Int64[np.ndarray, " n"]:
    """Class of every scene: the classes take turns, so any leading part of a split is balanced."""
    return np.arange(SCENES[split]) % len(sprites())


@dataclass(frozen=True)
class Scene:
    """One generated image: pixels, class, and which pixels are the object's."""

    image: UInt8[np.ndarray, "size size 3"]
    label: int
    mask: Bool[np.ndarray, "size size"]


def scene(split: str, index: int, size: int, seed: int = 0) -> Scene:
    """Scene `index` of "train" or "val", `size` pixels wide and high."""
    u = uniforms(seed, f"scene {split}", 0, np.array([index]), 16)[0]
    kinds = tuple(sprites().values())
    label = index % len(kinds)
    _, backgrounds = photos(split)
    canvas = _background(backgrounds[int(u[0] * len(backgrounds))], size, u[1:5])
    sprite = _draw(kinds[label][int(u[5] * len(kinds[label]))], size, u[6:12])
    left = round(u[12] * (size - sprite.width))
    top = round(u[13] * (size - sprite.height))
    canvas.paste(sprite, (left, top), sprite)
    mask = np.zeros((size, size), dtype=bool)
    mask[top : top + sprite.height, left : left + sprite.width] = np.asarray(sprite.getchannel("A")) > 127
    return Scene(np.array(canvas), label, mask)


def _background(photo: Image.Image, size: int, u: Float[np.ndarray, " 4"]) -> Image.Image:
    """A square crop of a quarter to all of the photo, perhaps mirrored."""
    side = math.sqrt(0.25 + 0.75 * u[0]) * photo.width
    left, top = u[1] * (photo.width - side), u[2] * (photo.height - side)
    crop = photo.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if u[3] < 0.5 else crop


def _draw(sprite: UInt8[np.ndarray, "h w 4"], size: int, u: Float[np.ndarray, " 6"]) -> Image.Image:
    """The sprite recoloured, mirrored, turned, cut to its box and scaled for an image of `size` pixels."""
    picture = Image.fromarray(_recolour(sprite, u[0:3]))
    if u[3] < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.rotate(TURN * (2 * u[4] - 1), Image.Resampling.BICUBIC, expand=True)
    picture = picture.crop(picture.getchannel("A").getbbox())
    scale = (SCALE[0] + (SCALE[1] - SCALE[0]) * u[5]) * size / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _recolour(sprite: UInt8[np.ndarray, "h w 4"], u: Float[np.ndarray, " 3"]) -> UInt8[np.ndarray, "h w 4"]:
    """Turn the hue by up to HUE, scale saturation by 0.5-1.2 and brightness by 0.65-1.15: one matrix in YIQ."""
    turn, saturation, brightness = 2 * math.pi * HUE * (2 * u[0] - 1), 0.5 + 0.7 * u[1], 0.65 + 0.5 * u[2]
    cos, sin = saturation * math.cos(turn), saturation * math.sin(turn)
    matrix = brightness * _RGB @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]], dtype=np.float32) @ _YIQ
    changed = sprite.copy()
    changed[..., :3] = np.clip(sprite[..., :3] @ matrix.T.astype(np.float32) + 0.5, 0, 255)
    return changed


def _files(archive: str) -> dict[str, bytes]:
    """Contents of an embedded archive by name, in sorted order."""
    data = resources.files("iwm").joinpath("data", "assets", archive).read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        return {name: opened.read(name) for name in sorted(opened.namelist())}
