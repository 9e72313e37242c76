"""How long threads that wait for one another keep a core busy; imports no PyTorch, before which it must be set."""

import os

SPINS = "1000"
"""Turns of GNU OpenMP's waiting loop, microseconds in all; by default it spins for milliseconds."""


def limit_spinning() -> None:
    """Let this process, and those it starts, give a core back soon after reaching a barrier.

    PyTorch's threads meet at a barrier after every operation. Where another process holds one of the cores, one thread
    comes late, and the others by default wait spinning on the core that it could have had: beside one busy process two
    threads are then slower than one (`python -m benchmarks neighbour`). What the user has set stays; without GNU OpenMP
    (macOS) it means nothing.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
