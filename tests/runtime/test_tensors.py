import errno
import os
import resource
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

from iwm.runtime import tensors


def test_tensors_of_any_layout_are_read_back_by_whoever_may(tmp_path: Path) -> None:
    plain, turned = torch.arange(6.0).view(2, 3), torch.arange(6).view(2, 3).T
    tensors.save_file({"plain": plain, "turned": turned}, tmp_path / "two.safetensors")
    there = load_file(tmp_path / "two.safetensors")
    assert torch.equal(there["plain"], plain)
    assert torch.equal(there["turned"], turned)
    (tmp_path / "other").touch()
    assert (tmp_path / "two.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_what_the_system_refuses_is_an_os_error_that_names_the_file(tmp_path: Path) -> None:
    path, limits = tmp_path / "large.safetensors", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as a full disk, another number
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as error:
            tensors.save_file({"zeros": torch.zeros(10_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(path))


SENTENCES = (
    'Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })',  # 0.5
    "Error while serializing: I/O error: No space left on device (os error 28)",
)


@pytest.mark.parametrize("sentence", SENTENCES)
def test_the_systems_number_is_read_from_old_and_new_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: str
) -> None:
    def full(*_: object) -> None:
        raise safetensors.SafetensorError(sentence)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as error:
        tensors.save_file({"zeros": torch.zeros(1)}, tmp_path / "any.safetensors")
    assert error.value.errno == errno.ENOSPC


def test_an_error_that_is_not_the_systems_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*_: object) -> None:
        raise safetensors.SafetensorError("Error while serializing: InvalidHeader")

    monkeypatch.setattr(safetensors.torch, "save_file", damaged)
    with pytest.raises(safetensors.SafetensorError, match="InvalidHeader"):
        tensors.save_file({"zeros": torch.zeros(1)}, tmp_path / "any.safetensors")
