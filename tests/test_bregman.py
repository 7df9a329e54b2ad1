"""bregman.py and its use in a run: the teacher is the correct average, a copy, and survives a stop."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    collate,
    make_config,
    make_finetuning,
    make_model,
    method_of,
    metrics_without_clock,
    planned,
    sentence,
    write_tables,
)
from safetensors.torch import load_file
from torch import nn

from minbert import AdamW
from multitask import train
from multitask.data.tasks import BUILT_IN
from multitask.evaluate import all_logits, scores
from multitask.finetune import Finetuning
from multitask.methods.bregman import MomentumTeacher, beta_at
from multitask.run import main

FINETUNE = make_config("finetune", encoder_dropout=0.0, batch_size=4, steps_per_epoch=100, bregman_weight=1.0)


def flat(module: nn.Module) -> np.ndarray:
    """Return all weights of a module, flat, as float64."""
    return torch.cat([tensor.flatten() for tensor in module.state_dict().values()]).double().numpy()


def move(module: nn.Module, size: float = 0.1) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=size)


# The teacher


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.75, 0.99, 0.999, 1.0])
@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_the_teacher_is_the_exponential_moving_average(beta, dtype, rtol):
    """teacher = (1 - beta) theta + beta teacher, in NumPy's float64, over 20 steps; it starts as theta_0."""
    student = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4)).to(dtype)
    teacher = MomentumTeacher(student, beta)
    wanted = flat(student)
    for _ in range(20):
        move(student)
        teacher.update()
        wanted = (1 - beta) * flat(student) + beta * wanted
        np.testing.assert_allclose(flat(teacher.model), wanted, rtol=rtol, atol=rtol)


def test_the_teacher_is_a_copy():
    """It shares no memory with the student, and changes only when `update` is called."""
    student = nn.Linear(3, 2)
    teacher = MomentumTeacher(student, 0.5)
    before = flat(student)
    shared = {p.data_ptr() for p in student.parameters()} & {p.data_ptr() for p in teacher.model.parameters()}
    assert not shared
    move(student)
    assert np.array_equal(flat(teacher.model), before) and not np.array_equal(flat(student), before)
    moved = flat(student)
    teacher.update()
    assert np.array_equal(flat(student), moved) and not np.array_equal(flat(teacher.model), before)


def test_no_gradient_goes_through_the_teacher():
    student = nn.Sequential(nn.Linear(3, 2))
    teacher, inputs = MomentumTeacher(student, 0.5), torch.randn(4, 3, requires_grad=True)
    outputs = teacher(inputs)
    assert not outputs.requires_grad
    (student(inputs) - outputs).square().sum().backward()
    teacher.update()
    assert all(
        parameter.grad is None and not parameter.requires_grad for parameter in teacher.model.parameters()
    )
    assert all(parameter.grad is not None and parameter.requires_grad for parameter in student.parameters())


def test_the_teacher_is_in_evaluation_mode_and_the_student_as_it_was():
    student = nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5)).train()
    teacher, inputs = MomentumTeacher(student, 0.5), torch.randn(4, 3)
    student.train()
    teacher.update()
    assert not any(module.training for module in teacher.model.modules())
    assert all(module.training for module in student.modules())
    assert torch.equal(teacher(inputs), student[0](inputs))


def test_the_teacher_is_called_as_the_model(tiny):
    model = make_model(tiny)
    inputs = model.tokenizer.pad(model.token_ids("sentiment", [sentence(number) for number in range(3)]))
    teacher, wanted = MomentumTeacher(model, 0.9), model.eval()("sentiment", inputs)
    assert torch.equal(teacher("sentiment", inputs), wanted)
    assert torch.equal(teacher(task="sentiment", batch=inputs), wanted)


@pytest.mark.parametrize("beta", [-0.01, 1.01, float("nan")])
def test_beta_lies_between_0_and_1(beta):
    with pytest.raises(ValueError, match=r"beta must lie in \[0, 1\]"):
        MomentumTeacher(nn.Linear(1, 1), beta)


def test_beta_at():
    """.99 for the first tenth of 50 steps, which is five, then .999; always .99 without a second value. A
    tenth of 25 steps is rounded down to two."""
    assert [beta_at(step, 50, 0.99, 0.999) for step in (0, 4, 5, 49)] == [0.99, 0.99, 0.999, 0.999]
    assert [beta_at(step, 50, 0.99) for step in (0, 4, 5, 49)] == [0.99] * 4
    assert beta_at(30, 50, 0.99, 0.0) == 0
    assert [beta_at(step, 25, 0.99, 0.999) for step in (1, 2)] == [0.99, 0.999]


