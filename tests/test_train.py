"""train.py: what one update does and leaves alone, the rate, and the same seed giving the same run."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import collate, make_config, make_model, method_of, metrics_without_clock, write_tables

from minbert import AdamW
from minbert.errors import InputError
from minbert.optim import parameter_groups
from multitask import finetune, state, train
from multitask.data.tables import read_split
from multitask.data.tasks import BUILT_IN, SENTIMENT, SIMILARITY
from multitask.data.tokens import Examples, make_examples
from multitask.finetune import Finetuning
from multitask.methods.schedules import halve_on_rise
from multitask.preparation import build_model, prepare, start_heads
from multitask.saved import best_folder
from multitask.state import Progress, States

CPU = torch.device("cpu")

FINETUNE = make_config("finetune", encoder_dropout=0.0, epochs=2, batch_size=4, pooling="mean")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    directory = write_tables(tmp_path_factory.mktemp("data"))
    return {split: read_split(directory, split, BUILT_IN, False) for split in ("train", "dev")}


def examples(model, rows, split="train") -> dict[str, Examples]:
    return {name: make_examples(rows[split][name], model.tokenizer, 512) for name in model.tasks}


def build(tiny, config=FINETUNE, tasks=BUILT_IN):
    config = config.changed(weights=str(tiny))
    dropout = config.encoder.dropout, config.batches.head_dropout
    return build_model(config.start, tasks, config.training.seed, *dropout)


def make_optimizer(model, config):
    return AdamW(parameter_groups(model, config.training.weight_decay), lr=config.training.lr)


def batches(model, rows, name, size, count=1):
    data = examples(model, rows)[name]
    return [collate(model, data, range(n * size, (n + 1) * size)) for n in range(count)]


def update(model, optimizer, task, batches, clip_norm) -> float:
    """One update on these batches of a task; the loss."""
    losses = [(task.kind.loss(model(task.name, inputs), labels), {}) for inputs, labels in batches]
    return train.update(optimizer, losses, len(batches), clip_norm)["loss/all"]


class Descent(torch.optim.SGD):
    """w = w - scale g"""

    def step(self, scale):
        for group in self.param_groups:
            group["lr"] = scale
        super().step()


def tensors(module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(before, after) -> bool:
    return all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", BUILT_IN)
def test_updates_overfit_a_batch(tiny, rows, name):
    model = build(tiny)
    optimizer = make_optimizer(model, FINETUNE.changed(lr=3e-3))
    model.train()
    batch = batches(model, rows, name, 8)
    losses = [update(model, optimizer, BUILT_IN[name], batch, 1.0) for _ in range(60)]
    assert losses[-1] < 0.1 * losses[0]


def test_a_regression_learns_in_units_of_its_range(tiny, rows):
    """Labels twenty times as large over a range twenty times as wide: the same loss, R and D in it, and the
    same head, and outputs twenty times as large."""
    results = []
    for factor in (1, 20):
        task = replace(SIMILARITY, high=5.0 * factor)
        model = build(tiny, tasks={"similarity": task})
        data = examples(model, rows)["similarity"]
        data = replace(data, labels=data.labels * factor)
        start_heads(model, {"similarity": data}, init=None)
        config = FINETUNE.changed(steps_per_epoch=9, smart_weight=1.0, bregman_weight=1.0)
        method = method_of(config, model, {"similarity": data}, {})
        loss = train.update(make_optimizer(model, FINETUNE), method.losses(0), 1, 1.0)["loss/all"]
        inputs, _ = collate(model, data, range(8))
        results.append((loss, model.heads["similarity"].weight, model("similarity", inputs) / factor))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_loss_returned_is_the_mean_over_the_batches(tiny, rows):
    model = build(tiny)
    optimizer = make_optimizer(model, FINETUNE.changed(lr=0.0))
    two = batches(model, rows, "similarity", 6, 2)
    apart = [update(model, optimizer, SIMILARITY, [batch], 0.0) for batch in two]
    assert update(model, optimizer, SIMILARITY, two, 0.0) == pytest.approx(sum(apart) / 2)


@pytest.mark.parametrize("name", BUILT_IN)
def test_accumulating_two_batches_is_one_batch_of_both(tiny, rows, name):
    """With plain SGD, which keeps the gradient's size; AdamW would hide a factor."""
    results = []
    for size, count in ((12, 1), (6, 2)):
        model = build(tiny)
        before = tensors(model)
        optimizer = Descent(model.parameters())
        update(model, optimizer, BUILT_IN[name], batches(model, rows, name, size, count), 0.0)
        results.append({key: value - before[key] for key, value in tensors(model).items()})
    largest = max(value.abs().max() for value in results[0].values())
    for key, change in results[0].items():
        torch.testing.assert_close(results[1][key], change, rtol=1e-4, atol=1e-5 * float(largest))


