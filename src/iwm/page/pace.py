"""How many images are encoded at a time, so that nobody who asks something meanwhile waits long."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

SECONDS = 0.08
"""What a piece of work in the background shall take."""
FIRST, MOST = 8, 64
"""Images of the first piece, and of the largest."""


@dataclass
class Pace:
    """Pieces of about SECONDS, by the time that those before took."""

    count: int = FIRST

    @contextlib.contextmanager
    def of_images(self, left: int) -> Iterator[int]:
        """Yields how many of the `left` images to encode inside the block."""
        count = min(self.count, left)
        start = time.perf_counter()
        yield count
        each = (time.perf_counter() - start) / max(count, 1)
        self.count = min(max(int(SECONDS / max(each, 1e-6)), 1), MOST, 2 * self.count)
