"""A world model on the Hugging Face hub: huggingface_hub's mixin over our own save and load, and fetching by name."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import ModelCard, ModelHubMixin

from iwm.runtime import fields
from iwm.runtime.errors import UserError

if TYPE_CHECKING:
    from iwm.model.world_model import ImageWorldModel


def fetch(name: str, **options: Any) -> Path:
    """The local copy of the weights in a repository, user/name or user/name@revision.

    Raises UserError when they cannot be fetched and are not in the cache, and where the repository holds none.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    from iwm.model import weights

    repository, _, revision = name.partition("@")
    options = options if not revision else {**options, "revision": revision}
    wanted = [weights.TENSORS, weights.CONFIG, weights.DECODER]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=wanted, **options))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"hf-hub:{name} cannot be fetched ({reason}); give a run folder, or check name and network."
        ) from None
    if not weights.are_in(folder):
        raise UserError(f"hf-hub:{name} holds no {weights.TENSORS} and {weights.CONFIG}; check the name.")
    return folder


class OnHub(ModelHubMixin, library_name="iwm", tags=["image-world-model", "self-supervised-learning"]):
    """`from_pretrained`, `save_pretrained` and `push_to_hub` of a world model, as of any model of the hub.

    Files are those that `iwm.load` reads. `iwm push` also measures up the card: results, a strip of pictures.
    """

    def _save_pretrained(self, save_directory: Path) -> None:
        from iwm.model import weights

        model = cast("ImageWorldModel", self)
        meta = {"settings": fields.to_dict(model.settings), "actions": model.space.spec(), "student": model.has_student}
        tensors = model.state_dict()
        if not model.has_student:
            tensors = {name: value for name, value in tensors.items() if not name.startswith(weights.STUDENT)}
        weights.write_for_others(save_directory, tensors, meta, model.decoder)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, device: str = "cpu", **download: Any
    ) -> "ImageWorldModel":
        """The model of a folder or of a repository, user/name or user/name@revision, in eval mode.

        `download` are the mixin's options: force_download, token, cache_dir, local_files_only, revision. `config.json`
        is read by our own loader, where the mixin would make arguments of it. Raises UserError when it cannot be had.
        """
        from iwm.model import weights

        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = fetch(str(pretrained_model_name_or_path), **download)
        model = weights.read_model(folder, device)
        decoder = weights.read_decoder(folder)
        model.decoder = None if decoder is None else decoder.to(device)
        return model

    def push_to_hub(self, repo_id: str, *, private: bool | None = True, **options: Any) -> str:
        """Put the model on the hub, private unless asked otherwise; see `huggingface_hub.ModelHubMixin`."""
        about = {"repository": repo_id, **(options.pop("model_card_kwargs", None) or {})}
        return super().push_to_hub(repo_id, private=private, model_card_kwargs=about, **options)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """A card with what the model itself shows; keywords are those of `iwm.model.card.Card`."""
        from iwm.model import card

        return ModelCard(card.text_of(cast("ImageWorldModel", self), card.Card(**kwargs)))
