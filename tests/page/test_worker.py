"""Questions are answered in their order by one thread, with background work between them."""

import asyncio
import logging
import threading
import time

import pytest

from iwm.page import worker as module
from iwm.page.worker import Busy, Worker
from iwm.runtime.devices import CPU


def test_questions_come_between_pieces_of_background_work() -> None:
    done: list[str] = []

    def piece() -> bool:
        time.sleep(0.02)
        done.append("piece")
        return done.count("piece") < 20

    async def talk() -> None:
        worker.work_on()
        for number in range(3):
            await worker.ask(done.append, f"question {number}")

    worker = Worker(CPU, piece)
    asyncio.run(talk())
    assert [one for one in done if one != "piece"] == ["question 0", "question 1", "question 2"]
    assert done.count("piece") <= 6, "a question waits for one piece, not for all"
    deadline = time.monotonic() + 20
    while done.count("piece") < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert done.count("piece") == 20
    worker.close()


def test_all_questions_are_asked_in_one_thread() -> None:
    async def talk() -> set[int]:
        return set(await asyncio.gather(*(worker.ask(threading.get_ident) for _ in range(10))))

    worker = Worker(CPU, lambda: False)
    assert len(asyncio.run(talk())) == 1
    worker.close()


def test_too_many_questions_are_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 2)

    async def talk() -> list[object]:
        return await asyncio.gather(*(worker.ask(time.sleep, 0.05) for _ in range(4)), return_exceptions=True)

    worker = Worker(CPU, lambda: False)
    results = asyncio.run(talk())
    assert [type(one) for one in results] == [type(None)] * 2 + [Busy] * 2
    assert asyncio.run(worker.ask(lambda: 7)) == 7, "afterwards there is room again"
    worker.close()


def test_a_fault_of_the_background_work_is_logged_and_questions_go_on(caplog: pytest.LogCaptureFixture) -> None:
    def fault() -> bool:
        raise ValueError("planted")

    worker = Worker(CPU, fault)
    with caplog.at_level(logging.ERROR, "iwm"):
        worker.work_on()
        assert asyncio.run(worker.ask(lambda: 7)) == 7
        worker.close()
    assert "planted" in caplog.text
