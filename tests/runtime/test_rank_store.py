"""Ranks that do not come, and a port that is taken, are said in a sentence."""

import socket

import pytest
import ranks

from iwm.runtime import rank_store
from iwm.runtime.errors import UserError
from iwm.runtime.launch import Place


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    """Rank 0 of three, alone."""
    monkeypatch.setattr(rank_store, "JOIN", 0.3)
    monkeypatch.setattr(rank_store, "_host", None)
    return Place("torchrun", 0, 3, address="127.0.0.1", port=ranks.free_port())


def test_ranks_that_do_not_come_are_named(place):
    with pytest.raises(UserError, match=r"Of 3 ranks 1, 2 did not come within 0 s; .* 127.0.0.1:"):
        rank_store.open_store(place)


def test_a_port_that_is_taken(place):
    with socket.socket() as other:
        other.bind(("", place.port))
        other.listen()
        with pytest.raises(UserError, match=f"Rank 0 cannot open port {place.port} on .*set another MASTER_PORT"):
            rank_store.open_store(place)
