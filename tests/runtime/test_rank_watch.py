"""A rank that fails, dies or hangs ends the job with one sentence; a signal to any of them saves on all."""

import json
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ranks
from conftest import pictures_file, tiny, trained_on

from iwm import cli, config
from iwm.run_folder import RunFolder
from iwm.runtime import rank_watch
from iwm.runtime.launch import Place
from iwm.runtime.rank_watch import RankWatch
from iwm.training.step import Training


class Watched:
    """Rank 0's watch of itself and rank 1, by a clock and a store of the test's own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.failure = 100.0, ""
        monkeypatch.setattr(rank_watch.time, "monotonic", lambda: self.now)
        self.ranks = [RankWatch(Place("torchrun", rank, 2), lambda: None) for rank in range(2)]

    def pass_seconds(self, seconds: int) -> str:
        """Look every second; the sentence about who hangs, "" for nobody."""
        for _ in range(seconds):
            self.now += 1.0
            self.ranks[0]._look(self)
        return self.failure

    def multi_get(self, keys: list[str]) -> list[str]:
        return [rank.sign for rank in self.ranks]

    def get(self, key: str) -> bytes:
        return key.encode()

    def compare_set(self, key: str, before: str, after: str) -> bytes:
        self.failure = self.failure or json.loads(after)["sentence"]
        return after.encode()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_a_rank_in_its_share_for_which_another_waits_hangs_when_it_does_not_advance(watched):
    for rank in watched.ranks:
        rank.advance()
    assert not watched.pass_seconds(300), "nobody waits"
    for rank in watched.ranks:
        rank.rest()
        rank.advance()
    watched.ranks[0].arrive()
    watched.ranks[0].rest()
    for _ in range(10):
        watched.ranks[1].advance()
        assert not watched.pass_seconds(40), "it comes forward"
    assert watched.pass_seconds(130) == "name/1 hangs: the others have waited for it for 160 s."


def test_a_rank_may_take_four_times_what_another_took_for_a_part(watched):
    for rank in watched.ranks:
        rank.advance()
    watched.now += 60
    watched.ranks[0].advance()
    watched.ranks[0].arrive()
    watched.ranks[0].rest()
    assert not watched.pass_seconds(235)
    assert watched.pass_seconds(10) == "name/1 hangs: the others have waited for it for 240 s."


def test_a_rank_that_rests_may_keep_the_others_waiting(watched):
    for rank in watched.ranks:
        rank.tick()
    watched.ranks[1].rest()
    watched.ranks[0].arrive()
    assert not watched.pass_seconds(1000)


def test_a_rank_hangs_before_a_sum_for_which_the_others_have_come(watched):
    """In the forward pass, say, where target statistics are summed: no step has ended on any rank."""
    for rank in watched.ranks:
        rank.tick()
    watched.ranks[0].arrive()
    assert not watched.pass_seconds(40)
    assert watched.pass_seconds(10) == "name/1 hangs: the others have waited for it for 45 s."


def written(folder: Path, **groups: Any) -> list[str]:
    """Words of `iwm pretrain` for a run of very many steps, in folder/run."""
    source = str(pictures_file(folder / "pictures.npz"))
    chosen = tiny(
        **{"optim": replace(tiny().optim, epochs=5000), **groups}, run=config.Run(log_every=1000, save_every=3)
    )
    config.save(trained_on(chosen, source=source, out=str(folder / "run")), folder / "config.yaml")
    return ["pretrain", "--config", str(folder / "config.yaml")]


def saved(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in RunFolder(folder / "run").checkpoints.glob("step-*"))


def wait_for_a_checkpoint(folder: Path) -> None:
    until = time.monotonic() + 60 * ranks.slowness()
    while not saved(folder):
        assert time.monotonic() < until, "no checkpoint"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_any_rank_saves_and_ends_all(tmp_path, number):
    both = ranks.start(2, tmp_path, cli.main, written(tmp_path))
    wait_for_a_checkpoint(tmp_path)
    os.kill(both.processes[1].pid or 0, number)
    code = 130 if number == signal.SIGINT else 75
    assert both.wait() == [code, code], both.texts
    assert f"Saved at step {saved(tmp_path)[-1]} of 20000. Go on with: iwm pretrain" in both.text(0)
    assert both.text(1) == ""


def test_a_rank_that_dies_ends_the_job_and_a_restart_on_one_goes_on(tmp_path):
    words = written(tmp_path)
    both = ranks.start(2, tmp_path, cli.main, words)
    wait_for_a_checkpoint(tmp_path)
    both.processes[1].kill()
    assert both.wait() == [1, -signal.SIGKILL], both.texts
    sentence = f"Rank 1 (process {both.processes[1].pid} on"
    assert sentence in both.text(0)
    assert re.search(
        r"has died or lost its network: no sign of life for \d+ s. All ranks stop; the same command goes", both.text(0)
    )
    assert "Traceback" not in both.texts
    step = saved(tmp_path)[-1]
    again = ranks.start(1, tmp_path / "again", cli.main, words)
    until = time.monotonic() + 60 * ranks.slowness()
    while saved(tmp_path)[-1] <= step:
        assert time.monotonic() < until, again.texts
        time.sleep(0.02)
    again.processes[0].terminate()
    assert again.wait() == [75]
    assert f"Going on from step {step} of 20000." in again.text(0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_rank_0_dies_or_answers_no_more(tmp_path, number):
    """It keeps what all share. One that stands still is as silent as a cut network."""
    both = ranks.start(2, tmp_path, cli.main, written(tmp_path))
    wait_for_a_checkpoint(tmp_path)
    os.kill(both.processes[0].pid or 0, number)
    both.processes[1].join(60 * ranks.slowness())
    both.processes[0].kill()
    assert both.wait() == [-signal.SIGKILL, 1], both.texts
    assert "Rank 0 does not answer rank 1 (process" in both.text(1)
    assert "Traceback" not in both.texts


def hanging(words: list[str]) -> int:
    """Rank 1 never finishes step 4."""
    real = Training.step

    def step(self: Training, batch: Any) -> Any:
        if batch.step == 4 and self.session.rank == 1:
            time.sleep(600)
        return real(self, batch)

    Training.step = step  # in a process of this test's own
    return cli.main(words)


def test_a_rank_that_hangs_is_named(tmp_path):
    both = ranks.start(2, tmp_path, hanging, written(tmp_path))
    assert both.wait() == [1, 1], both.texts
    assert f"Rank 1 (process {both.processes[1].pid} on" in both.text(0)
    assert re.search(r"hangs: the others have waited for it for \d+ s. All ranks stop", both.text(0))
    assert saved(tmp_path) == [3]


def lost_source(words: list[str]) -> int:
    """Rank 1 does not find the pictures."""
    if os.environ["RANK"] == "1":
        words = [*words, "--data.source", "/no/such/place"]
    return cli.main(words)


def test_a_rank_without_its_pictures_says_so_and_ends_all(tmp_path):
    both = ranks.start(2, tmp_path, lost_source, written(tmp_path))
    assert both.wait() == [2, 2], both.texts
    assert f"Rank 1 (process {both.processes[1].pid} on" in both.text(1)
    assert "/no/such/place" in both.text(1)
    assert both.text(0) == ""
    assert len(both.text(1).splitlines()) == 1
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_what_is_wrong_on_all_ranks_is_said_once(tmp_path):
    words = written(tmp_path, optim=replace(tiny().optim, batch_size=15))
    both = ranks.start(2, tmp_path, cli.main, words)
    assert both.wait() == [2, 2], both.texts
    assert both.texts.count("optim.batch_size (15) must be a multiple of optim.accumulate (1) times the 2 ranks.") == 1