@pytest.mark.parametrize("clip_norm, length", [(0.0, None), (0.01, 0.01), (1e9, None)])
def test_clip_norm_bounds_the_whole_gradient(tiny, rows, clip_norm, length):
    model = build(tiny)
    before = tensors(model)
    optimizer = Descent(model.parameters())
    update(model, optimizer, SIMILARITY, batches(model, rows, "similarity", 8), clip_norm)
    moved = torch.cat([(value - before[name]).flatten() for name, value in tensors(model).items()]).norm()
    if length is None:
        assert moved > 1
    else:
        assert moved == pytest.approx(length, rel=1e-2)


def test_an_idle_head_is_left_alone_by_another_tasks_update(tiny, rows):
    """Also by weight decay and by the moments that its own updates have left."""
    model = build(tiny)
    optimizer = make_optimizer(model, FINETUNE.changed(lr=0.01, weight_decay=0.1))
    for name in BUILT_IN:
        update(model, optimizer, BUILT_IN[name], batches(model, rows, name, 4), 1.0)
    before = {name: tensors(head) for name, head in model.heads.items()}
    moments = optimizer.state[model.heads["similarity"].weight]["exp_avg"].clone()
    update(model, optimizer, SENTIMENT, batches(model, rows, "sentiment", 4), 1.0)
    changed = [name for name, head in model.heads.items() if not same(before[name], tensors(head))]
    assert changed == ["sentiment"]
    assert torch.equal(optimizer.state[model.heads["similarity"].weight]["exp_avg"], moments)


def test_pretrain_leaves_the_encoder_as_it_is(tiny, rows, tmp_path):
    config = make_config("pretrain", weights=str(tiny), epochs=1, batch_size=4, weight_decay=0.1)
    model = fit(config, rows, tmp_path)
    assert same(tensors(build(tiny).encoder), tensors(model.encoder))
    fresh = build(tiny, config)
    assert not any(same(tensors(fresh.heads[name]), tensors(model.heads[name])) for name in BUILT_IN)


@pytest.mark.parametrize("option, encoder_trains", [("finetune", True), ("pretrain", False)])
def test_dropout_is_off_in_a_frozen_encoder(tiny, rows, option, encoder_trains):
    config = make_config(option, weights=str(tiny), steps_per_epoch=1)
    prepared = prepare(config, BUILT_IN, rows, CPU)
    model = prepared.method.model
    list(prepared.method.losses(0))
    assert model.training and model.dropout.training
    assert model.encoder.training == encoder_trains


@pytest.mark.parametrize("settings, rows_in_batch", [({"batch_size": 50}, 50), ({"max_tokens": 100}, 5)])
def test_a_batch_that_does_not_fit_into_memory_is_refused_before_training(
    tiny, rows, monkeypatch, settings, rows_in_batch
):
    """The longest pairs have 19 tokens. A run keeps the attention of both layers, unless they are frozen."""
    a_layer = 4 * rows_in_batch * 4 * 19**2
    monkeypatch.setattr("minbert.memory.memory_of_machine", lambda: 2 * a_layer - 1)
    prepare(make_config("pretrain", weights=str(tiny), **settings), BUILT_IN, rows, CPU)
    with pytest.raises(InputError, match=f"^{rows_in_batch} x 19 positions need"):
        prepare(make_config("finetune", weights=str(tiny), **settings), BUILT_IN, rows, CPU)


def test_a_regression_head_starts_at_the_training_mean(tiny, rows):
    model = build(tiny)
    data = examples(model, rows)
    start_heads(model, data, init=None)
    assert model.heads["similarity"].bias.item() == pytest.approx(np.mean(data["similarity"].labels))
    assert model.heads["paraphrase"].bias.item() == 0


