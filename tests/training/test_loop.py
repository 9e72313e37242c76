"""Training: exact resume, safety, and that it truly learns."""

import errno
import json
import os
import shutil
import signal
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from actions.test_transformation import CODE
from conftest import DEVICES, pictures_file, tiny, trained_on, with_run
from picture_files import noise, write
from safetensors.torch import load_file

from iwm import config, run_folder
from iwm.actions import action_sets
from iwm.actions.transformation import read_transformations
from iwm.data.loader import Batch
from iwm.data.sources import open_images, open_splits
from iwm.model.vit import choose_attention
from iwm.model.weights import TENSORS
from iwm.run_folder import RunFolder
from iwm.runtime import devices
from iwm.runtime.devices import Session
from iwm.runtime.errors import Busy, Interrupted, UserError
from iwm.training import checkpoint, estimate, loop, step
from iwm.training.callbacks import State
from iwm.training.step import Training


def settings(tmp_path: Path, name: str = "run", **groups) -> config.Config:
    source = tmp_path / "pictures.npz"
    if not source.exists():
        pictures_file(source)
    base = tiny(**groups)
    return replace(base, data=replace(base.data, source=str(source)), run=replace(base.run, out=str(tmp_path / name)))


def started(settings: config.Config) -> Training:
    """The state before the first of four steps an epoch."""
    return Training.start(settings, 4, Session.of(settings.speed))


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(RunFolder(out).model / TENSORS)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Press Ctrl-C while step `step` is being computed."""
    real = Training.step

    def stepping(self, batch):
        if batch.step == step:
            signal.raise_signal(signal.SIGINT)
        return real(self, batch)

    monkeypatch.setattr(Training, "step", stepping)


def test_a_run_leaves_what_the_contract_says(trained):
    out = trained
    assert {p.name for p in out.iterdir()} >= {"config.yaml", "metrics.jsonl", "checkpoints", "model", "gallery.png"}
    lines = RunFolder(out).metric_lines()
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    keys = {"step", "epoch", "loss", "position_mean_loss", "identity_loss", "rankme", "target_variance"}
    keys |= {"action_sensitivity", "lr", "ema", "images_per_second", "precision"}
    assert all(keys <= set(line) for line in lines)
    assert lines[-1]["epoch"] == 2
    model = run_folder.load_model(str(out))
    assert not model.training
    assert model.settings == RunFolder(out).settings()


@pytest.mark.parametrize(("norm", "kind"), [("batch", "adamw"), ("token", "adamw"), ("batch", "muon")])
def test_resume_equals_no_interruption_bit_for_bit(tmp_path, monkeypatch, norm, kind):
    objective = config.Objective(target_norm=norm, variance=0.5, covariance=0.1)
    made = [settings(tmp_path, name, objective=objective) for name in ("straight", "stopped")]
    plain, stopped = (replace(chosen, optim=replace(chosen.optim, kind=kind)) for chosen in made)
    straight = loop.pretrain(plain)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        with pytest.raises(Interrupted, match="Saved at step 5 of 8"):
            loop.pretrain(stopped)
    out = loop.pretrain(stopped)
    one, two = weights(straight), weights(out)
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name
    kept = {"step", "loss", "rankme", "lr"}
    logged = [[{k: line[k] for k in kept} for line in RunFolder(o).metric_lines()] for o in (straight, out)]
    assert [line["step"] for line in logged[1]] == [2, 4, 6, 8]
    assert logged[0][-1] == logged[1][-1]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_run_that_goes_on_lets_go_of_its_checkpoint(tmp_path, monkeypatch, kind):
    """A file that is still mapped keeps its space when it is deleted, and on NFS its folder cannot go."""
    chosen = settings(tmp_path)
    chosen = replace(chosen, optim=replace(chosen.optim, kind=kind))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        with pytest.raises(Interrupted):
            loop.pretrain(chosen)
    mapped: dict[int, list[str]] = {}

    class Watch:
        def on_step(self, state: State) -> None:
            lines = Path("/proc/self/maps").read_text().splitlines()
            mapped[state.step] = [line for line in lines if str(tmp_path) in line and "state.safetensors" in line]

    loop.pretrain(chosen, callbacks=[Watch()])
    assert mapped == {6: [], 7: [], 8: []}


@pytest.mark.parametrize("kind", ["latent", "pixels"])
def test_images_grow_and_a_resumed_run_grows_them_at_the_same_step(tmp_path, monkeypatch, kind):
    """Half the side in the first 5 of 8 steps, interrupted before and after; the statistics of the targets go on."""
    groups = {
        "data": config.Data(image_size=16, start_size=8, start_share=0.6),
        "objective": config.Objective(kind=kind, target_norm="batch", variance=0.5, covariance=0.1),
        "masks": config.Masks(predict="all", queries=0.5, whole=0.25),
    }
    plain, stopped = (settings(tmp_path, name, **groups) for name in ("straight", "stopped"))
    seen: dict[int, tuple[int, ...]] = {}
    real = Training.step

    def watching(self, batch):
        seen[batch.step] = tuple(batch.images.shape)
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", watching)
        straight = loop.pretrain(plain)
    assert [seen[number] for number in range(8)] == [(16, 3, 8, 8)] * 5 + [(16, 3, 16, 16)] * 3
    for place in (2, 6):
        with monkeypatch.context() as patch:
            interrupt_at(patch, place)
            with pytest.raises(Interrupted):
                loop.pretrain(stopped)
    one, two = weights(straight), weights(loop.pretrain(stopped))
    assert not [name for name in one if not torch.equal(one[name], two[name])]
    assert run_folder.load_model(str(straight)).grid == (4, 4)


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path, monkeypatch):
    chosen = settings(tmp_path)
    out = Path(chosen.run.out)

    def crash(self, batch):
        raise RuntimeError("power cut")

    real = Training.step
    monkeypatch.setattr(
        Training, "step", lambda self, batch: crash(self, batch) if batch.step == 5 else real(self, batch)
    )
    with pytest.raises(RuntimeError, match="power cut"):
        loop.pretrain(chosen)
    assert [line["step"] for line in RunFolder(out).metric_lines()] == [2, 4]
    with RunFolder(out).metrics.open("a") as file:
        file.write('{"step": 6, "torn')
    monkeypatch.setattr(Training, "step", real)
    loop.pretrain(chosen)  # from the checkpoint at step 3
    assert [line["step"] for line in RunFolder(out).metric_lines()] == [2, 4, 6, 8]


OWN_SET = CODE.replace("SET = (GAMMA, FADE)", "SET = (GAMMA,)").replace("both=False", "both=True")


def stopped_with_an_own_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[config.Config, Path]:
    """The settings of a run that was stopped at step 5 of 8, and the file of its transformations."""
    monkeypatch.setattr(action_sets, "USERS", {})
    monkeypatch.setattr(action_sets, "REGISTERED", {})
    mine = tmp_path / "mine.py"
    mine.write_text(OWN_SET)
    action_sets.import_set(f"{mine}:SET")
    chosen = settings(tmp_path, actions=config.Actions(set=f"{mine}:SET"))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        with pytest.raises(Interrupted, match="Saved at step 5 of 8"):
            loop.pretrain(chosen)
    return chosen, mine


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (("high=2.0", "high=4.0"), r"with the range 0\.5 to 2\.0 of 'gamma', now it is 0\.5 to 4\.0"),
        (("SET = (GAMMA,)", "SET = (GAMMA, FADE)"), "without the transformation 'fade', which is there now"),
        (("SET = (GAMMA,)", "SET = (FADE,)"), "with the transformation 'gamma', which is not there now"),
        (("probability=1.0", "probability=0.9"), r"with probability = 1\.0 of 'gamma', now it is 0\.9"),
    ],
)
def test_transformations_that_changed_since_are_named_on_resume(tmp_path, monkeypatch, edit, said):
    chosen, mine = stopped_with_an_own_set(tmp_path, monkeypatch)
    mine.write_text(OWN_SET.replace(*edit))
    action_sets.import_set(f"{mine}:SET")
    mend = "; put the transformations back as they were, or give another --out"
    with pytest.raises(UserError, match=f"run was trained {said}{mend}"):
        loop.pretrain(chosen)
    mine.write_text(OWN_SET)
    action_sets.import_set(f"{mine}:SET")
    assert RunFolder(loop.pretrain(chosen)).metric_lines()[-1]["step"] == 8


def test_a_transformation_registered_since_is_named_on_resume(tmp_path, monkeypatch):
    """Also where the checkpoint is too old to say which there were: there it is the weights that do not fit."""
    chosen, mine = stopped_with_an_own_set(tmp_path, monkeypatch)
    for member in read_transformations(f"{mine}:FADE"):
        action_sets.register(member)
    with pytest.raises(UserError, match="without the transformation 'fade', which is there now"):
        loop.pretrain(chosen)
    for path in RunFolder(Path(chosen.run.out)).checkpoints.glob("*/state.json"):
        old = {key: value for key, value in json.loads(path.read_text()).items() if key != "actions"}
        path.write_text(json.dumps(old))
    with pytest.raises(UserError, match=r"does not fit the present model \(size mismatch .* transformations back"):
        loop.pretrain(chosen)
    action_sets.REGISTERED.clear()
    loop.pretrain(chosen)  # an older checkpoint goes on as before


def test_a_damaged_checkpoint_falls_back_to_the_one_before(trained, tmp_path, monkeypatch, capsys):
    chosen, out = settings(tmp_path), trained
    wanted = weights(out)
    newest = sorted((RunFolder(out).checkpoints).glob("step-*"))[-1]
    state = newest / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    loop.pretrain(chosen)
    assert "damaged" in capsys.readouterr().err
    assert all(torch.equal(wanted[name], value) for name, value in weights(out).items())


def test_only_damaged_checkpoints_are_an_error(trained, tmp_path):
    chosen, out = settings(tmp_path), trained
    for folder in RunFolder(out).checkpoints.glob("step-*"):
        (folder / "state.json").write_text("{")
    with pytest.raises(UserError, match="No checkpoint in"):
        loop.pretrain(chosen)


def test_a_checkpoint_is_whole_or_absent(trained, tmp_path, monkeypatch):
    chosen, out = settings(tmp_path), trained
    names = sorted(p.name for p in RunFolder(out).checkpoints.iterdir())
    assert names == ["step-00000006", "step-00000008"]

    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    training = started(chosen)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(RunFolder(out).checkpoints, 9, training.model, training.optimisers, 2, 64)
    assert sorted(p.name for p in (RunFolder(out).checkpoints).glob("step-*")) == names
    assert checkpoint.newest(RunFolder(out).checkpoints)[0].step == 8  # pyright: ignore


def test_a_drifted_setting_is_named(trained, tmp_path):
    chosen = settings(tmp_path)
    drifted = replace(chosen, optim=replace(chosen.optim, lr=0.1))
    with pytest.raises(UserError, match=r"optim\.lr = 0\.002, now it is 0\.1"):
        loop.pretrain(drifted)
    with pytest.raises(UserError, match=r"seed"):
        loop.pretrain(with_run(chosen, seed=4))
    loop.pretrain(with_run(replace(chosen, speed=replace(chosen.speed, threads=1)), log_every=7))


def test_epochs_may_be_extended(trained, tmp_path):
    chosen = settings(tmp_path)
    out = loop.pretrain(replace(chosen, optim=replace(chosen.optim, epochs=3)))
    assert RunFolder(out).metric_lines()[-1]["step"] == 12
    with pytest.raises(UserError, match=r"past the 8 steps of these settings; raise optim\.epochs"):
        loop.pretrain(chosen)
    out = loop.pretrain(replace(chosen, optim=replace(chosen.optim, steps=14)))  # within the fourth epoch
    assert RunFolder(out).metric_lines()[-1]["step"] == 14
    with pytest.raises(UserError, match=r"past the 13 steps of these settings; raise optim\.steps"):
        loop.pretrain(replace(chosen, optim=replace(chosen.optim, steps=13)))


def test_a_length_that_would_be_passed_over_is_refused(tmp_path):
    chosen = settings(tmp_path)
    by_steps = replace(chosen, optim=replace(chosen.optim, steps=9))
    with pytest.raises(UserError, match=r"optim\.steps 9, and optim\.epochs \(7\) would decide nothing"):
        loop.check_drift(by_steps, replace(by_steps, optim=replace(by_steps.optim, epochs=7)), tmp_path)
    loop.check_drift(by_steps, replace(chosen, optim=replace(chosen.optim, epochs=7)), tmp_path)
    grown = replace(chosen, data=replace(chosen.data, start_size=8))
    with pytest.raises(UserError, match="grow after a share of its length"):
        loop.check_drift(grown, replace(grown, optim=replace(grown.optim, epochs=7)), tmp_path)


def test_a_warm_up_without_end_is_said(tmp_path, capsys):
    """Weights of a training whose rate never came to its peak are a disappointment nobody can explain."""
    for warmup, said in ((2.0, True), (1.9, False)):
        chosen = settings(tmp_path, f"warm-{warmup}")
        loop.pretrain(replace(chosen, optim=replace(chosen.optim, warmup_epochs=warmup, epochs=2)))
        assert ("lower optim.warmup_epochs" in " ".join(capsys.readouterr().out.split())) is said


def test_a_replay_elsewhere_gives_the_same_weights(trained, tmp_path):
    one = weights(trained)
    loaded = RunFolder(tmp_path / "run").settings()
    two = weights(loop.pretrain(with_run(loaded, out=str(tmp_path / "replay"))))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_no_resume_refuses_a_folder_with_a_run(trained, tmp_path):
    chosen = settings(tmp_path)
    with pytest.raises(UserError, match="already holds a run"):
        loop.pretrain(with_run(chosen, resume=False))


def one_batch(count: int = 16) -> Batch:
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batch(step=0, indices=np.arange(count), images=images, labels=None, waited=0.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_step_never_waits_for_the_gpu(kind):
    base = tiny(speed=config.Speed(device="cuda", precision="bf16"))
    chosen = replace(
        base, optim=replace(base.optim, kind=kind), objective=config.Objective(variance=0.1, covariance=0.1)
    )
    training = started(chosen)
    training.step(one_batch())  # allocates
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.step(replace(one_batch(), step=1))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("norm", ["batch", "token"])
def test_accumulation_gives_the_same_step(norm):
    after = []
    for parts in (1, 4):
        base = tiny(objective=config.Objective(target_norm=norm))
        training = started(replace(base, optim=replace(base.optim, accumulate=parts)))
        loss, finite = training.step(one_batch())
        assert bool(finite)
        after.append((float(loss), {k: v.clone() for k, v in training.model.state_dict().items()}))
    assert after[0][0] == pytest.approx(after[1][0], rel=1e-5)
    for name, value in after[0][1].items():
        torch.testing.assert_close(value, after[1][1][name], atol=2e-5, rtol=1e-4, msg=name)


def test_precision_changes_little_and_is_recorded(tmp_path):
    losses = {}
    for precision in ("fp32", "bf16"):
        training = started(tiny(speed=config.Speed(precision=precision, device="cpu")))
        loss, _ = training.step(one_batch())
        losses[precision] = float(loss)
        assert training.session.precision == precision
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)


def loss_and_gradients(device: str, **speed) -> tuple[float, torch.Tensor]:
    """Of one step, all gradients in a row."""
    chosen = tiny(speed=config.Speed(device=device, workers=0, **speed))  # pyright: ignore[reportArgumentType]
    with devices.threads(chosen.speed), devices.kept_memory():
        training = started(replace(chosen, optim=replace(chosen.optim, clip=0.0)))
        with torch.no_grad():
            training.model.predictor.open_gates()  # or hardly anything would reach the context
        loss, _ = training.step(one_batch())
    gradients = [p.grad.flatten().float().cpu() for p in training.model.parameters() if p.grad is not None]
    return float(loss), torch.cat(gradients)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # raised by torch.compile
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # older compilers advise against fp32
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("speed", "tolerance"),
    [
        ({"precision": "fp32", "threads": 2}, 1e-4),
        ({"precision": "fp32", "compile": True}, 1e-4),
        ({"precision": "bf16"}, 5e-2),
        ({"precision": "bf16", "compile": True}, 5e-2),
    ],
    ids=str,
)
def test_speed_settings_do_not_change_what_is_computed(monkeypatch, device, speed, tolerance):
    """Loss and gradients (relative norm of their difference) against fp32 on one thread; bf16 has 8 bits."""
    if device == "cpu":  # everything but the C++ compiler, which takes minutes
        monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))
    if "compile" in speed:  # PyTorch 2.11 cannot trace the type checks that tests put into every function
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    loss, gradients = loss_and_gradients(device, precision="fp32", threads=1)
    other, theirs = loss_and_gradients(device, **speed)
    assert other == pytest.approx(loss, rel=tolerance / 2)
    assert float((gradients - theirs).norm() / gradients.norm()) < tolerance


def test_both_attention_kernels_give_the_same_gradients(monkeypatch):
    results = []
    for precision in ("fp32", "bf16"):  # what `choose_attention` takes for either, here both computed in fp32
        with monkeypatch.context() as patch:
            patch.setattr(step, "choose_attention", lambda m, d, _, chosen=precision: choose_attention(m, d, chosen))
            results.append(loss_and_gradients("cpu", precision="fp32"))
    (fused, one), (plain, two) = results
    assert plain == pytest.approx(fused, rel=1e-5)
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_init_starts_from_a_run(trained, tmp_path):
    first = trained
    chosen = replace(settings(tmp_path, "second"), init=str(first))
    frozen = replace(chosen, optim=replace(chosen.optim, lr=0.0, lr_start=0.0, lr_final=0.0, epochs=1))
    second = loop.pretrain(frozen)
    one, two = weights(first), weights(second)
    assert torch.equal(one["predictor.embed.weight"], two["predictor.embed.weight"])
    still = replace(chosen, encoder=replace(chosen.encoder, train="none"), optim=replace(chosen.optim, epochs=1))
    third = weights(loop.pretrain(with_run(still, out=str(tmp_path / "still"))))
    for name, value in one.items():
        if name.startswith("target_encoder."):  # the encoder that is used afterwards is the one that stands still
            assert torch.equal(third[name], value), name
            assert torch.equal(third[name.removeprefix("target_")], value), name
    assert not torch.equal(third["predictor.embed.weight"], one["predictor.embed.weight"])
    other = replace(frozen, predictor=replace(frozen.predictor, width=64))
    with pytest.raises(UserError, match="do not fit these settings"):
        loop.pretrain(with_run(other, out=str(tmp_path / "third")))


def test_a_run_finds_what_it_started_from_again_from_any_folder(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    chosen = replace(settings(tmp_path, "second"), init="run/model")
    chosen = replace(chosen, optim=replace(chosen.optim, epochs=1))
    second = RunFolder(loop.pretrain(chosen))
    assert second.settings().init == str(trained)
    (tmp_path / "elsewhere").mkdir()
    state = max(second.checkpoints.iterdir()) / "state.json"
    for older in ("run", "run/model"):  # as it was written before
        content = json.loads(state.read_text())
        state.write_text(json.dumps(content | {"settings": content["settings"] | {"init": older}}))
        loop.pretrain(replace(chosen, init="run"))
        assert f"began with were at {older}, now they are at {trained}" in " ".join(capsys.readouterr().out.split())
        monkeypatch.chdir(tmp_path / "elsewhere")
        loop.pretrain(replace(chosen, init=older))  # its config.yaml
        assert "began with" not in " ".join(capsys.readouterr().out.split())
        monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"holds a run with init = .*run.*, now it is 'demo'"):
        loop.pretrain(replace(chosen, init="demo"))


def test_what_changes_nothing_is_said(tmp_path, capsys):
    still = settings(tmp_path, objective=config.Objective(target_norm="batch", variance=0.1))
    loop.pretrain(replace(still, encoder=replace(still.encoder, train="none")))
    said = " ".join(capsys.readouterr().out.split())
    assert "so nothing is changed by objective.variance." in said


def test_what_init_does_not_fit_is_said_before_images_are_decoded(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "Loader", lambda *_, **__: pytest.fail("decoded"))
    chosen = settings(tmp_path, "second")
    with pytest.raises(UserError, match="There is no run at nowhere"):
        loop.pretrain(replace(chosen, init="nowhere"))
    with pytest.raises(UserError, match="do not fit these settings"):
        loop.pretrain(replace(chosen, init=str(trained), predictor=replace(chosen.predictor, width=64)))


def test_a_run_past_its_length_is_refused_before_images_are_decoded(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "Loader", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr(Training, "start", lambda *_, **__: pytest.fail("built"))
    chosen = settings(tmp_path)
    short = replace(chosen, optim=replace(chosen.optim, epochs=1))
    for refuses in (loop.pretrain, estimate.pretrain):
        with pytest.raises(UserError, match=r"already at step 8, past the 4 steps .* raise optim\.epochs"):
            refuses(short)


def test_more_images_asked_for_than_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "start", lambda *_, **__: pytest.fail("built"))
    chosen = settings(tmp_path)
    with pytest.raises(UserError, match="batch"):
        loop.pretrain(replace(chosen, optim=replace(chosen.optim, batch_size=1000)))


def test_accumulate_must_divide_the_batch(tmp_path):
    chosen = settings(tmp_path)
    with pytest.raises(UserError, match=r"multiple of optim\.accumulate"):
        loop.pretrain(replace(chosen, optim=replace(chosen.optim, accumulate=3)))


def test_a_run_without_checkpoints_is_not_written_over(trained, tmp_path):
    chosen, out = settings(tmp_path), trained
    before = weights(out)
    for folder in (RunFolder(out).checkpoints).iterdir():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    with pytest.raises(UserError, match="without its checkpoints"):
        loop.pretrain(chosen)
    assert all(torch.equal(before[name], value) for name, value in weights(out).items())


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path, monkeypatch):
    chosen = settings(tmp_path)
    chosen = replace(chosen, run=replace(chosen.run, save_every=100))
    wanted = weights(loop.pretrain(with_run(chosen, out=str(tmp_path / "whole"))))
    real = Training.step

    def dying(self, batch):
        if batch.step == 5:
            raise MemoryError
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", dying)
        with pytest.raises(MemoryError):
            loop.pretrain(chosen)
    assert [line["step"] for line in RunFolder(tmp_path / "run").metric_lines()] == [2, 4]
    out = loop.pretrain(chosen)
    assert all(torch.equal(wanted[name], value) for name, value in weights(out).items())
    assert [line["step"] for line in RunFolder(out).metric_lines()] == [2, 4, 6, 8]


def test_a_source_may_move_but_not_change_its_name(trained, tmp_path, capsys):
    chosen = settings(tmp_path)
    longer = replace(chosen, optim=replace(chosen.optim, epochs=3))
    for folder, name in (("elsewhere", "pictures.npz"), ("there", "others.npz")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes((tmp_path / "pictures.npz").read_bytes())
    loop.pretrain(replace(longer, data=replace(longer.data, source=str(tmp_path / "elsewhere" / "pictures.npz"))))
    assert "now they are at" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match=r"with data\.source"):
        loop.pretrain(replace(longer, data=replace(longer.data, source=str(tmp_path / "there" / "others.npz"))))


def test_a_changed_source_is_named_on_resume(trained, tmp_path):
    chosen = settings(tmp_path)
    pictures_file(tmp_path / "pictures.npz", count=128)
    with pytest.raises(UserError, match=r"was trained on 64 images, 'pictures' now holds 128"):
        loop.pretrain(replace(chosen, optim=replace(chosen.optim, epochs=3)))


def test_other_images_of_the_source_are_named_on_resume(tmp_path):
    source = noise(tmp_path / "photos", 40)
    chosen = trained_on(tiny(), source=str(source), out=str(tmp_path / "run"))
    loop.pretrain(chosen)
    (source / "007.png").rename(source / "700.png")
    with pytest.raises(UserError, match="was trained on other images of 'photos'; put them back"):
        loop.pretrain(replace(chosen, optim=replace(chosen.optim, epochs=3)))


def test_the_held_out_tenth_is_never_trained_on(tmp_path, monkeypatch):
    seen = set()
    real = Training.step

    def watching(self, batch):
        seen.update(batch.indices.tolist())
        return real(self, batch)

    monkeypatch.setattr(Training, "step", watching)
    pictures_file(tmp_path / "pictures.npz", validation=False)
    chosen = settings(tmp_path)
    loop.pretrain(chosen)
    trained, held, how = open_splits(chosen.data.source)
    assert "held out" in how
    assert max(seen) < len(trained) == 64 - len(held)


def test_a_finished_run_started_again_ends_at_once(trained, tmp_path, monkeypatch):
    chosen = settings(tmp_path)
    monkeypatch.setattr(Training, "step", lambda self, batch: pytest.fail("trained on"))
    loop.pretrain(chosen)


def test_a_damaged_newer_checkpoint_does_not_push_out_the_good_one(tmp_path):
    out = tmp_path / "checkpoints"
    training = started(tiny())
    checkpoint.save(out, 9, training.model, training.optimisers, 1, 64)
    (out / "step-00000009" / "state.json").write_text("{")
    checkpoint.save(out, 7, training.model, training.optimisers, 1, 64)
    assert [path.name for path in out.iterdir()] == ["step-00000007"]


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path, monkeypatch):
    chosen, second = settings(tmp_path), []
    real = Training.step

    def stepping(self, batch):
        if batch.step == 4:
            with pytest.raises(Busy, match=rf"run is being trained by process {os.getpid()} on ") as busy:
                loop.pretrain(replace(chosen, run=replace(chosen.run, seed=1)))
            second.append(busy)
        return real(self, batch)

    monkeypatch.setattr(Training, "step", stepping)
    out = loop.pretrain(chosen)
    assert second
    assert [line["step"] for line in RunFolder(out).metric_lines()] == [2, 4, 6, 8]
    assert RunFolder(out).settings().run.seed == 0
    assert not RunFolder(out).training_lock.exists()


@pytest.mark.parametrize("fails", ["tensors", "settings"])
def test_a_run_whose_first_checkpoint_was_cut_off_begins_anew(tmp_path, monkeypatch, fails):
    """As a full disk does: the library's error names no file, the folder has lines of metrics and no checkpoint."""
    chosen, out = settings(tmp_path), tmp_path / "run"

    def full(*values: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    name = {"tensors": "save_file", "settings": "sha256_of"}[fails]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, name, full)
        with pytest.raises(OSError, match="No space left") as error:
            loop.pretrain(chosen)
    assert error.value.filename == str(RunFolder(out).checkpoints / "step-00000003")
    assert not [path for path in RunFolder(out).checkpoints.rglob("*") if path.is_file()]  # what was full has room
    line = {"step": 4, "loss": 1.0}
    with RunFolder(out).metrics.open("a") as file:
        file.write(json.dumps(line) + "\n")
    loop.pretrain(chosen)
    assert [line["step"] for line in RunFolder(out).metric_lines()] == [2, 4, 6, 8]


