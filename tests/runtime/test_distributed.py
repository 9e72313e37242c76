"""Several processes of one command are refused: they would all write one folder."""

import pytest

from iwm import cli, verbs
from iwm.runtime.distributed import require_one_process
from iwm.runtime.errors import UserError

SENTENCE = (
    "iwm runs as one process so far, and WORLD_SIZE is 2: every process would write the same files; start it without "
    "torchrun, or unset WORLD_SIZE."
)


def test_torchrun_with_several_processes_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    out = tmp_path / "run"
    assert cli.main(["pretrain", "demo", "--out", str(out)]) == 2
    assert capsys.readouterr().err.strip() == SENTENCE
    with pytest.raises(UserError, match="WORLD_SIZE is 2"):
        verbs.call("demo", out=str(out))
    assert not out.exists()


@pytest.mark.parametrize("size", ["1", "", "0", None])
def test_one_process_is_welcome(monkeypatch, size):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    require_one_process()
