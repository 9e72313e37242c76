import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="A tour of iwm")


@app.cell(hide_code=True)
def _():
    import marimo as mo

    return (mo,)


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    # A tour of `iwm` in Python

    Train a small Image World Model on the embedded photos, ask it what an image would look like after a change, and
    measure what its encoder knows, also on images of your own in memory. It takes about a minute on one processor core.
    Such a small model on 800 photos learns a little; `iwm demo` trains a larger one.
    """)
    return


@app.cell
def _():
    import tempfile
    from pathlib import Path

    import numpy as np

    import iwm

    folder = Path(tempfile.mkdtemp(prefix="iwm-tour-"))
    return folder, iwm, np


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    ## Train

    `iwm.pretrain` takes a recipe, images and a folder. Settings have a dot in their name. A callback is any object with
    one of the methods of `iwm.Callback`; this one keeps the loss, and adds a number of its own to each line of metrics.
    """)
    return


@app.class_definition
class Curve:
    def __init__(self):
        self.steps, self.losses = [], []

    def on_log(self, state, line):
        self.steps.append(state.step)
        self.losses.append(line["loss"])
        line["loss_over_position_mean"] = line["loss"] / line["position_mean_loss"]


@app.cell
def _(folder, iwm):
    curve = Curve()
    small = {
        "data.image_size": 32,
        "encoder.width": 96,
        "encoder.depth": 4,
        "encoder.heads": 3,
        "predictor.width": 64,
        "predictor.depth": 2,
        "optim.epochs": 20,
        "optim.batch_size": 64,
        "run.log_every": 40,
        "run.save_every": 10_000,
    }
    run = iwm.pretrain("demo", data="sample", out=folder / "run", callbacks=[curve], **small)
    run
    return curve, run


@app.cell
def _(curve, run):
    print(f"The loss went from {curve.losses[0]:.2f} to {curve.losses[-1]:.2f} in {curve.steps[-1]} steps.")
    run.figure()
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    ## How good is the world model?

    A prediction should be nearest to the true one of 64 changed versions of an image. `mrr` is 1 where it always is,
    and `mrr_chance` where the model guesses. Results are objects: they show as a table with their picture and hold what
    their JSON file holds.
    """)
    return


@app.cell
def _(iwm, run):
    world = iwm.world(run, data="sample", images=16, bank=64)
    world
    return (world,)


@app.cell
def _(world):
    print(f"MRR {world.mrr:.2f}, chance {world.mrr_chance:.2f}; {len(world)} entries in {world.path.name}")
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    ## Images of your own, in memory

    Here an array of images and their labels, drawn from the embedded objects; a PyTorch dataset, a list of PIL images
    or of paths are taken just as well. The last hundred are left to measure on.
    """)
    return


@app.cell
def _(iwm, np):
    objects = iwm.open_images("sample-objects", "train", size=32)
    images = np.stack([objects.load(index).permute(1, 2, 0).numpy() for index in range(500)])
    names = [objects.classes[label] for label in objects.labels[:500]]
    lessons, exam = (images[:400], names[:400]), (images[400:], names[400:])
    images.shape, sorted(set(names))
    return exam, images, lessons


@app.cell
def _(exam, iwm, lessons, run):
    probe = iwm.probe(run, data=lessons, val=exam, kind="knn", data_name="objects-in-memory")
    probe
    return (probe,)


@app.cell
def _(exam, iwm, lessons, run):
    tuned = iwm.finetune(
        run, data=lessons, val=exam, data_name="objects-in-memory", train="head", epochs=30, views=1, lrs=(3e-3,)
    )
    tuned
    return (tuned,)


@app.cell
def _(exam, iwm, tuned):
    import torch

    classifier = iwm.load_classifier(tuned.weights)
    with torch.no_grad():
        logits = classifier(torch.from_numpy(exam[0][:4]).permute(0, 3, 1, 2))
    [classifier.names[index] for index in logits.argmax(1)], exam[1][:4]
    return (torch,)


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    ## Imagine

    What would this picture look like if it were brighter? The answer is a set of tokens, no pixels; what is shown is
    the version of the picture whose tokens are nearest to it, and the rank of the true one. The model may also be asked
    directly.
    """)
    return


@app.cell
def _(images, iwm, run):
    answer = iwm.imagine(run, images[0], action="brightness=0.3", bank=64)
    answer.figure()
    return (answer,)


@app.cell
def _(images, run, torch):
    model = run.load()
    with torch.no_grad():
        tokens = model.encode(torch.from_numpy(images[:1]).permute(0, 3, 1, 2))
        future = model.predict(tokens, model.action(brightness=0.3))
    tokens.values.shape, future.values.shape
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    ## Report

    One HTML file with everything that was measured on the run.
    """)
    return


@app.cell
def _(answer, iwm, probe, run, tuned, world):
    _ = answer, probe, tuned, world  # after these
    report = iwm.report(run)
    report
    return


if __name__ == "__main__":
    app.run()