def test_the_heads_depend_on_the_seed(tiny):
    first, second = (build(tiny, FINETUNE.changed(seed=seed)) for seed in (0, 1))
    assert same(tensors(first), tensors(build(tiny)))
    assert not same(tensors(first.heads), tensors(second.heads))
    assert same(tensors(first.encoder), tensors(second.encoder))


def test_init_brings_encoder_and_heads(tiny, rows, tmp_path):
    torch.manual_seed(1)
    source = build(
        tiny, FINETUNE.changed(seed=5), {name: BUILT_IN[name] for name in ("similarity", "sentiment")}
    )
    torch.nn.init.normal_(source.encoder.pooler.weight)
    torch.nn.init.constant_(source.heads["similarity"].bias, 1.25)
    source.save(tmp_path / "run" / "best")
    config = FINETUNE.changed(init=str(tmp_path / "run"))
    model = build_model(config.start, BUILT_IN, seed=0)
    start_heads(model, examples(model, rows), config.start.init)
    assert same(tensors(source.encoder), tensors(model.encoder))
    for name in source.heads:
        assert same(tensors(source.heads[name]), tensors(model.heads[name]))
    assert model.heads["paraphrase"].bias.item() == 0  # a task that the run did not have starts afresh


@pytest.mark.parametrize(
    "tasks, pooling, problem",
    [
        (BUILT_IN, "cls", "its --pooling is cls; use the same"),
        (
            {"sentiment": replace(SENTIMENT, num_classes=3)},
            "mean",
            "its task sentiment is .* with 3 outputs",
        ),
        ({"paraphrase": replace(SIMILARITY, name="paraphrase")}, "mean", "its task paraphrase is regression"),
    ],
)
def test_init_that_does_not_fit(tiny, rows, tmp_path, tasks, pooling, problem):
    make_model(tiny, tasks, pooling=pooling).save(tmp_path / "best")
    config = FINETUNE.changed(init=str(tmp_path))
    model = build_model(config.start, BUILT_IN, seed=0)
    with pytest.raises(InputError, match=f"--init {tmp_path}: .*{problem}"):
        start_heads(model, examples(model, rows), config.start.init)


def test_best_folder(tiny, tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}: holds no finished model"):
        best_folder(str(tmp_path))
    stage = tmp_path / "stages" / "mnrl" / "best"
    stage.mkdir(parents=True)
    (stage / "tasks.toml").touch()
    with pytest.raises(InputError, match=f"holds the runs mnrl; name one of them, such as {stage.parent}"):
        best_folder(str(tmp_path / "stages"))
    make_model(tiny).save(
        tmp_path / "best.old"
    )  # as a replacement leaves it when cut off between its renames
    assert best_folder(str(tmp_path)) == tmp_path / "best.old"
    (tmp_path / "best.old").rename(tmp_path / "best")
    assert best_folder(str(tmp_path)) == best_folder(str(tmp_path / "best")) == tmp_path / "best"


