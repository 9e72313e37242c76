"""Tokens of an encoder that stands still, given once: K views of every crop, on disk, in half precision.

    view 0          the crop as it is
    views 1 .. T    jittered as a target is            T = K // 2
    the others      jittered and destroyed as a source is

Every view's parameters are a pure function of (seed, view, image), so any pair of views of a crop is a training pair
whose action is known. A part of the images is one file, named by the hash of all its tokens depend on: weights, pixels,
settings. So encoding goes on where it was stopped, and another run with the same encoder and views finds it again.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float16, Int64, UInt8
from torch import Tensor

from iwm import config
from iwm.actions.action_space import ActionSpace, Parameters
from iwm.data.crops import least_side, random_crops
from iwm.data.image_sets import ImageSet
from iwm.data.loader import load_whole
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import distributed, files, sharing
from iwm.runtime.console import console, progress
from iwm.runtime.devices import Session
from iwm.runtime.errors import UserError

PART = 64
"""Images whose views are encoded, and kept in a file, together."""
BATCH = 64
"""Views through the encoder at once."""


@dataclass(frozen=True)
class ViewPlan:
    """Which views of which crops an image has."""

    settings: config.Config
    space: ActionSpace

    @property
    def crops(self) -> int:
        return self.settings.encoder.crops

    @property
    def views(self) -> int:
        return self.settings.encoder.views

    @property
    def targets(self) -> int:
        """How many of the views, the first ones, may be targets: they carry nothing that is destructive."""
        return 1 + self.views // 2

    def parameters(self, indices: Int64[np.ndarray, " b"], crop: int, view: int) -> Parameters:
        """What one view of one crop of some images is changed by."""
        if view == 0:
            return self.space.neutral(len(indices))
        kind = "target" if view < self.targets else "source"
        return self.space.sample(self.settings.run.seed, crop * self.views + view, indices, kind)


@dataclass(frozen=True)
class TokenPart:
    """A file of tokens, opened for every read: mapped it would keep a file descriptor, and a store has thousands of
    files, where a process often may have 1,024 descriptors. Reading takes no longer than a mapping's page faults."""

    path: Path
    shape: tuple[int, ...]
    """Images, crops, views, patches, width."""
    start: int
    """Bytes before the first token."""

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, image: int, crop: int, view: int, tokens: Float16[np.ndarray, "n d"]) -> None:
        """Read one view's tokens. Raises UserError where the file is no longer there, or was cut."""
        place = (image * self.shape[1] + crop) * self.shape[2] + view
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.start + place * tokens.nbytes)
                if file.readinto(tokens.data) == tokens.nbytes:
                    return
        except FileNotFoundError:
            pass
        raise UserError(
            f"The tokens in {self.path} were deleted or cut while they were in use; delete what is left of that file, "
            "and the same command encodes it again and goes on."
        )


class TokenStore:
    """The tokens of all views, on disk: [crops, views, patches, width] for every image that could be read."""

    def __init__(self, plan: ViewPlan, parts: Sequence[TokenPart], kept: Sequence[np.ndarray]):
        self.plan, self.parts = plan, parts
        self.images = np.concatenate(kept)
        """The images' places in the data source."""
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return len(self.images)

    def take(
        self, rows: Int64[np.ndarray, " b"], crops: Int64[np.ndarray, " b"], views: Int64[np.ndarray, " b"]
    ) -> Float16[Tensor, "b n d"]:
        """Tokens of one view of one crop of each of the images in these rows."""
        which = np.searchsorted(self.ends, rows, side="right")
        within = rows - np.concatenate([[0], self.ends])[which]
        tokens = np.empty((len(rows), *self.parts[0].shape[3:]), dtype=np.float16)
        places = zip(*(each.tolist() for each in (which, within, crops, views)), strict=True)
        for (part, image, crop, view), values in zip(places, tokens, strict=True):
            self.parts[part].read(image, crop, view, values)
        return torch.from_numpy(tokens)


