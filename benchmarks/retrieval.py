"""What does a search by embeddings find, beside a search by colours and by a random encoder?

    python -m benchmarks.retrieval --run demo --data path/to/labelled/images

Two questions. Labels: how many of the nearest training images have the label of a held-out image. Changes: of the
packaged photos each held-out one lies in the gallery in six changed versions; is the version that an action names found
first? The query of the row "changed by hand" is the really changed image: what a search without a predictor can do
where the change can be made in pixels.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

import iwm
from iwm.config import Speed
from iwm.data.loader import load_all
from iwm.data.sources import labelled_splits, open_images
from iwm.evaluation.tasks import features
from iwm.evaluation.tasks.features import FrozenEncoder, RawPixels
from iwm.evaluation.tasks.search import cosines
from iwm.runtime import devices
from iwm.runtime.console import console, table
from iwm.runtime.devices import Session
from iwm.runtime.files import plain

BINS = 6
"""Of each colour channel in the histogram."""
VERSIONS = ({"hue": 0.1}, {"hue": -0.1}, {"hue": 0.05}, {"hue": -0.05}, {"brightness": 0.3}, {"brightness": -0.3})
Rows = Float32[np.ndarray, "n d"]


class Histogram(RawPixels):
    """Square roots of a picture's colour histogram, 6 x 6 x 6 bins: which colours, and not where."""

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 d"]:
        level = images.long() * BINS // 256
        bins = (level[:, 0] * BINS + level[:, 1]) * BINS + level[:, 2]
        counts = torch.nn.functional.one_hot(bins.flatten(1), BINS**3).sum(dim=1)
        return (counts / counts.sum(dim=1, keepdim=True)).sqrt()[:, None]


def orders(gallery: Rows, queries: Rows, own: Int64[np.ndarray, " q"] | None = None) -> Int64[np.ndarray, "q n"]:
    """The gallery's rows by their similarity to each query, without the query's own row."""
    lines = []
    for place, query in enumerate(queries):
        scores = cosines(lambda: [gallery], query)
        if own is not None:
            scores[own[place]] = -np.inf
        lines.append(np.argsort(-scores, kind="stable"))
    return np.stack(lines)


def by_label(run: str, data: str, session: Session) -> list[dict[str, float | str]]:
    """Precision of the label among the nearest 1 and 10, with the standard error over the queries."""
    ours = features.open_encoder(run)
    encoders: dict[str, FrozenEncoder] = {
        f"{run}, last block": ours,
        f"{run}, all blocks": ours.reading(ours.depth),
        "random encoder": ours.drawn_anew(1),
        "colours, 8 x 8": RawPixels(8, ours.size),
        "colour histogram, 216 bins": Histogram(8, ours.size),
    }
    splits = labelled_splits(data, size=ours.size)
    train, test = (
        features.extract(list(encoders.values()), part, session=session) for part in (splits.train, splits.val)
    )
    lines: list[dict[str, float | str]] = []
    for name, gallery, queries in zip(encoders, train.features, test.features, strict=True):
        nearest = orders(gallery.numpy(), queries.numpy())[:, :10]
        right = train.labels.numpy()[nearest] == test.labels.numpy()[:, None]
        line: dict[str, float | str] = {"query": name}
        for count in (1, 10):
            shares = right[:, :count].mean(axis=1)
            line |= {f"at_{count}": shares.mean(), f"at_{count}_error": shares.std() / len(shares) ** 0.5}
        lines.append(line)
    lines.append({"query": "chance", "at_1": (share := _chance(train.labels, test.labels)), "at_10": share})
    return lines


def _chance(train: Int64[Tensor, " n"], test: Int64[Tensor, " m"]) -> float:
    """The share of images of the query's class."""
    shares = torch.bincount(train).double() / len(train)
    return float(shares[test].mean())


@torch.no_grad()
def by_change(run: str, session: Session) -> list[dict[str, float | str]]:
    """Is the version that the action names the first of the gallery? Mean over versions and photos."""
    world = iwm.load(run)
    size, space = world.settings.data.image_size, world.space
    train, held = (load_all(open_images("sample", split), size)[0] for split in ("train", "val"))
    actions = torch.stack([space.encode(**version) for version in VERSIONS])
    changed = [_changed(held, world, action) for action in actions]
    gallery = torch.cat([*changed, held, train])
    count = len(held)
    own = np.arange(count) + len(VERSIONS) * count

    def encoder(images: UInt8[Tensor, "n 3 s s"]) -> Rows:
        return torch.cat([world.encode(part).pooled for part in images.split(64)]).numpy()

    def target(images: UInt8[Tensor, "n 3 s s"]) -> Rows:
        return torch.cat([world.target(part).pooled for part in images.split(64)]).numpy()

    def predicted(images: UInt8[Tensor, "n 3 s s"], action: Tensor) -> Rows:
        parts = [world.predict(world.encode(part), action).pooled for part in images.split(64)]
        return torch.cat(parts).numpy()

    def colours(images: UInt8[Tensor, "n 3 s s"]) -> Rows:
        return features.encode(RawPixels(8, size), images, session=session).numpy()

    in_target, in_encoder, in_colours = target(gallery), encoder(gallery), colours(gallery)
    asked = {
        "predicted, told the action": [(in_target, predicted(held, action)) for action in actions],
        "predicted, no action": [(in_target, predicted(held, space.null(1)[0]))] * len(actions),
        "encoder, as it is": [(in_encoder, encoder(held))] * len(actions),
        "colours, as it is": [(in_colours, colours(held))] * len(actions),
        "encoder, changed by hand": [(in_encoder, encoder(each)) for each in changed],
        "colours, changed by hand": [(in_colours, colours(each)) for each in changed],
    }
    lines: list[dict[str, float | str]] = []
    for name, pairs in asked.items():
        ranks = []
        for number, (rows, queries) in enumerate(pairs):
            order = orders(rows, queries, own)
            wanted = np.arange(count) + number * count
            ranks.append(1 + np.argmax(order == wanted[:, None], axis=1))
        first = (np.stack(ranks) == 1).mean(axis=0)  # of a photo over the versions: these are not independent
        line: dict[str, float | str] = {"query": name, "top1": first.mean(), "mrr": (1 / np.stack(ranks)).mean()}
        lines.append(line | {"top1_error": first.std() / count**0.5, "gallery": len(gallery)})
    return lines


def _changed(images: UInt8[Tensor, "n 3 s s"], world: iwm.ImageWorldModel, action: Tensor) -> UInt8[Tensor, "n 3 s s"]:
    """The images really changed, rounded as in a picture file."""
    parameters = world.space.reach(action.expand(len(images), -1))
    return (world.space.apply(images.float() / 255, parameters).clamp(0, 1) * 255).round().byte()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval", description="What does a search find?")
    parser.add_argument("--run", default="demo")
    parser.add_argument("--data", default="", help="a labelled source; without it only the question of changes")
    parser.add_argument("--out", type=Path, help="file of the numbers, JSON")
    given = parser.parse_args()
    with Session.open(Speed(precision="fp32", device="cpu")) as session:
        results = {"changes": by_change(given.run, session)}
        if given.data:
            results["labels"] = by_label(given.run, given.data, session)
    for name, lines in results.items():
        rows = [[line.get(key) for key in lines[0]] for line in lines]
        console.print(table(name, list(lines[0]), rows))
    if given.out:
        content = {**results, "run": given.run, "data": Path(given.data).name, "hardware": devices.describe()}
        given.out.write_text(json.dumps(plain(content), indent=1) + "\n")


if __name__ == "__main__":
    main()