@pytest.mark.parametrize("text, betas", [("0.75", (0.75,)), ("0.99:0.999", (0.99, 0.999)), ("0:1", (0, 1))])
def test_the_betas_of_a_config(text, betas):
    assert make_config("finetune", bregman_beta=text).bppo.betas == betas


# In the update


def make_method(tiny, tmp_path, **changes) -> Finetuning:
    """Return the method of a run on small tables."""
    return make_finetuning(FINETUNE.changed(weights=str(tiny), **changes), tmp_path)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("task", range(3))
def test_the_first_d_is_exactly_0(tiny, tmp_path, dropout, task):
    """Teacher and model are equal, and D is computed without dropout even if the task's pass has dropout."""
    method = make_method(tiny, tmp_path, encoder_dropout=dropout, head_dropout=dropout)
    ((_, terms),) = method.losses(task)
    assert terms[f"bregman/{list(BUILT_IN)[task]}/d"] == 0


@pytest.mark.parametrize("task", range(3))
def test_the_loss_is_the_tasks_plus_mu_d(tiny, tmp_path, task):
    """D is l between the logits of the model and the teacher, which is still the model as it started. Its
    gradient is that of l on the model's side."""
    config = FINETUNE.changed(weights=str(tiny), bregman_weight=3.0)
    method = make_finetuning(config, tmp_path)
    before = flat(method.model)
    move(method.model, 0.02)
    ((loss, terms),) = method.losses(task)
    name, (rows,) = planned(method, task)
    inputs, _ = collate(method.model, method.train[name], rows)
    logits, target = method.model(name, inputs), method.teacher(name, inputs)
    d = BUILT_IN[name].kind.divergence(logits, target)
    assert np.array_equal(flat(method.teacher.model), before)
    assert terms[f"bregman/{name}/d"] == pytest.approx(d.item()) and d.item() > 1e-4
    assert loss.item() == pytest.approx(terms[f"loss/{name}"] + 3 * d.item())

    weight = method.model.heads[name].weight
    (whole,) = torch.autograd.grad(loss, weight)
    like = method_of(config.changed(bregman_weight=0.0), method.model, method.train, method.dev)
    ((alone, _),) = like.losses(task)
    (plain,) = torch.autograd.grad(alone, weight)
    (of_d,) = torch.autograd.grad(d, weight)
    torch.testing.assert_close(whole, plain + 3 * of_d, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dropout, passes", [(0.0, 1), (0.1, 2)])
def test_passes_of_an_update(tiny, tmp_path, dropout, passes):
    """One by the model and one by the teacher: without dropout, the task's pass is also used for D."""
    method, calls = make_method(tiny, tmp_path, encoder_dropout=dropout), []
    for name, model in (("model", method.model), ("teacher", method.teacher.model)):
        model.encoder.layers[0].register_forward_hook(lambda *_, name=name: calls.append(name))
    list(method.losses(0))
    assert sorted(calls) == ["model"] * passes + ["teacher"]


def test_the_teacher_follows_after_every_update_with_the_beta_of_its_step(tiny, tmp_path):
    """60 steps in all, so beta changes at step 6."""
    method = make_method(tiny, tmp_path, epochs=1, steps_per_epoch=60, bregman_beta="0.5:0.9")
    optimizer = AdamW(method.model.parameters(), lr=0.01)
    wanted = flat(method.model)
    for step in range(9):
        train.update(optimizer, method.losses(step), 1, 1.0)
        np.testing.assert_allclose(flat(method.teacher.model), wanted, rtol=1e-5, atol=1e-6)
        method.after_update(step)
        beta = 0.5 if step < 6 else 0.9
        wanted = (1 - beta) * flat(method.model) + beta * wanted
        np.testing.assert_allclose(flat(method.teacher.model), wanted, rtol=1e-5, atol=1e-6)


def test_the_averaged_weights_are_scored_beside_the_models(tiny, tmp_path):
    """They are not the model's own scores under another name."""
    method = make_method(tiny, tmp_path, bregman_beta="0.5:0.9")
    move(method.model)
    found = method.evaluate(200)
    logits = all_logits(method.teacher.model, method.dev)
    assert found["teacher"] == scores(BUILT_IN, logits, method.dev) != found["dev"]
    assert found["beta"] == 0.9
    line = method.describe({**found, "loss": {}})
    assert f"of averaged weights on dev {found['teacher']['score']:.3f}" in line
    assert f"score on training rows {found['train']['score']:.3f}" in line


def test_only_a_run_that_uses_a_teacher_has_one(tiny, tmp_path):
    assert make_method(tiny, tmp_path).parts.keys() == {"model", "teacher"}
    assert make_method(tiny, tmp_path, bregman_weight=0.0).parts.keys() == {"model"}


# In a run

RUN = ["--threads", "1", "--batch-size", "4", "--epochs", "2", "--steps-per-epoch", "6", "--save-every", "1",
       "--lr", "1e-2", "--warmup", "0", "--schedule", "constant", "--encoder-dropout", "0.1",
       "--bregman-weight", "1", "--bregman-beta", "0.5:0.9"]  # fmt: skip
TOGETHER = ["--smart-weight", "1", "--sampling", "annealed", "--schedule", "linear", "--accumulate", "2"]


def tensors(folder: Path, name: str) -> dict[str, np.ndarray]:
    return {key: value.double().numpy() for key, value in load_file(folder / f"{name}.safetensors").items()}


def test_a_run_saves_its_teacher_and_goes_on_to_the_bit(tiny, tmp_path, monkeypatch):
    """SMART, BPPO, annealed sampling, dropout and accumulation together, stopped in its eighth update. The
    last two states must satisfy the recursion: teacher_12 = .1 theta_12 + .9 teacher_11."""
    write_tables(tmp_path / "data")
    words = [
        "--option",
        "finetune",
        "--weights",
        str(tiny),
        "--data",
        str(tmp_path / "data"),
        *RUN,
        *TOGETHER,
        "--keep-state",
    ]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    real, calls = train.update, []

    def stop(*args):
        calls.append(0)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(train, "update", stop)
    assert main([*words, "--out", str(tmp_path / "cut")]) == 130
    monkeypatch.undo()
    assert main(["--resume", "--out", str(tmp_path / "cut")]) == 0

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert metrics_without_clock(whole) == metrics_without_clock(cut)
    for place in ("best", "state/step-00000012"):
        for path in (whole / place).glob("*.safetensors"):
            assert path.read_bytes() == (cut / place / path.name).read_bytes()
    assert tomllib.loads((cut / "config.toml").read_text())["bregman_beta"] == "0.5:0.9"

    old, new = whole / "state" / "step-00000011", whole / "state" / "step-00000012"
    before, after, student = tensors(old, "teacher"), tensors(new, "teacher"), tensors(new, "model")
    assert before.keys() == after.keys() == student.keys()
    for name in student:
        wanted = 0.1 * student[name] + 0.9 * before[name]
        np.testing.assert_allclose(after[name], wanted, rtol=1e-5, atol=1e-6, err_msg=name)

    last = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["smart"] and last["bregman"]
    assert all(terms["d"] > 0 and terms["gradient_ratio"] > 0 for terms in last["bregman"].values())
    assert last["beta"] == 0.9 and last["teacher"].keys() == last["dev"].keys()


@pytest.mark.parametrize("beta", ["1.5", "0.99:2", "x", "0.1:0.2:0.3", "-0.1", "nan"])
def test_a_beta_that_cannot_be_ends_in_one_line(tiny, tmp_path, capsys, beta):
    write_tables(tmp_path / "data")
    words = ["--option", "finetune", "--weights", str(tiny), "--data", str(tmp_path / "data"), *RUN]
    assert main([*words, f"--bregman-beta={beta}", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--bregman-beta" in error and not (tmp_path / "run").exists()


def test_a_scheduled_beta_forbids_more_epochs_on_resume(tiny, tmp_path, capsys):
    """When beta changes depends on the whole run's length, so a run of 1 + 1 epochs is not one of 2."""
    write_tables(tmp_path / "data")
    words = ["--option", "finetune", "--weights", str(tiny), "--data", str(tmp_path / "data"), *RUN]
    assert main([*words, "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    assert main(["--resume", "--epochs", "2", "--out", str(tmp_path / "run")]) == 2
    assert "may change only" in capsys.readouterr().err
