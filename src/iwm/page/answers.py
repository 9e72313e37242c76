"""What the page answers to each of its questions; all but `png` runs in the worker's thread."""

from pathlib import Path
from typing import Any

from iwm.actions.pixel_search import reach_with_flags
from iwm.model.world_model import ImageWorldModel
from iwm.page import change, imagination
from iwm.page.folder import Folder
from iwm.page.imagination import Banks
from iwm.page.pictures import Limits, Picture, Pictures, data_uri, png, read_upload
from iwm.page.sliders import read_action, sliders_of
from iwm.run_folder import is_remote
from iwm.runtime.errors import UserError
from iwm.verbs.app import App

LOCAL = ("127.0.0.1", "localhost", "::1")
"""Addresses that no other machine reaches."""
OFFERED = 24
"""Images of the source that can be chosen with one click."""


class Unknown(UserError):
    """An image that the page does not hold (any more)."""


class Answers:
    """The model, the images that the page holds, and the banks of those that were asked for."""

    def __init__(self, model: ImageWorldModel, o: App) -> None:
        """Opens the images of `o.data`. Raises UserError when there are none."""
        self.model, self.local, self.seed = model, o.host in LOCAL, o.seed
        self.run = o.run if is_remote(o.run) else Path(o.run).resolve().name
        self.limits = Limits(o.max_megabytes, o.max_megapixels)
        self.folder = Folder(model, o.data, o.images, o.seed)
        self.pictures, self.banks = Pictures(), Banks(model, o.bank, o.seed)
        self.banks.of("f0", self.folder.pixels[0])  # what the page shows first

    def prepare(self) -> bool:
        """A piece of background work: banks first, then the images to search; returns whether there may be more."""
        if self.banks.grow_one():
            return True
        if not self.folder.complete:
            self.folder.step()
        return not self.folder.complete

    def world(self) -> dict[str, Any]:
        """What the page needs to know to draw itself."""
        model, count = self.model, min(OFFERED, len(self.folder.pixels))
        return {
            "run": self.run,
            "local": self.local,
            "size": model.settings.data.image_size,
            "grid": list(model.grid),
            "parameters": sum(p.numel() for part in (model.target_encoder, model.predictor) for p in part.parameters()),
            "decodes": model.decodes,
            "sliders": [slider.spec for slider in sliders_of(model.space)],
            "images": [{"key": f"f{place}", "name": self.folder.names[place]} for place in range(count)],
            "source": self.folder.name,
            "encoded": self.folder.ready,
            "total": self.folder.total,
            "limits": self.limits.sentence,
            "bytes": self.limits.bytes,
        }

    def upload(self, data: bytes, name: str) -> dict[str, str]:
        """Hold an uploaded image. Raises UserError."""
        pixels = read_upload(data, self.model.settings.data.image_size, self.limits)
        return {"key": self.pictures.add(Picture(pixels, name)), "name": name, "picture": data_uri(pixels)}

    def picture(self, key: Any) -> Picture:
        """The image of a key. Raises Unknown."""
        held = (self.folder.get(key) or self.pictures.get(key)) if isinstance(key, str) else None
        if held is None:
            raise Unknown("The page does not hold this image any more; choose it again.")
        return held

    def png(self, key: str) -> bytes:
        """The image of a key as a PNG file. Raises Unknown."""
        return png(self.picture(key).pixels)

    def imagine(self, question: dict[str, Any]) -> dict[str, Any]:
        """{"image": KEY, "action": {NAME: VALUE}}; see `imagination.answer`. Raises UserError."""
        action = read_action(self.model.space, question.get("action", {}))
        key = question.get("image")
        image = self.picture(key).pixels
        return imagination.answer(self.model, self.banks.of(str(key), image), action)

    def changed(self, question: dict[str, Any]) -> dict[str, str]:
        """Hold the really changed image of the same question; flags that only a source carries change nothing."""
        changes = question.get("action", {})
        space, key = self.model.space, question.get("image")
        action, image = read_action(space, changes), self.picture(key)
        pixels = space.apply(image.pixels[None].float() / 255, reach_with_flags(space, action[None]))[0]
        words = space.describe(action)
        known = {t.name: 0.0 if not t.both else float(changes.get(t.name, 0)) for t in space.transformations}
        made = Picture((pixels * 255).round().byte(), f"{image.name or 'image'}: {words}", known, str(key))
        return {"key": self.pictures.add(made), "name": made.name, "picture": data_uri(made.pixels)}

    def infer(self, question: dict[str, Any]) -> dict[str, Any]:
        """{"source": KEY, "target": KEY, "undo": BOOL}; see `change.compare`. Raises UserError."""
        source, target = self.picture(question.get("source")), self.picture(question.get("target"))
        undo = question.get("undo") is True
        return change.compare(self.model, source, target, str(question["source"]), undo, self.seed)

    def search(self, question: dict[str, Any]) -> dict[str, Any]:
        """{"image": KEY, "action": {NAME: VALUE}}; see `Folder.search`. Raises UserError."""
        action = read_action(self.model.space, question.get("action", {}))
        return self.folder.search(str(question.get("image")), self.picture(question.get("image")), action)
