"""Tensors as safetensors files."""

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

NUMBER = re.compile(r"(?:os error |Os \{ code: )(\d+)")
"""The system's number in the library's sentence: as its newer versions write it, as 0.5 does."""


def save_file(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors of any device and layout, for whoever may read the files of this process.

    Raises OSError where the system does: the library's own error is none.
    """
    path.touch()
    mode = path.stat().st_mode  # the library's files are for this user alone
    try:
        held = {name: value.cpu().contiguous() for name, value in tensors.items()}
        safetensors.torch.save_file(held, path, None if metadata is None else dict(metadata))
    except safetensors.SafetensorError as error:
        number = NUMBER.search(str(error))
        if not number:
            raise
        code = int(number[1]) or errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from error
    path.chmod(mode)
