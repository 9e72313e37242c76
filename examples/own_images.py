import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="A world model of your own images")


@app.cell(hide_code=True)
def _():
    import marimo as mo

    return (mo,)


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    # A world model of your own images

    Ask what a training would cost, train, watch whether the encoder collapses, and look at what the model imagines.
    `photos` may be the path of a folder, a `.zip` or an `.npz` instead: nothing else changes. It takes about a minute
    on one processor core; for a model that is worth something give it more steps.
    """)
    return


@app.cell
def _():
    import tempfile
    from pathlib import Path

    import iwm

    folder = Path(tempfile.mkdtemp(prefix="iwm-own-"))
    photos = "sample"
    small = {
        "data.image_size": 32,
        "encoder.width": 96,
        "encoder.depth": 4,
        "encoder.heads": 3,
        "encoder.patch_size": 8,
        "predictor.width": 64,
        "predictor.depth": 2,
        "optim.epochs": 20,
        "run.log_every": 100,
        "run.save_every": 10_000,
    }
    return folder, iwm, photos, small


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    ## What will it cost?

    The steps are counted and one of them is taken on random images, which writes nothing. This is the command line,
    `iwm pretrain demo --data.source ... --dry-run`.
    """)
    return


@app.cell
def _(folder, photos, small):
    from iwm import cli

    words = [f"--{name.removeprefix('run.').replace('_', '-')}={value}" for name, value in small.items()]
    cli.main(["pretrain", "demo", "--data.source", photos, "--out", str(folder / "run"), *words, "--dry-run"])
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    ## Train, and watch for collapse

    A falling loss does not tell a good run from a collapsed one. The callback keeps two numbers that do: RankMe, the
    number of directions that the features use, and the share of the targets that is explained beyond the position.
    """)
    return


@app.class_definition
class Health:
    def __init__(self):
        self.lines = []

    def on_log(self, state, line):
        explained = 1 - line["health_loss"] / line["position_mean_loss"]
        self.lines.append((state.step, line["loss"], line["rankme"], explained))


@app.cell
def _(folder, iwm, photos, small):
    watch = Health()
    run = iwm.pretrain("demo", data=photos, out=folder / "run", callbacks=[watch], **small)
    run
    return run, watch


@app.cell
def _(run, watch):
    for step, loss, rank, explained in watch.lines:
        print(f"step {step}: loss {loss:.2f}, {rank:.0f} directions, {explained:.0%} explained")
    run.verdict()
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    ## See what it predicts

    A prediction is tokens. A small decoder, fitted to the model's targets alone, shows them as pixels; beside it stands
    the truth after the same decoder, for blur in that one is the decoder's.
    """)
    return


@app.cell
def _(iwm, photos, run):
    decoder = iwm.decoder(run, images=200, changes=2, test_images=20)
    photo = iwm.open_images(photos, "val", size=32).load(0).permute(1, 2, 0).numpy()
    answer = iwm.imagine(run, photo, action="hue=0.1,brightness=-0.2", bank=64)
    answer.figure()
    return answer, decoder


@app.cell
def _(answer, decoder):
    print(f"The truth is number {answer.rank:.0f} of {answer.bank}.")
    print(f"Imagined {decoder.psnr_prediction:.1f} dB, left as it is {decoder.psnr_null:.1f} dB.")
    return


if __name__ == "__main__":
    app.run()
