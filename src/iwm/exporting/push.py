"""`iwm push`: a RUN to the Hugging Face hub, by its own client; what would go is shown, and nothing sent, on request.

Repositories are private unless asked otherwise, and one whose visibility is another than asked for is refused. The
token is huggingface_hub's (HF_TOKEN, or `hf auth login`); it is neither an option nor printed.
"""

import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from iwm import config, verbs
from iwm.exporting.export import in_megabytes, sizes_of
from iwm.exporting.format import Request
from iwm.exporting.hub_folder import OPTIONAL, README, licence_of, write_folder
from iwm.exporting.timm_layout import TimmLayout, require_own_encoder
from iwm.model.card import Card
from iwm.runtime import files
from iwm.runtime.console import console, table
from iwm.runtime.devices import Session
from iwm.runtime.errors import UserError
from iwm.verbs.export import Export
from iwm.verbs.push import Push
from iwm.verbs.shared import Published

T = TypeVar("T")
NAME = r"[A-Za-z0-9][\w.-]{0,94}"
SENT = "Image world model, by iwm"
"""How the message of a push's commit begins."""
WRITTEN = (SENT, "Push model using huggingface_hub")
"""How messages of commits begin that bring a card of ours: a push's, and that of `ImageWorldModel.push_to_hub`."""


def push(o: Push) -> dict[str, Any]:
    """Put a RUN into a repository of the hub, and its encoder into another where asked for.

    Returns {"repository", "url", "private", "files": {name: bytes}}, and the same of the encoder under "encoder"; of a
    dry run "url" is empty. Raises UserError for a name without user, without a token, for a repository of another
    visibility or whose model card was edited, and for what the hub refuses, before anything is computed where that can
    be known.
    """
    repositories = [name for name in (o.repository, o.encoder_as) if name]
    for name in repositories:
        require_name(name)
    if len(set(repositories)) < len(repositories):
        raise UserError(f"--encoder-as {o.encoder_as} is the repository of the model; give the encoder one of its own.")
    request = Request(Export(run=o.run, format="hub", out="", **verbs.part(o, Published)))
    _ = request.model
    if o.encoder_as:
        require_own_encoder(request)
    if not o.dry_run:
        require_token()
        for name in repositories:
            require_free(name, o.public)
            require_unedited(name)
    with Session.open(config.Speed(device="cpu", precision="fp32")), tempfile.TemporaryDirectory() as temporary:
        folders = prepare(request, o, Path(temporary))
        sent = [_send(name, folder, o) for name, folder in zip(repositories, folders, strict=True)]
    return sent[0] | ({"encoder": sent[1]} if len(sent) > 1 else {})


def require_name(name: str) -> None:
    """Raises UserError unless this is user/name as the hub allows it."""
    if not re.fullmatch(f"{NAME}/{NAME}", name) or "--" in name or ".." in name:
        raise UserError(f"'{name}' names no repository of the hub; give user/name.")


def require_token() -> None:
    """Raises UserError without a token, and with one that the hub does not know."""
    if not huggingface_hub.get_token():
        raise UserError("There is no token of the Hugging Face hub; run hf auth login, or set HF_TOKEN.")
    _asking("accept the token", HfApi().whoami)


def require_free(name: str, public: bool) -> None:
    """Raises UserError when the repository exists with another visibility than asked for."""

    def private() -> bool | None:
        try:
            return HfApi().model_info(name).private
        except RepositoryNotFoundError:
            return None

    found_private = _asking(f"ask for {name}", private)
    if found_private is False and not public:
        raise UserError(f"{name} exists and is public; add --public, or give another name.")
    if found_private and public:
        raise UserError(f"{name} exists and is private; leave out --public, or change it in its settings on the hub.")


