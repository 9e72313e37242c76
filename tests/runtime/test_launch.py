"""python, torchrun and srun find out by themselves what they are."""

import os
import socket
from pathlib import Path

import pytest
import ranks
import torch

from iwm import cli, verbs
from iwm.runtime import distributed
from iwm.runtime.errors import UserError
from iwm.runtime.launch import Place, first_host, interface_to, place, reachable, require_one_process

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
TORCHRUN |= {"MASTER_ADDR": "node1", "MASTER_PORT": "29500", "TORCHELASTIC_RESTART_COUNT": "2"}
BATCH = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_NODELIST": "gpu[03-04]"}
"""What a script in an allocation sees, without srun."""
SRUN = BATCH | {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"}
SRUN |= {"SLURM_STEP_NODELIST": "gpu[03-04]", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}


def test_torchrun():
    assert place(TORCHRUN) == Place("torchrun", 3, 8, 1, 2, "node1", 29500, "2", True)
    assert not place(TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).hosts_store


def test_srun():
    assert place(SRUN) == Place("srun", 5, 8, 1, 4, "gpu03", 20000 + 4711, "0", True)
    assert place(SRUN | {"MASTER_ADDR": "head", "MASTER_PORT": "1234"}).address == "head"


def test_torchrun_inside_srun_is_torchrun():
    assert place(SRUN | TORCHRUN).launcher == "torchrun"
    assert place(SRUN | {"WORLD_SIZE": "1", "RANK": "0"}) == Place()


@pytest.mark.parametrize("variables", [{}, BATCH, SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, {"WORLD_SIZE": ""}])
def test_one_process(variables):
    """Also `python` in an allocation of eight tasks, without srun."""
    assert place(variables) == Place()


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("gpu[03-05,9],cpu1", "gpu03"),
        ("n1,n2", "n1"),
        ("node[7]", "node7"),
        ("a-b[001,003]", "a-b001"),
        ("", "127.0.0.1"),
    ],
)
def test_the_first_host_of_slurms_list(hosts, first):
    assert first_host(hosts) == first


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set; start several processes with torchrun or srun, or unset WORLD_SIZE"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE is 'two'; start"),
        (TORCHRUN | {"RANK": "8"}, "This process is rank 8 of 8"),
    ],
)
def test_variables_that_contradict_one_another(variables, sentence):
    with pytest.raises(UserError, match=sentence):
        place(variables)


def test_the_way_to_another_machine_is_an_interface_and_this_machine_itself_is_none():
    assert interface_to("127.0.0.1") == ""
    name = interface_to("10.254.254.254")
    assert not name or name in [each for _, each in socket.if_nameindex()]


@pytest.mark.parametrize(
    ("own", "of_all", "address"),
    [
        ("10.0.0.1", ["10.0.0.1", "10.0.0.1"], "10.0.0.1"),
        ("127.0.1.1", ["127.0.1.1", "10.0.0.1"], "10.0.0.1"),  # Debian's /etc/hosts on rank 0's host
        ("192.168.0.1", ["127.0.1.1", "10.0.0.1", "192.168.0.1"], "192.168.0.1"),  # a host of several networks
        ("127.0.0.1", ["127.0.0.1", "127.0.0.1"], "127.0.0.1"),
        ("", ["", "10.0.0.1"], "10.0.0.1"),
    ],
)
def test_the_address_of_rank_0_is_one_that_other_hosts_reach(own, of_all, address):
    assert reachable(own, of_all) == address


def meeting(folder: str) -> None:
    """On a host of its own each rank knows rank 0 by another address, and by each another interface leads there."""
    rank = os.environ["RANK"]
    distributed.address_of = {"0": lambda host: "127.0.1.1", "1": lambda host: "10.0.0.1"}[rank]
    distributed.interface_to = lambda address: {"10.0.0.1": "lo"}[address]  # in a process of this test's own
    with distributed.together() as where, distributed.group(where, torch.device("cpu")):
        Path(folder, f"interface-{rank}").write_text(os.environ["GLOO_SOCKET_IFNAME"])


def test_rank_0_whose_name_leads_to_itself_takes_the_interface_that_the_others_reach(tmp_path):
    both = ranks.start(2, tmp_path, meeting, str(tmp_path))
    assert both.wait() == [0, 0], both.texts
    assert [(tmp_path / f"interface-{rank}").read_text() for rank in range(2)] == ["lo", "lo"]


def test_verbs_of_one_process_refuse_several_before_anything_is_written(tmp_path, monkeypatch, capsys):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    sentence = "iwm demo is the work of one process, and torchrun started 8, which would all do the same; start it"
    out = tmp_path / "run"
    assert cli.main(["demo", "--out", str(out)]) == 2
    assert capsys.readouterr().err.strip() == f"{sentence} without torchrun."
    for verb in verbs.names():
        if not verbs.find(verb).ranks:
            with pytest.raises(UserError, match=f"iwm {verb} is the work of one process"):
                require_one_process(verb)
    assert not out.exists()
    shared = {verb for verb in verbs.names() if verbs.find(verb).ranks}
    assert {"pretrain", "world", "probe", "finetune", "segment", "multitask", "efficiency", "predict"} <= shared
    assert not shared & {"imagine", "infer", "report", "compare", "doctor", "app", "sweep", "demo"}
