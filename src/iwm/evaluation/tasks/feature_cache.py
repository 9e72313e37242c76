"""Features of images in files, found again by the hash of all that they depend on, so they cannot go stale.

The folder (RUN/eval/cache) may be deleted at any time: what is missing is computed again.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from iwm.runtime import files, tensors
from iwm.runtime.console import console

LIMIT = 2**30
"""Bytes of an encoder's features of a whole set of images that are worth files."""


def digest(tensors: Sequence[tuple[str, Tensor]]) -> str:
    """Content hash of named tensors: names, types, shapes and bytes."""
    mark = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors:
        mark.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        mark.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return mark.hexdigest()


class FeatureCache:
    """Where features of parts of a set of `images` images are kept."""

    def __init__(self, folder: Path, images: int) -> None:
        self.folder, self.images = folder, images
        self._writable = True

    def remembered(self, key: str, compute: Callable[[], Tensor]) -> Tensor:
        """Features of some of the images, which depend on what `key` says, and are computed where no file has them."""
        path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
        if path.is_file():
            try:
                return load_file(path)["features"]
            except (OSError, KeyError, SafetensorError):
                console.print(f"[yellow]{path} is damaged; its features are computed again.")
        features = compute()
        if self._writable and features.nbytes * self.images <= LIMIT * len(features):
            self._write(path, features)
        return features

    def _write(self, path: Path, features: Tensor) -> None:
        """Keep what can be kept: the features themselves are in memory, whatever the disk says."""
        try:
            with files.replacing(path) as part:
                tensors.save_file({"features": features}, part)
        except OSError as error:
            self._writable = False
            reason = error.strerror or type(error).__name__
            console.print(
                f"[yellow]Features cannot be kept in {path.parent} ({reason}), so the next evaluation computes them "
                "again; make room there, or delete the folder."
            )
