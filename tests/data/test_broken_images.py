"""Broken images are named once, left out, and the end of it where there are no others."""

import logging

import pytest
import torch
from picture_files import noise

from iwm.data.broken_images import readable, without_broken
from iwm.data.decode import BrokenImage, NothingReadable
from iwm.data.sources import open_images


def test_what_cannot_be_decoded_is_left_out_and_named_once(caplog):
    loaded = [BrokenImage("a/once.png", "truncated"), torch.zeros(3, 2, 2, dtype=torch.uint8)]
    with caplog.at_level(logging.WARNING, "iwm"):
        for _ in range(2):
            whole, kept = without_broken(loaded)
            assert len(whole) == 1
            assert kept.tolist() == [1]
    assert [record.getMessage() for record in caplog.records] == ["Skipped a broken image: a/once.png: truncated"]


def test_a_source_without_a_readable_image_is_refused(tmp_path):
    opened = open_images(str(noise(tmp_path, 2)), "all")
    with pytest.raises(NothingReadable, match=r"Not one of the 2 images .* e\.g\. b\.png: empty"):
        readable(opened, [BrokenImage("b.png", "empty")] * 2)
