"""Say what is on images: a finetuned classifier over a source, one line of CSV an image."""

import csv
import io
from pathlib import Path

from iwm.data.image_sets import ImageSet
from iwm.data.shares import load_chunks, nothing_readable
from iwm.data.sources import open_pictures
from iwm.evaluation.tasks.classifier import Classifier, find_classifier, load_classifier
from iwm.evaluation.tasks.classifier import predict as probabilities_of
from iwm.runtime import distributed, files, sharing
from iwm.runtime.console import console, progress, table, tables_are_printed
from iwm.runtime.devices import Session
from iwm.verbs.predict import Predict

BEST = 5
"""Classes named for an image, most probable first."""
COLUMNS = ("file", "prediction", "probability", *(f"top_{place}" for place in range(1, BEST + 1)))
AT_ONCE = 2**26
"""Bytes of decoded pictures held at once."""


def predict(o: Predict) -> list[dict[str, str]]:
    """Classify every readable image of a source, or one image file, write the CSV and return its lines.

    Each picture is squared as in finetuning: shorter side to the classifier's size, the middle cut out. Columns
    beyond the number of classes stay empty. Raises UserError when there is no such classifier, no image, or no place
    for the CSV.
    """
    path = Path(o.out).expanduser()
    with Session.open(o.speed) as session:
        mend, header = "give --out the name of a new .csv file.", ",".join(COLUMNS).encode()
        sharing.by_first(lambda: files.require_file(path, "The predictions", mend, header))
        folder = find_classifier(o.run)
        classifier = load_classifier(folder, task=o.task)
        images = open_pictures(o.images, classifier.size)
        lines = classify(classifier, images, session)
        sharing.by_first(lambda: _write(path, lines))
        _show(lines, images, classifier, folder, path)
    return lines


def _write(path: Path, lines: list[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    files.write_text(path, text.getvalue())


def _show(lines: list[dict[str, str]], images: ImageSet, classifier: Classifier, folder: Path, path: Path) -> None:
    """Print how many images were called what, and where the file lies."""
    counts = {name: sum(line["prediction"] == name for line in lines) for name in classifier.names}
    rows = sorted(((name, count) for name, count in counts.items() if count), key=lambda row: -row[1])
    if tables_are_printed():
        console.print(table(f"{folder.name} on {images.name}", ["prediction", "images"], rows))
    left_out = len(images) - len(lines)
    if left_out:
        console.print(f"[yellow]{left_out} broken image{'s were' if left_out > 1 else ' was'} left out.")
    console.print(f"Written to {path}", soft_wrap=True)


def classify(classifier: Classifier, images: ImageSet, session: Session) -> list[dict[str, str]]:
    """One line an image that can be decoded: its path, the most probable class and its probability, the best five. Of
    several ranks each does its share, and all get all lines.

    Raises UserError when no image can be decoded.
    """
    lines: list[dict[str, str]] = []
    at_once = max(1, AT_ONCE // (3 * classifier.size**2))
    best = min(BEST, len(classifier.names))
    with distributed.share(), progress("images") as bar:
        task = bar.add_task("predict", total=len(images), note="")
        for pixels, rows in load_chunks(images, classifier.size, at_once):
            with distributed.alone():
                likely = probabilities_of(classifier, pixels, session).topk(best, dim=1)
            for row, values, order in zip(rows, likely.values.tolist(), likely.indices.tolist(), strict=True):
                names = [classifier.names[number] for number in order]
                line = {"file": images.path(int(row)), "prediction": names[0], "probability": f"{values[0]:.6f}"}
                lines.append(line | {f"top_{place}": name for place, name in enumerate(names, start=1)})
            bar.update(task, completed=int(rows[-1]) + 1)
    lines = [line for part in sharing.objects_of_all(lines) for line in part]
    if not lines:
        raise nothing_readable(images)
    return lines