def test_rate_schedule():
    def rates(**settings):
        rate = train.rate_schedule(make_config("finetune", **settings).training, 10)
        return [round(rate(step, []), 3) for step in range(10)]

    assert rates(schedule="constant", warmup=0.0) == [1] * 10
    assert rates(schedule="constant", warmup=0.3) == [0.25, 0.5, 0.75, *[1] * 7]
    assert rates(schedule="linear", warmup=0.0) == [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert rates(schedule="linear", warmup=0.2) == [
        0.333,
        0.667,
        1,
        0.875,
        0.75,
        0.625,
        0.5,
        0.375,
        0.25,
        0.125,
    ]


def test_fit_sets_the_rate_of_every_update(tiny, rows, tmp_path, monkeypatch):
    used = []

    def spy(optimizer, *_):
        used.append(optimizer.param_groups[0]["lr"])
        return {"loss/all": 1.0}

    monkeypatch.setattr(train, "update", spy)
    config = FINETUNE.changed(weights=str(tiny), epochs=1, steps_per_epoch=4, lr=0.1, warmup=0.0)
    fit(config, rows, tmp_path)
    assert used == pytest.approx([0.1, 0.075, 0.05, 0.025])


@pytest.mark.parametrize(
    "sizes, settings, steps",
    [
        ((100, 60), {"batch_size": 16}, 10),
        ((100, 61), {"batch_size": 16}, 11),
        ((100, 60), {"batch_size": 8, "accumulate": 4}, 5),
        ((1,), {"batch_size": 16}, 1),
        ((1_000_000,), {"batch_size": 16}, 2000),
        ((31_984, 16), {"batch_size": 16}, 2000),
        ((31_968, 16), {"batch_size": 16}, 1999),
        ((100,), {"steps_per_epoch": 7}, 7),
        ((100,), {"steps_per_epoch": 5000}, 5000),
    ],
)
def test_an_epoch_is_one_pass_but_at_most_2000_updates(sizes, settings, steps):
    config = make_config("finetune", **settings)
    rows_per_step = config.batches.batch_size * config.training.accumulate
    assert train.epoch_steps(sum(sizes), rows_per_step, config.training.steps_per_epoch) == steps


def fit(config, rows, folder, progress=None):
    """Train on these tables, and return the model."""
    prepared = prepare(config, BUILT_IN, rows, CPU)
    run = prepared
    states = States(folder, run.method.parts, run.optimizer, {})
    assert train.fit(run, states, progress or Progress(), config.saving.save_every) == folder
    return prepared.method.model


def test_the_same_seed_gives_the_same_metrics_and_weights(tiny, rows, tmp_path):
    config = FINETUNE.changed(weights=str(tiny), encoder_dropout=0.1, head_dropout=0.1, accumulate=2)
    models = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        models[name] = tensors(fit(config.changed(seed=seed), rows, tmp_path / name))
        torch.rand(7)  # what a caller draws in between changes nothing
    assert same(models["a"], models["b"]) and not same(models["a"], models["c"])
    lines = {name: metrics_without_clock(tmp_path / name) for name in models}
    assert len(lines["a"]) == 2
    assert lines["a"] == lines["b"] != lines["c"]


def scored(score: float, worst: float = 0.5) -> dict:
    """What an evaluation gives, with these scores."""
    dev = {name: {task.kind.metric: 0.5} for name, task in BUILT_IN.items()}
    dev |= {"score": score, "worst": worst, "spread": 0.1}
    return {"dev": dev, "train": dev}


def test_an_epoch_is_saved_before_it_is_announced(tiny, rows, tmp_path, monkeypatch):
    done, save = [], States.save
    monkeypatch.setattr(train, "say", lambda line: done.append(line.partition(":")[0]))
    monkeypatch.setattr(States, "save", lambda *args: done.append("saved") or save(*args))
    fit(FINETUNE.changed(weights=str(tiny), steps_per_epoch=1), rows, tmp_path)
    assert done == ["saved", "epoch 1", "saved", "epoch 2"]


def test_a_run_stops_when_its_patience_is_at_an_end(tiny, rows, tmp_path, monkeypatch):
    """Scores of .5, .7, .6, .65 and .8 with a patience of 2: two epochs after .7 without a better one."""
    results = iter([0.5, 0.7, 0.6, 0.65, 0.8])
    monkeypatch.setattr(Finetuning, "evaluate", lambda *_: scored(next(results)))
    progress = Progress()
    config = FINETUNE.changed(weights=str(tiny), epochs=5, steps_per_epoch=1, patience=2)
    fit(config, rows, tmp_path, progress)
    assert (len(progress.records), progress.best_epoch, progress.step) == (4, 2, 4)


def test_terms_are_means_over_the_batches_of_an_update():
    weight = torch.nn.Parameter(torch.zeros(()))
    losses = [(weight + number, {"loss/a": number, "b": 10 * number}) for number in (1.0, 3.0)]
    means = train.update(Descent([weight]), losses, 2, 0.0)
    assert means == {"loss/a": 2.0, "b": 20.0, "loss/all": 2.0}
    assert weight.item() == -1 and weight.grad is None


def test_metrics_of_a_run(tiny, rows, tmp_path):
    fit(FINETUNE.changed(weights=str(tiny)), rows, tmp_path)
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [first["epoch"], first["step"], second["epoch"], second["step"]] == [1, 9, 2, 18]
    for record in (first, second):
        clock = {"epoch", "step", "seconds", "examples_per_second"}
        assert record.keys() == clock | {"lr", "loss", "objective", "dev", "dev_loss", "train"}
        assert {name: record["objective"][name]["updates"] for name in BUILT_IN} == dict.fromkeys(BUILT_IN, 3)
        assert record["train"].keys() == record["dev"].keys() == {*BUILT_IN, "score", "worst", "spread"}
        assert record["seconds"] > 0 and record["examples_per_second"] > 0
        losses = record["loss"]
        assert losses["all"] == pytest.approx(np.mean([losses[name] for name in BUILT_IN]))
        dev = record["dev"]
        assert {name: list(dev[name]) for name in BUILT_IN} == {
            name: [task.kind.metric] for name, task in BUILT_IN.items()
        }
        assert 0 <= dev["score"] <= 1


def test_a_model_that_stands_still_keeps_its_rate(tiny, rows, tmp_path):
    """Annealed sampling moves from one task of 480 rows, with the lowest loss, to two of 12. By the mean over
    updates, which rises with that, the rate would halve."""
    model = build(tiny)
    data = examples(model, rows)
    data["paraphrase"] = data["paraphrase"].take(np.tile(np.arange(12), 40))
    config = FINETUNE.changed(epochs=12, steps_per_epoch=40, sampling="annealed", lr=1e-12)
    config = config.changed(schedule="halve-on-rise", warmup=0.0)
    method, progress = method_of(config, model, data, examples(model, rows, "dev")), Progress()
    run = train.TrainingRun(method, make_optimizer(model, config), config.training, 40, 4, "score", "", "")
    train.fit(run, States(tmp_path, method.parts, run.optimizer, {}), progress)
    assert [record["lr"] for record in progress.records] == [1e-12] * 12
    by_mixture = [{"all": {"mean": r["loss"]["all"], "variance": 0, "updates": 9}} for r in progress.records]
    assert halve_on_rise(by_mixture) < 1


def test_the_warnings_of_an_epoch_are_printed(tiny, rows, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Finetuning, "warnings", lambda *_: ["SMART is idle"])
    fit(FINETUNE.changed(weights=str(tiny), epochs=1), rows, tmp_path)
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first.startswith("epoch 1: loss ") and first.endswith(", best so far")
    assert second == "warning: SMART is idle"


def test_outputs_that_are_not_finite_end_the_run_in_a_line(tiny, rows, tmp_path, monkeypatch):
    """Classes are accurate or not whatever their logits: the loss tells."""
    monkeypatch.setattr(finetune.evaluate, "losses", lambda *_: {"sentiment": float("nan")})
    with pytest.raises(InputError, match="dev_loss is no longer finite"):
        fit(FINETUNE.changed(weights=str(tiny), epochs=1), rows, tmp_path)


def test_a_run_that_diverges_says_so(tiny, rows, tmp_path):
    with pytest.raises(InputError, match="--lr"):
        fit(FINETUNE.changed(weights=str(tiny), lr=1e30), rows, tmp_path)


def test_the_best_epoch_is_kept(tiny, rows, tmp_path, monkeypatch):
    """Scores of .5, .7, .7 and .6: the second is the best, and an equal one does not replace it."""
    results = iter([0.5, 0.7, 0.7, 0.6])
    monkeypatch.setattr(Finetuning, "evaluate", lambda *_: scored(next(results)))
    weights = []
    monkeypatch.setattr(States, "keep_best", lambda _: weights.append(len(progress.records) + 1))
    progress = Progress()
    fit(FINETUNE.changed(weights=str(tiny), epochs=4, steps_per_epoch=1), rows, tmp_path, progress)
    assert weights == [1, 2]
    assert (progress.best_score, progress.best_epoch) == (0.7, 2)


def test_the_best_epoch_by_the_worst_task(tiny, rows, tmp_path, monkeypatch):
    """Scores of .7, .6 and .5, whose worst tasks have .2, .4 and .3: the second epoch."""
    results = iter([(0.7, 0.2), (0.6, 0.4), (0.5, 0.3)])
    monkeypatch.setattr(Finetuning, "evaluate", lambda *_: scored(*next(results)))
    progress = Progress()
    config = FINETUNE.changed(weights=str(tiny), epochs=3, steps_per_epoch=1, choose_by="worst")
    fit(config, rows, tmp_path, progress)
    assert (progress.best_score, progress.best_epoch) == (0.4, 2)


def test_the_rate_and_what_is_measured_stand_in_the_record(tiny, rows, tmp_path):
    """Linear from .08 over 8 updates: the last of the first epoch has .08 * 5/8, of the second .08 / 8."""
    config = FINETUNE.changed(weights=str(tiny), steps_per_epoch=4, lr=0.08, warmup=0.0)
    fit(config, rows, tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["lr"] for record in records] == pytest.approx([0.05, 0.01])
    for record in records:
        each = [task.kind.score(record["dev"][name][task.kind.metric]) for name, task in BUILT_IN.items()]
        assert record["dev"]["worst"] == min(each) and record["dev"]["spread"] == max(each) - min(each)


def test_a_gradient_or_a_loss_that_is_not_finite_moves_nothing():
    """The root has an infinite slope at 0, though the loss there is 0."""
    w = torch.zeros(2, requires_grad=True)
    for loss in (w.abs().sqrt().sum(), w.sum() / 0):
        assert train.update(AdamW([w]), [(loss, {"loss/a": 1.0})], 1, 0.0) == {"skipped": 1.0}
        assert w.tolist() == [0, 0] and w.grad is None


def spoil(monkeypatch, spoiled) -> None:
    """The loss of the updates with these numbers, from 1, becomes not a number."""
    real = Finetuning.losses

    def losses(self, step):
        for loss, terms in real(self, step):
            yield (loss * torch.nan if step + 1 in spoiled else loss), terms

    monkeypatch.setattr(Finetuning, "losses", losses)


def test_updates_that_are_not_finite_are_skipped_and_counted(tiny, rows, tmp_path, monkeypatch, capsys):
    config = FINETUNE.changed(weights=str(tiny), steps_per_epoch=12)
    spoil(monkeypatch, {3, *range(12, 21)})
    fit(config, rows, tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["skipped"] for record in records] == [2, 8]
    out = capsys.readouterr().out
    assert re.search(r"not finite at step 3, on rows (\d+, ){3}\d+ of similarity: update skipped", out)
    assert "2 updates skipped" in out


def test_nothing_follows_a_skipped_update(tiny, rows, tmp_path, monkeypatch):
    """Of five updates the second and the third are skipped; steps count from 0. A teacher that took the
    student's weights there would count an update of the model that never was."""
    spoil(monkeypatch, {2, 3})
    followed = []
    monkeypatch.setattr(Finetuning, "after_update", lambda self, step: followed.append(step))
    fit(FINETUNE.changed(weights=str(tiny), steps_per_epoch=5, epochs=1), rows, tmp_path)
    assert followed == [0, 3, 4]


def test_ten_skipped_updates_in_a_row_end_the_run(tiny, rows, tmp_path, monkeypatch):
    """Updates 8 to 17; the last state is from before them, whatever --save-every."""
    spoil(monkeypatch, range(8, 100))
    config = FINETUNE.changed(weights=str(tiny), steps_per_epoch=30, save_every=1)
    with pytest.raises(
        InputError, match=r"10 updates in a row .* at step 17, on rows .* of paraphrase; .*--lr"
    ):
        fit(config, rows, tmp_path)
    assert sorted(path.name for path in (tmp_path / "state").glob("step*")) == [
        "step-00000006",
        "step-00000007",
    ]


def test_an_epoch_of_skipped_updates_ends_the_run(tiny, rows, tmp_path, monkeypatch):
    spoil(monkeypatch, range(100))
    with pytest.raises(InputError, match="3 updates in a row were skipped"):
        fit(FINETUNE.changed(weights=str(tiny), steps_per_epoch=3), rows, tmp_path)


def test_states_are_saved_in_time(tiny, rows, tmp_path, monkeypatch):
    """A clock that ticks five seconds a reading, one reading an update and one a save."""
    ticks = iter(range(0, 10**6, 5))
    monkeypatch.setattr(state.time, "monotonic", lambda: next(ticks))
    saved, real = [], States.save
    monkeypatch.setattr(States, "save", lambda self, now: (saved.append(now.step), real(self, now)))
    fit(FINETUNE.changed(weights=str(tiny), steps_per_epoch=25, epochs=1), rows, tmp_path)
    assert saved == [9, 18, 25]
