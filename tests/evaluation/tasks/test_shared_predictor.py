"""A predictor trained for several tasks: what is shared is shared, and every task gets its part of each batch."""

from dataclasses import replace

import pytest
import torch

from evaluation.planted import exported, few_tasks
from iwm import run_folder
from iwm.data.sources import labelled_splits
from iwm.evaluation.tasks import finetune, shared_predictor
from iwm.runtime.devices import CPU
from iwm.verbs.shared import Classification, Schedule

QUICK = Classification(lrs=(3e-3,), ratios=(1.0,), views=1, schedule=Schedule(epochs=1, search_epochs=1, batch_size=48))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return few_tasks(tmp_path_factory.mktemp("sources"))


@pytest.fixture
def run(tmp_path) -> str:
    return exported(tmp_path)


def ready(sources, settings=QUICK) -> list[shared_predictor.Task]:
    tasks = []
    for name, val in (("equal", sources["equal-val"]), ("where", "")):
        splits = labelled_splits(sources[name], val, size=16)
        work = finetune.ClassificationWork.prepare(splits, settings, 16, CPU)
        tasks.append(shared_predictor.Task(name, splits, work))
    return tasks


def test_one_pass_for_all_equals_each_tasks_own(run, sources):
    model, tasks = run_folder.load_model(run), ready(sources)
    made = shared_predictor.classifiers_of(model, tasks, QUICK)
    assert made[0].predictor is made[1].predictor
    assert made[0].encoder is made[1].encoder
    assert made[0].token is not None
    assert made[1].token is not None
    assert not torch.equal(made[0].token, made[1].token)
    images = [task.work.test[:6] for task in tasks]
    with torch.no_grad():
        together = shared_predictor.logits_together(made, images, tokens_given=False)
        for classifier, part, logits in zip(made, images, together, strict=True):
            torch.testing.assert_close(classifier(part), logits, atol=1e-5, rtol=1e-5)


def test_only_predictor_heads_and_tokens_are_trained(run, sources):
    model = run_folder.load_model(run)
    tasks = [
        replace(task, work=task.work.encoded(model.target_encoder, model.target_encoder.layer))
        for task in ready(sources)
    ]
    before = shared_predictor.classifiers_of(model, tasks, QUICK)
    after = shared_predictor.Training(model, tasks, QUICK, tasks).run().classifiers
    for old, new in zip(before, after, strict=True):
        was, now = dict(old.named_parameters()), dict(new.named_parameters())
        assert all(torch.equal(was[name], now[name]) for name in was if name.startswith("encoder."))
        for name in ("token", "head.query", "head.linear.weight", "predictor.mask_token", "predictor.embed.weight"):
            assert not torch.equal(was[name], now[name]), name


def test_the_precision_of_a_users_machine_works_and_agrees(run, sources):
    model, tasks = run_folder.load_model(run), ready(sources)
    made = shared_predictor.classifiers_of(model, tasks, QUICK)
    kept = [task.work.encoded(model.target_encoder, model.target_encoder.layer).test[:6] for task in tasks]
    with torch.no_grad():
        plain = shared_predictor.logits_together(made, kept, tokens_given=True)
        with torch.autocast("cpu", torch.bfloat16):
            coarse = shared_predictor.logits_together(made, kept, tokens_given=True)
    for ours, theirs in zip(plain, coarse, strict=True):
        torch.testing.assert_close(ours, theirs.float(), atol=0.05, rtol=0.1)


def test_the_batch_is_split_evenly_and_the_losses_are_averaged(run, sources, monkeypatch):
    model, tasks = run_folder.load_model(run), ready(sources)
    seen = []
    real = shared_predictor.stream

    def spy(samples, rows, seed, batch, step):
        seen.append((len(rows), batch))
        return real(samples, rows, seed, batch, step)

    monkeypatch.setattr(shared_predictor, "stream", spy)
    shared = shared_predictor.Training(model, tasks, QUICK, tasks).run()
    assert seen == [(96, 24), (48, 24)] * shared.steps
    seen.clear()
    twin = shared_predictor.Training(model, tasks[1:], QUICK, tasks).run()
    assert seen == [(48, 48)] * twin.steps
    assert 2 * twin.steps == shared.steps
    seen.clear()
    twin = shared_predictor.Training(model, tasks[1:], QUICK, tasks, equal_updates=True).run()
    assert seen == [(48, 24)] * shared.steps
    assert twin.steps == shared.steps