def size_of(settings: config.Config, images: int) -> int:
    """Bytes of all tokens."""
    e = settings.encoder
    patches = (settings.data.image_size // e.patch_size) ** 2
    return images * e.crops * e.views * patches * e.width * 2


def build(model: ImageWorldModel, images: ImageSet, folder: Path, session: Session) -> TokenStore:
    """Encode what is not there yet, every rank its share of the files; all ranks read all of them.

    Raises UserError when the disk has no room, no image can be read, or another rank's files are not to be seen here.
    """
    settings = model.settings
    plan = ViewPlan(settings, model.space)
    mark = _mark(model, session)
    needed = size_of(settings, len(images))
    folder.mkdir(parents=True, exist_ok=True)
    count = plan.crops * plan.views
    seconds = _seconds_for_one(model, session) * count * len(images) / session.ranks
    console.print(
        f"{len(images):,} images x {count} views go once through {settings.encoder.name.split(',')[0]} up to block "
        f"{model.encoder.layer}: {needed / 2**30:.2f} GiB in {folder}, about {seconds / 60:.1f} minutes where they "
        "are not there yet.",
        soft_wrap=True,
    )
    mine: dict[int, tuple[str, np.ndarray]] = {}
    with distributed.share(), progress("images") as bar:
        task = bar.add_task("encode", total=len(images), note="")
        for start in range(session.rank * PART, len(images), session.ranks * PART):
            crops, rows = _part(images, settings, start)
            if len(rows):
                path = folder / f"{_name(mark, crops, rows)}.npy"
                if not path.is_file():
                    _require_room(folder, mark, images, settings, start)
                    _encode(model, plan, crops, rows, path, session)
                mine[start] = path.name, rows
            bar.advance(task, min(session.ranks * PART, len(images) - start))
    of_all = [part for parts in sharing.objects_of_all(mine) for part in parts.items()]
    if not of_all:
        raise UserError(f"Not one of the {len(images)} images of '{images.name}' can be decoded; check its files.")
    files_and_rows = [part for _, part in sorted(of_all, key=lambda item: item[0])]
    return TokenStore(plan, [_open(folder / name) for name, _ in files_and_rows], [rows for _, rows in files_and_rows])


def _open(path: Path) -> TokenPart:
    """The tokens of a file. Raises UserError where it is not there, for another rank has written it elsewhere."""
    try:
        tokens = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise UserError(
            f"Tokens that another rank has encoded are not in {path.parent} here; give a --speed.tokens FOLDER on a "
            "disk that all machines see."
        ) from None
    return TokenPart(path, tokens.shape, tokens.offset)


@torch.no_grad()
def _seconds_for_one(model: ImageWorldModel, session: Session) -> float:
    """Seconds the encoder takes for a view here, the second time it is asked."""
    size = model.settings.data.image_size
    views, seconds = torch.zeros(8, 3, size, size, device=session.device), 0.0
    for _ in range(2):
        since = time.perf_counter()
        with session.autocast():
            model.target_encoder.tokens(views).cpu()
        seconds = time.perf_counter() - since
    return seconds / len(views)


def _part(
    images: ImageSet, settings: config.Config, start: int
) -> tuple[list[UInt8[Tensor, "b 3 s s"]], Int64[np.ndarray, " b"]]:
    """The crops of the images from `start` on that are kept in one file, and which those are that could be read."""
    data, count = settings.data, settings.encoder.crops
    rows = np.arange(start, min(start + PART, len(images)))
    whole, rows = load_whole(images, rows, least_side(data.image_size, data.crop_area))
    if not whole:
        return [], rows
    crops = [
        random_crops(whole, data.image_size, data.crop_area, data.flip, settings.run.seed, crop, rows, "crop")
        for crop in range(count)
    ]
    return crops, rows


def _mark(model: ImageWorldModel, session: Session) -> str:
    """What the tokens depend on beside the pixels."""
    state = hashlib.blake2b(digest_size=16)
    encoder = model.target_encoder
    for name, value in sorted({**encoder.state_dict(), "mean": encoder.mean, "std": encoder.std}.items()):
        state.update(f"{name} {tuple(value.shape)}\n".encode())
        state.update(value.detach().float().cpu().contiguous().numpy().data)
    s = model.settings
    what = {
        "weights": state.hexdigest(),
        "architecture": s.encoder.architecture,
        "layer": encoder.layer,
        "views": [s.encoder.crops, s.encoder.views, s.run.seed],
        "actions": [asdict(s.actions), model.space.spec()],
        "precision": [session.precision, session.device.type],
    }
    return json.dumps(what, sort_keys=True, default=str)


def _name(mark: str, crops: Sequence[UInt8[Tensor, "b 3 s s"]], rows: Int64[np.ndarray, " b"]) -> str:
    name = hashlib.blake2b(mark.encode(), digest_size=16)
    name.update(rows.tobytes())
    for pixels in crops:
        name.update(pixels.contiguous().numpy().data)
    return name.hexdigest()


def _require_room(folder: Path, mark: str, images: ImageSet, settings: config.Config, start: int) -> None:
    """Raises UserError when the parts from `start` on that are not there yet find no room. Which those are is looked up
    only where all of them would find none, for that decodes every image."""
    free = shutil.disk_usage(folder).free
    if size_of(settings, len(images) - start) <= free:
        return
    missing = 0
    for each in range(start, len(images), PART):
        crops, rows = _part(images, settings, each)
        if len(rows) and not (folder / f"{_name(mark, crops, rows)}.npy").is_file():
            missing += len(rows)
    needed = size_of(settings, missing)
    if free < needed:
        raise UserError(
            f"The tokens need {needed / 2**30:.2f} GiB more in {folder}, {free / 2**30:.2f} are free; lower "
            "encoder.views or encoder.crops, give another --speed.tokens, or encode in every step (encoder.views 0)."
        )


@torch.no_grad()
def _encode(
    model: ImageWorldModel,
    plan: ViewPlan,
    crops: Sequence[UInt8[Tensor, "b 3 s s"]],
    rows: Int64[np.ndarray, " b"],
    path: Path,
    session: Session,
) -> None:
    """Write the tokens of all views of some images."""
    grid, width = model.encoder.grid, model.settings.encoder.width
    tokens = np.empty((len(rows), plan.crops, plan.views, grid[0] * grid[1], width), dtype=np.float16)
    for crop, pixels in enumerate(crops):
        images = pixels.to(session.device).float() / 255
        for view in range(plan.views):
            changed = model.space.apply(images, plan.parameters(rows, crop, view))
            for start, batch in zip(range(0, len(changed), BATCH), changed.split(BATCH), strict=True):
                distributed.advance()
                with session.autocast():
                    values = model.target_encoder.tokens(batch)
                tokens[start : start + len(batch), crop, view] = values.half().cpu().numpy()
    with files.replacing(path) as part, part.open("wb") as file:
        np.save(file, tokens)
