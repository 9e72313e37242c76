"""The store in which ranks meet: a dictionary that all of them share, kept by rank 0 or by torchrun."""

import socket
import time
from datetime import timedelta
from typing import Any

from torch import distributed as dist

from iwm.runtime import rank_watch
from iwm.runtime.errors import UserError
from iwm.runtime.launch import Place

stores: Any = dist  # which exports them without saying so

JOIN = 300.0
"""Seconds that ranks have to come."""

_starts = 0
_host: Any = None


def open_store(where: Place) -> Any:
    """The store of this start of the job, with all ranks in it. Raises UserError naming those that did not come."""
    global _starts
    _starts += 1
    host = where.rank == 0 and where.hosts_store
    try:
        store = _kept_store(where) if host else _client(where, JOIN)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{where.name} finds no rank 0 at {where.address}:{where.port} ({reason}).") from None
    store = stores.PrefixStore(_prefix(where), store)
    store.set(rank_watch.name_of(where.rank), where.name)
    store.set(rank_watch.sign_of(where.rank), rank_watch.BEFORE_FIRST_BEAT)
    until = time.monotonic() + JOIN
    missing = list(range(where.size))
    while missing := [rank for rank in missing if not store.check([rank_watch.sign_of(rank)])]:
        if time.monotonic() > until:
            raise UserError(
                f"Of {where.size} ranks {', '.join(map(str, missing[:8]))} did not come within {JOIN:.0f} s; look into "
                f"their output on the other machines, and whether they reach {where.address}:{where.port}."
            )
        time.sleep(0.05)
    return store


def _kept_store(where: Place) -> Any:
    """The store that rank 0 keeps for all, for the life of its process."""
    global _host
    try:
        _host = _host or stores.TCPStore(
            where.address, where.port, where.size, True, timedelta(seconds=JOIN), wait_for_workers=False
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"Rank 0 cannot open port {where.port} on {socket.gethostname()} ({reason}); set another MASTER_PORT."
        ) from None
    return _host


def _client(where: Place, seconds: float) -> Any:
    timeout = timedelta(seconds=seconds)
    return stores.TCPStore(where.address, where.port, where.size, False, timeout, wait_for_workers=False)


def connect(where: Place) -> Any:
    """A connection of the watch's own, whose calls end soon."""
    return stores.PrefixStore(_prefix(where), _client(where, rank_watch.SILENCE))


def _prefix(where: Place) -> str:
    return f"iwm/{where.attempt}/{_starts}"
