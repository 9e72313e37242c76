"""What is kept of features, and what a disk that takes nothing costs. `test_features` says when a file is believed."""

import errno
from pathlib import Path

import pytest
import torch

from iwm.evaluation.tasks import feature_cache
from iwm.evaluation.tasks.feature_cache import FeatureCache
from iwm.runtime import tensors

PART = torch.arange(40.0).view(10, 4)


def test_features_of_a_large_set_are_not_kept_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "LIMIT", 30 * 4 * 4)
    small, large = FeatureCache(tmp_path / "small", 30), FeatureCache(tmp_path / "large", 31)
    for number in range(3):
        for cache in (small, large):
            assert torch.equal(cache.remembered(f"part {number}", lambda: PART), PART)
    assert len(list((tmp_path / "small").iterdir())) == 3
    assert not (tmp_path / "large").exists()
    assert torch.equal(small.remembered("part 0", lambda: pytest.fail("computed again")), PART)


def test_a_full_disk_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(values: object, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(tensors, "save_file", full)
    cache = FeatureCache(tmp_path / "cache", 20)
    for number in range(2):
        assert torch.equal(cache.remembered(f"part {number}", lambda: PART), PART)
    warning = " ".join(capsys.readouterr().err.split())
    assert warning.count("(No space left on device)") == 1
    assert "delete the folder" in warning