def require_unedited(name: str) -> None:
    """Raises UserError where the repository's model card was last changed by other hands, whose text would be lost."""

    def last_change() -> str:
        try:
            cards = HfApi().get_paths_info(name, README, expand=True)
        except RepositoryNotFoundError:
            return ""
        commit = cards[0].last_commit if cards else None
        return commit.title if commit else ""

    title = _asking(f"ask for {name}", last_change)
    if title and not title.startswith(WRITTEN):
        raise UserError(
            f"The model card of {name} is not as iwm wrote it (its last change: '{title}'); copy what you want to "
            f"keep, delete {README} there, and push again."
        )


def prepare(request: Request, o: Push, folder: Path) -> list[Path]:
    """Write what goes into each repository: the model, and the encoder where asked for."""
    whole, encoder = folder / "whole", folder / "encoder"
    whole.mkdir()
    with torch.no_grad():
        write_folder(request, whole, Card(repository=o.repository, encoder_repository=o.encoder_as))
        if not o.encoder_as:
            return [whole]
        encoder.mkdir()
        timm_request = Request(replace(request.options, format="timm"))
        TimmLayout().write(timm_request, encoder)
    files.write_text(encoder / README, _encoder_card(o))
    return [whole, encoder]


def _encoder_card(o: Push) -> str:
    licence = licence_of(o.run, o.license)
    licence = f"license: {licence}\n" if licence else ""
    return (
        f"---\nlibrary_name: timm\n{licence}pipeline_tag: image-feature-extraction\ntags:\n- timm\n---\n\n"
        f"# {o.encoder_as.split('/')[-1]}\n\nThe encoder of the image world model "
        f"[{o.repository}](https://huggingface.co/{o.repository}), whose card holds results and licence.\n\n"
        "```python\nimport timm\n\n"
        f'encoder = timm.create_model("hf-hub:{o.encoder_as}", pretrained=True).eval()\n'
        "config = timm.data.resolve_model_data_config(encoder)  # mean and deviation of the pixels\n"
        "tokens = encoder.forward_features(images)  # [b, n, d]\n```\n"
    )


def _send(name: str, folder: Path, o: Push) -> dict[str, Any]:
    """Send a folder, and delete what an earlier push put beside it; of a dry run, show it."""
    sizes, visible = sizes_of(folder), "public" if o.public else "private"
    title = f"{'Would go' if o.dry_run else 'Goes'} to {name} ({visible})"
    rows = [[file, in_megabytes(size)] for file, size in sizes.items()]
    console.print(table(title, ["file", "MB"], [*rows, ["together", in_megabytes(sum(sizes.values()))]]))
    result: dict[str, Any] = {"repository": name, "url": "", "private": not o.public, "files": sizes}
    if o.dry_run:
        return result
    api = HfApi()
    message = f"{SENT} {version('iwm')}"
    _asking(f"make {name}", lambda: api.create_repo(name, private=not o.public, exist_ok=True))
    there = _asking(f"list {name}", lambda: api.list_repo_files(name))
    earlier = [file for file in OPTIONAL if file in there and file not in sizes]
    send = partial(api.upload_folder, repo_id=name, folder_path=folder, commit_message=message)
    done = _asking(f"send to {name}", lambda: send(delete_patterns=earlier or None))
    if earlier:
        console.print(f"Deleted there, of an earlier model: {', '.join(earlier)}.")
    url = str(done.commit_url)
    console.print(f"Sent: {url}", soft_wrap=True)
    return result | {"url": url}


def _asking(what: str, call: Callable[[], T]) -> T:
    """The hub's answer. Raises UserError with its first sentence, from which a token is taken out."""
    try:
        return call()
    except Exception as error:  # whatever the network, the hub or its client raises
        root = error.__cause__ or error  # the client wraps what ends an upload
        lines = [line for line in str(root).splitlines() if line.strip()]
        reason = getattr(root, "server_message", None) or (lines or [type(root).__name__])[0]
        token = huggingface_hub.get_token()
        reason = reason.replace(token, "***") if token else reason
        raise UserError(
            f"The hub could not {what} ({reason.strip().rstrip('.')}); check name, token and network."
        ) from None
