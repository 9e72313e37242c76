"""The scripts complete what the command line takes; bash really does, the others are read by their shells."""

import shutil
import subprocess
import sys

import pytest

from iwm import cli, recipe_book, verbs
from iwm.cli import completion
from iwm.evaluation.tasks.probe_kinds import PROBES
from iwm.exporting import FORMATS
from iwm.model.conditioning import CONDITIONINGS
from iwm.model.objectives import OBJECTIVES
from iwm.runtime.options import options
from iwm.sweeps.axes import LEVELS
from iwm.training.optimisers import OPTIMISERS
from iwm.training.trackers import TRACKERS

bash = pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_iwm
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "iwm.bash"
    path.write_text(completion.bash())
    return path


def completed(script, *words):
    """What bash offers for the last of these words."""
    command = ["bash", "-c", ASK, "bash", str(script), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@bash
def test_bash_completes_verbs(script):
    assert completed(script, "iwm", "pr") == [name for name in verbs.names() if name.startswith("pr")]
    assert set(completed(script, "iwm", "")) == {*verbs.names(), "--help", "--version"}


@bash
def test_bash_completes_recipes(script):
    for verb in ("pretrain", "sweep", "recipes"):
        assert set(completed(script, "iwm", verb, "")) == set(recipe_book.RECIPES)
    assert completed(script, "iwm", "pretrain", "cif") == ["cifar10", "cifar10-inv"]


@bash
@pytest.mark.parametrize("name", ["pretrain", "sweep", "segment", "doctor"])
def test_bash_completes_every_option_of_a_verb(script, name):
    flags = {flag for option in options(verbs.find(name).options) for flag in option.flags}
    assert flags <= set(completed(script, "iwm", name, "x", "-"))
    offered = set(completed(script, "iwm", name, "x", "--"))
    assert {"--json", "--quiet", "--help"} <= offered
    assert ("--dry-run" in offered) == bool(verbs.find(name).plan)


@bash
def test_bash_completes_values_and_leaves_the_rest_to_files(script):
    assert completed(script, "iwm", "finetune", "x", "--predictor", "") == ["pretrained", "random"]
    assert completed(script, "iwm", "finetune", "x", "--predictor", "=", "r") == ["random"]
    assert completed(script, "iwm", "pretrain", "demo", "--speed.precision", "=") == ["auto", "fp32", "bf16"]
    assert completed(script, "iwm", "completion", "z") == ["zsh"]
    assert completed(script, "iwm", "world", "runs/m") == []
    assert completed(script, "iwm", "world", "runs/mine", "--out", "") == []
    assert completed(script, "iwm", "segment", "x", "--train", "") == ["head", "predictor", "encoder", "both"]
    assert "last-1" in completed(script, "iwm", "finetune", "x", "--train", "")
    assert completed(script, "iwm", "segment", "x", "--data", "") == ["sample-objects"]
    assert completed(script, "iwm", "export", "x", "--format", "t") == ["timm", "torch"]


@bash
def test_bash_completes_behind_options_of_every_verb(script):
    assert completed(script, "iwm", "--json", "wor") == ["world"]
    assert completed(script, "iwm", "--json", "--quiet", "finetune", "x", "--predictor", "p") == ["pretrained"]
    assert "demo" in completed(script, "iwm", "--json", "pretrain", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_reads_its_script(shell, tmp_path, capsys):
    assert cli.main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    for name in verbs.names():
        assert name in script.read_text()
    if not shutil.which(shell):
        pytest.skip(f"needs {shell}")
    done = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not shutil.which("fish"), reason="needs fish")
def test_fish_completes(tmp_path):
    (tmp_path / "iwm.fish").write_text(completion.fish())
    code = f"source {tmp_path}/iwm.fish; complete -C 'iwm finetune x --predictor '; complete -C 'iwm recipes cifar10-'"
    said = subprocess.run(["fish", "-c", code], capture_output=True, text=True, check=True).stdout
    assert [line.split("\t")[0] for line in said.splitlines()] == ["pretrained", "random", "cifar10-inv"]


@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
def test_zsh_takes_the_script_for_iwm(tmp_path):
    (tmp_path / "script").write_text(completion.zsh())
    code = f"autoload -Uz compinit; compinit -D -u; source {tmp_path}/script; print $_comps[iwm]"
    done = subprocess.run(["zsh", "-f", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "_iwm"


def test_suggested_names_are_the_built_in_ones():
    for name, registry in {
        "objective.kind": OBJECTIVES,
        "predictor.conditioning": CONDITIONINGS,
        "optim.kind": OPTIMISERS,
        "kind": PROBES,
        "conditionings": CONDITIONINGS,
        "format": FORMATS,
        "report_to": TRACKERS,
    }.items():
        assert set(completion.SUGGESTED[name]) == set(registry.built_in), name
    assert set(completion.SUGGESTED["levels"]) == set(LEVELS)
    plain = {(verb, option.name) for verb in verbs.names() for option in options(verbs.find(verb).options)}
    known = {name.removeprefix("settings.") for _, name in plain} | {f"{verb}.{name}" for verb, name in plain}
    assert set(completion.SUGGESTED) <= known


def test_no_torch_is_imported_for_it():
    code = "import sys; from iwm.cli import main; main(['completion', 'bash']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