def test_a_disk_that_cannot_hold_the_checkpoints_is_named_before_training(tmp_path, monkeypatch):
    chosen = settings(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(Training, "step", lambda self, batch: pytest.fail("trained"))
    with pytest.raises(UserError, match=r"for the checkpoints in .*: they take 1\.\d MB or more and 0\.1 MB are"):
        loop.pretrain(chosen)


def test_a_folder_that_cannot_be_written_is_named_before_the_pictures_are_read(tmp_path):
    chosen = settings(tmp_path)
    (tmp_path / "file").touch()
    chosen = replace(chosen, data=replace(chosen.data, source="absent"))
    with pytest.raises(
        UserError, match=r"The run cannot be written to .*/file/run \(Not a directory\); give another --out"
    ):
        loop.pretrain(with_run(chosen, out=str(tmp_path / "file" / "run")))


def test_a_run_may_lie_inside_its_data_and_is_no_data(tmp_path):
    for index in range(20):
        write(tmp_path / "pets" / "ab"[index % 2] / f"{index}.png", size=(16, 16))
    source, run = str(tmp_path / "pets"), tmp_path / "pets" / "run"
    settings = trained_on(tiny(optim=replace(tiny().optim, epochs=1, batch_size=8)), source=source, out=str(run))
    loop.pretrain(settings)
    assert (run / "gallery.png").is_file()
    assert open_images(source, "all").classes == ("a", "b")
    assert len(open_images(source, "all")) == 20
    with pytest.raises(UserError, match="is the source itself"):
        loop.pretrain(trained_on(settings, source=source, out=source))
