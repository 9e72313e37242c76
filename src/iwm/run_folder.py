"""What lies in the folder of a run, by name, and how it is read."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from iwm import config
from iwm.actions.action_space import ActionSpace
from iwm.model.vit import choose_attention
from iwm.model.world_model import ImageWorldModel
from iwm.runtime import devices
from iwm.runtime.console import console
from iwm.runtime.errors import UserError
from iwm.runtime.files import sha256_of


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a last line torn by a crash is left out. Raises UserError for any other damage."""
    # What follows the last newline is torn, or empty. Bytes that are no text spoil their own line only.
    *lines, _torn = path.read_text(errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise UserError(f"Line {number} of {path} is damaged; delete that line.") from None
        records.append(record)
    return records


def run_folder(run: str, out: str = "") -> Path:
    """The local folder under which `eval/` of a RUN lies.

    `out` where given; a run folder itself; the run folder of exported weights (its `model/`, or a file in it); for
    what is no local folder (hf-hub:, timm:) `./iwm-eval/NAME`. Raises UserError when a local RUN does not exist.
    """
    if out:
        return Path(out).expanduser()
    if is_remote(run):
        return Path("iwm-eval") / plain_name(run.split(",")[0])
    path = Path(run).expanduser()
    if not path.exists():
        raise UserError(f"There is no run at {run}; give the --out folder of an `iwm pretrain`.")
    if path.is_file():
        path = path.parent
    # RUN/model names the run as well as RUN does: their results belong together.
    is_model = path.resolve().name == "model" and (path.resolve().parent / "config.yaml").is_file()
    return path.resolve().parent if is_model else path


def is_remote(run: str) -> bool:
    """Whether RUN is a name (hf-hub:, timm:) and no place on this disk."""
    return run.startswith(("hf-hub:", "timm:"))


def plain_name(text: str) -> str:
    """A name fit for a file on any system: letters, digits, dot, plus, underscore and dash."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.") or "unnamed"


def read_result(path: Path) -> dict[str, Any]:
    """A result, or an empty dictionary for what is none (absent, damaged, or somebody else's file)."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_results(run: str | Path, out: str = "") -> list[dict[str, Any]]:
    """All results of a RUN in order of their file names, each with its own name under "file" (without .json).

    Damaged files are named on the console and left out.
    """
    folder = run_folder(str(run), out) / "eval"
    found = []
    for path in sorted(folder.glob("*.json")):
        content = read_result(path)
        if "fingerprint" in content:
            found.append({"file": path.stem, **content})
        else:
            console.print(f"[yellow]{path} is no readable result and is left out.")
    return found


def find_weights(run: str) -> Path:
    """The folder that holds `model.safetensors` and `config.json` for a RUN.

    RUN is a run folder, a folder or file of exported weights, or hf-hub:user/name. Raises UserError when it is none.
    """
    if run.startswith("hf-hub:"):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            wanted = ["model.safetensors", "config.json"]
            return Path(snapshot_download(run.removeprefix("hf-hub:"), allow_patterns=wanted))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{run} cannot be fetched ({reason}); give a run folder, or check name and network."
            ) from None
    path = Path(run).expanduser()
    if path.is_file():
        path = path.parent
    if not path.exists():
        raise UserError(f"There is no run at {run}; give the --out folder of an `iwm pretrain`.")
    for folder in (path / "model", path):
        if (folder / "model.safetensors").is_file() and (folder / "config.json").is_file():
            return folder
    if (path / "checkpoints").is_dir():
        raise UserError(f"{run} has no finished weights yet; let its `iwm pretrain` write model/ first.")
    raise UserError(f"{run} is not a run: it has no model/model.safetensors and config.json; give an --out folder.")


def load_model(run: str, device: str | torch.device = "cpu") -> ImageWorldModel:
    """Load a trained world model in eval mode.

    Raises UserError when RUN is none, or is damaged.
    """
    folder = find_weights(run)
    try:
        meta = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
        settings = config.from_dict(config.Config, meta["settings"])
        model = ImageWorldModel(settings, ActionSpace.from_spec(meta["actions"]))
        model.load_state_dict(tensors)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"The weights in {folder} cannot be read ({reason}); export them again.") from None
    return model.eval().requires_grad_(False).to(device)


def open_world(run: str, speed: config.Speed) -> ImageWorldModel:
    """Load a RUN to ask its predictor, on the device and with the attention kernel that `speed` asks for.

    Raises UserError when RUN is none, is damaged, or has no predictor.
    """
    if run.startswith("timm:"):
        raise UserError(f"{run} is an encoder without a predictor; give the run of an `iwm pretrain`.")
    device = devices.device_of(speed)
    model = load_model(run, device)
    model.require_predictor()
    choose_attention(model, device, devices.precision_of(speed, device))
    return model


def identity(run: str) -> str:
    """Content hash of a RUN's weights. Raises UserError when there are none."""
    return sha256_of(find_weights(run) / "model.safetensors")
