"""safetensors: our own layout, `model.safetensors` and `config.json`, which `iwm.load` reads."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from iwm.exporting.format import ExportFormat, Request
from iwm.model import weights
from iwm.runtime.console import console
from iwm.runtime.errors import UserError


class OwnLayout(ExportFormat):
    """The weights as they are, tensor for tensor, with the pixel decoder; paths of this machine are left out."""

    name = "safetensors"
    takes = ("small",)

    def write(self, request: Request, folder: Path) -> dict[str, Any]:
        write_weights(request, folder)
        return {"finetuned": request.finetuned} if request.finetuned else {}

    def usage(self, out: Path, result: dict[str, Any]) -> list[str]:
        if kind := result.get("finetuned"):
            verb = {"classifier": "predict", "segmenter": "segment"}[kind]
            return [f"In Python: iwm.load_{kind}({str(out)!r}); iwm {verb} takes {out}."]
        return [f"In Python: iwm.load({str(out)!r}); every command takes {out} as RUN."]


def write_weights(request: Request, folder: Path) -> None:
    """Write the weights of a RUN as they may leave this machine. Raises UserError when they cannot be read."""
    small = request.options.small
    if request.finetuned and small:
        raise UserError(f"--small is of world models, {request.run} is a {request.finetuned}; leave it out.")
    if not request.finetuned and request.encoder_is_published:
        name = request.meta["settings"]["encoder"]["name"]
        console.print(f"The encoder is {name} as it is published: it is named, and fetched when these are loaded.")
    try:
        tensors = weights.read_tensors(request.place, request.meta)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"The weights in {request.place} cannot be read ({error}); export them again.") from None
    decoder = None if request.finetuned else request.model.decoder
    weights.write_for_others(folder, tensors, request.meta, decoder, rounded=small)
