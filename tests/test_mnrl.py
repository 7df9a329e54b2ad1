"""mnrl.py: its loss by hand and against sentence-transformers', groups without false negatives, its measures;
and `--option mnrl`, whose encoder finetune can start from."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import metrics_without_clock, write_table, write_tables
from torch import Tensor, tensor

from minbert.errors import InputError
from multitask import MultitaskBert, train
from multitask.data.tasks import BUILT_IN, SENTIMENT
from multitask.methods.mnrl import (
    draw_groups,
    group_loss,
    knn_accuracy,
    multiple_negatives_ranking_loss,
    retrieval_accuracy,
)
from multitask.run import main

# The loss


@pytest.mark.parametrize("scale", [1.0, math.log(3), 20.0])
def test_orthogonal_pairs(scale):
    """a = b = the unit vectors e_1, e_2: S = C I, and each row costs -ln e^C / (e^C + 1) = ln(1 + e^-C); with
    C = ln 3 that is ln 4/3."""
    wanted = math.log1p(math.exp(-scale))
    assert scale != math.log(3) or math.isclose(wanted, math.log(4 / 3))
    loss = multiple_negatives_ranking_loss(torch.eye(2), torch.eye(2), scale)
    assert loss.shape == () and loss.item() == pytest.approx(wanted, rel=1e-5, abs=1e-8)


def test_pairs_that_are_swapped():
    """b in the other order: S = C (1 - I), and each row costs ln(1 + e^C); C = ln 3 gives ln 4."""
    loss = multiple_negatives_ranking_loss(torch.eye(2), torch.eye(2).flip(0), math.log(3))
    assert loss.item() == pytest.approx(math.log(4))


def test_it_ranks_b_for_each_a():
    """a = (e_1, e_1), b = (e_1, e_2): S = C [[1, 0], [1, 0]]. By rows, with C = ln 3: ln 4/3 and ln 4, with
    mean ln(16/3) / 2. By columns both would be ln 2."""
    a, b = tensor([[1.0, 0.0], [1.0, 0.0]]), torch.eye(2)
    assert multiple_negatives_ranking_loss(a, b, math.log(3)).item() == pytest.approx(math.log(16 / 3) / 2)


def test_the_scale_is_20_by_default():
    """Vectors that are 60 degrees apart: S = 20 [[1, 1/2], [1/2, 1]], each row ln(1 + e^-10)."""
    a = tensor([[1.0, 0.0], [0.5, 0.75**0.5]], dtype=torch.float64)
    wanted = pytest.approx(math.log1p(math.exp(-10)), rel=1e-2)
    assert multiple_negatives_ranking_loss(a, a).item() == wanted
    assert group_loss(a.repeat(2, 1), 1).item() == wanted


def test_rows_are_normalised_inside():
    a, b = torch.randn(2, 5, 8)
    lengths = torch.rand(2, 5, 1) * 100 + 0.01
    torch.testing.assert_close(
        multiple_negatives_ranking_loss(a * lengths[0], b * lengths[1]), multiple_negatives_ranking_loss(a, b)
    )


def test_equals_sentence_transformers():
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.losses import MultipleNegativesRankingLoss  # moved in version 6

    for scale in (20.0, 5.0):
        a, b = torch.randn(2, 7, 16, requires_grad=True).unbind()
        theirs = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=scale)
        wanted = theirs([{"sentence_embedding": a}, {"sentence_embedding": b}], torch.empty(0))
        ours = multiple_negatives_ranking_loss(a, b, scale)
        torch.testing.assert_close(ours, wanted)
        for side in (a, b):
            pair = [torch.autograd.grad(loss, side, retain_graph=True)[0] for loss in (ours, wanted)]
            torch.testing.assert_close(*pair)


def test_it_stays_on_the_vectors_device():
    assert multiple_negatives_ranking_loss(*torch.zeros(2, 3, 4, device="meta")).is_meta


def test_its_gradient_reaches_both_sides():
    a, b = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(multiple_negatives_ranking_loss, (a, b))


@pytest.mark.parametrize("a, b", [((3, 4), (2, 4)), ((3, 4), (3, 5)), ((4,), (4,)), ((2, 3, 4), (2, 3, 4))])
def test_shapes_that_do_not_fit(a, b):
    with pytest.raises(ValueError, match=r"two \(K, H\) of the same shape"):
        multiple_negatives_ranking_loss(torch.zeros(a), torch.zeros(b))


# Groups


def grouped(vectors: Tensor, groups: int, classes: int) -> list[tuple[Tensor, Tensor]]:
    """Return (a, b) of each group, split by hand: K rows of a, then K of b, group after group."""
    starts = [2 * classes * group for group in range(groups)]
    return [(vectors[s : s + classes], vectors[s + classes : s + 2 * classes]) for s in starts]


@pytest.mark.parametrize("groups", [1, 3, 8])
def test_a_group_holds_two_sentences_of_every_class(groups):
    labels = np.array([0, 1, 2, 3, 4] * 6 + [0, 0, 0, 3], dtype=np.float64)
    rows = draw_groups(labels, groups, np.random.default_rng(0))
    assert rows.shape == (groups * 10,)
    for group in rows.reshape(groups, 2, 5):
        assert labels[group].tolist() == [[0, 1, 2, 3, 4]] * 2
        assert (group[0] != group[1]).all()


def test_every_sentence_can_be_drawn_on_either_side():
    labels = np.array([0, 0, 0, 1, 1, 1, 1])
    drawn = draw_groups(labels, 200, np.random.default_rng(0)).reshape(200, 2, 2)
    for side in (0, 1):
        assert set(drawn[:, side].ravel().tolist()) == set(range(7))


def test_groups_follow_the_generator():
    labels = np.arange(40) % 5
    first, again, other = (draw_groups(labels, 3, np.random.default_rng(seed)).tolist() for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("labels", [[0, 0, 1], [0], []])
def test_a_class_of_one_sentence_has_no_pair(labels):
    with pytest.raises(InputError, match=r"^every class needs at least two sentences$"):
        draw_groups(np.array(labels), 1, np.random.default_rng(0))


@pytest.mark.parametrize("groups, classes", [(1, 5), (3, 5), (4, 2)])
def test_group_loss_is_the_mean_of_the_groups_own_losses(groups, classes):
    vectors = torch.randn(groups * 2 * classes, 6)
    own = [multiple_negatives_ranking_loss(a, b, 5.0).item() for a, b in grouped(vectors, groups, classes)]
    assert group_loss(vectors, groups, 5.0).item() == pytest.approx(np.mean(own))


def test_sentences_of_one_class_are_never_each_others_negatives():
    """Three groups of which each class sits on its own axis: within a group every row costs
    ln(1 + 4 e^-C), about 0 for C = 20. In one matrix of all 15 pairs each row would find its class three
    times and cost ln 3 at least."""
    vectors = torch.eye(5).repeat(6, 1)
    assert group_loss(vectors, 3).item() == pytest.approx(math.log1p(4 * math.exp(-20)), abs=1e-6)
    a = b = torch.eye(5).repeat(3, 1)
    assert multiple_negatives_ranking_loss(a, b).item() == pytest.approx(math.log(3), abs=1e-6)


def test_the_groups_that_are_drawn_are_those_that_are_scored():
    """Each vector encodes its row's class: `draw_groups` and `group_loss` must agree on the order."""
    labels = np.repeat(np.arange(5), 4)
    rows = draw_groups(labels, 3, np.random.default_rng(0))
    assert group_loss(torch.eye(5)[labels[rows]], 3).item() < 1e-6


# Measures


def at_degrees(*degrees: float) -> Tensor:
    """Return unit vectors in the plane at these angles."""
    angles = tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_retrieval_accuracy():
    """At 0, 9, 20, 90 and 100 degrees, the nearest other of each is at 9, 0, 9, 100 and 90. Labels 0 0 1 1 1:
    right for all but the third. Lengths do not count."""
    vectors = at_degrees(0, 9, 20, 90, 100) * tensor([[1.0], [9.0], [0.1], [5.0], [1.0]])
    assert retrieval_accuracy(vectors, np.array([0.0, 0.0, 1.0, 1.0, 1.0])) == pytest.approx(4 / 5)
    assert retrieval_accuracy(vectors, np.arange(5)) == 0  # no row is its own neighbour
    many, labels = torch.randn(2500, 3, generator=torch.Generator().manual_seed(0)), np.arange(2500) % 3
    same = F.normalize(many, dim=1) @ F.normalize(many, dim=1).T
    nearest = same.fill_diagonal_(-2).argmax(dim=1).numpy()  # of all at once
    assert retrieval_accuracy(many, labels) == np.mean(labels[nearest] == labels)


def test_knn_accuracy():
    """Training sentences at 0, 10, 20 (classes 0 0 1) and 80, 90 degrees (1 1); dev at 6 and 70. Three
    nearest: 0 0 1, so 0; and 1 1 1, so 1. The single nearest of 17 degrees is class 1, its three nearest
    say 0. Lengths do not count."""
    train_vectors = at_degrees(0, 10, 20, 80, 90) * tensor([[1.0], [1.0], [50.0], [1.0], [1.0]])
    dev_vectors = at_degrees(6, 70, 17)
    labels = np.array([0.0, 0.0, 1.0, 1.0, 1.0])
    wanted = np.array([0.0, 1.0, 1.0])
    assert knn_accuracy(train_vectors, labels, dev_vectors, wanted, k=3) == pytest.approx(2 / 3)
    assert knn_accuracy(train_vectors, labels, dev_vectors, wanted, k=1) == 1
    assert knn_accuracy(train_vectors, labels, dev_vectors, wanted, k=99) == pytest.approx(
        2 / 3
    )  # all: class 1


def test_the_default_k_is_25():
    """By rising angle 12 of class 0, 13 of class 1 and one of class 0: of 24 and of 26 half are of class 0,
    which wins a tie; of 25 most are of class 1."""
    labels = np.array([0.0] * 12 + [1.0] * 13 + [0.0])
    given = at_degrees(*range(26)), labels, at_degrees(0), np.array([1.0])
    assert [knn_accuracy(*given, k=k) for k in (24, 25, 26)] == [0, 1, 0]
    assert knn_accuracy(*given) == 1


# In a run

SMALL = ["--threads", "1", "--epochs", "2", "--steps-per-epoch", "6"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_tables(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def words(tiny, data) -> list[str]:
    return ["--option", "mnrl", "--weights", str(tiny), "--data", str(data), *SMALL, "--lr", "3e-3"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, words) -> Path:
    """A run of 2 epochs of 6 updates; tests must not change it."""
    run = tmp_path_factory.mktemp("runs") / "mnrl"
    assert main([*words, "--out", str(run)]) == 0
    return run


def test_a_run_measures_itself(finished):
    first, last = map(json.loads, (finished / "metrics.jsonl").read_text().splitlines())
    assert (first["step"], last["step"]) == (6, 12)
    for record in (first, last):
        assert record["dev"].keys() == {"retrieval", "knn", "score"}
        assert all(0 <= value <= 1 for value in record["dev"].values())
    assert last["loss"]["all"] < first["loss"]["all"]
    result = json.loads((finished / "result.json").read_text())
    assert result["dev"] == (first, last)[result["best_epoch"] - 1]["dev"]


def test_its_encoder_is_one_that_transformers_reads(finished, tiny):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertModel.from_pretrained(finished / "best").eval()
    ours = MultitaskBert.load(finished / "best")
    inputs = ours.tokenizer(["the film was good", "a bad movie"])
    with torch.no_grad():
        states = theirs(**{name: inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids")})
        wanted = ours.encoder(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    torch.testing.assert_close(states.last_hidden_state * mask, wanted, rtol=0, atol=2e-6)
    assert (finished / "best" / "model.safetensors").read_bytes() != (tiny / "model.safetensors").read_bytes()


@pytest.mark.parametrize("flag, place", [("--weights", "best"), ("--init", ""), ("--init", "best")])
def test_finetune_starts_from_it(finished, data, tmp_path, capsys, flag, place):
    """With a learning rate of 0, the encoder stays as it was."""
    run = tmp_path / "finetune"
    command = ["--option", "finetune", flag, str(finished / place), "--data", str(data), "--out", str(run)]
    assert main([*command, *SMALL[:2], "--epochs", "1", "--steps-per-epoch", "3", "--lr", "0"]) == 0
    assert capsys.readouterr().err == ""
    assert (run / "best" / "model.safetensors").read_bytes() == (
        finished / "best" / "model.safetensors"
    ).read_bytes()
    assert MultitaskBert.load(run / "best").tasks.keys() == BUILT_IN.keys()


def test_the_same_seed_gives_the_same_run_and_a_stop_changes_nothing(words, finished, tmp_path, monkeypatch):
    real, calls = train.update, []

    def stop(*args):
        calls.append(0)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(train, "update", stop)
    assert main([*words, "--save-every", "4", "--out", str(tmp_path / "run")]) == 130
    monkeypatch.undo()
    assert main(["--resume", "--out", str(tmp_path / "run")]) == 0
    assert metrics_without_clock(tmp_path / "run") == metrics_without_clock(finished)
    for path in (finished / "best").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "run" / "best" / path.name).read_bytes()


def test_accumulation_and_groups_are_counted(words, tmp_path, capsys):
    """5 classes, 4 groups: 40 sentences a batch, 80 an update."""
    extra = ["--groups", "4", "--accumulate", "2", "--epochs", "1", "--steps-per-epoch", "1"]
    assert main([*words, *extra, "--out", str(tmp_path / "run")]) == 0
    assert "sentiment: 12 rows; 4 groups of sentences a batch" in capsys.readouterr().out


def test_training_brings_sentences_of_one_class_together(tiny, tmp_path):
    """Five classes that differ in one word: after some updates, the nearest other sentence is mostly of the
    same class."""
    fillers = ["the", "was", "a", "is", "very", "and"]
    openings = ["good", "bad", "man", "film", "guitar"]
    texts = [(" ".join([openings[n % 5], *fillers[n // 5 :]]), n % 5) for n in range(30)]
    header = [SENTIMENT.id, *SENTIMENT.texts, SENTIMENT.label]
    for split in ("train", "dev"):
        rows = [[number, *row] for number, row in enumerate(texts)]
        write_table(SENTIMENT.path(tmp_path, split), [header, *rows])
    words = ["--option", "mnrl", "--weights", str(tiny), "--data", str(tmp_path), *SMALL, "--lr", "3e-3"]
    words += ["--epochs", "3", "--steps-per-epoch", "10", "--encoder-dropout", "0"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["dev"]["retrieval"] >= 0.9
    model = MultitaskBert.load(tmp_path / "run" / "best")
    vectors = model.encoder.pooled(**model.tokenizer([text for text, _ in texts]), pooling=model.pooling)
    labels = np.array([label for _, label in texts])
    same = F.normalize(vectors, dim=1) @ F.normalize(vectors, dim=1).T
    together = tensor(labels[:, None] == labels)
    assert same[together].mean() > same[~together].mean() + 0.3


def test_a_table_without_pairs_ends_in_one_line(tiny, tmp_path, capsys):
    """Only one sentence of class 4 is left."""
    path = SENTIMENT.path(write_tables(tmp_path / "data"), "train")
    lines = path.read_text().splitlines(keepends=True)
    only = [line for line in lines if line.endswith("\t4\n")][:1]
    path.write_text("".join([line for line in lines if not line.endswith("\t4\n")] + only))
    words = ["--option", "mnrl", "--weights", str(tiny), "--data", str(tmp_path / "data"), *SMALL]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ") and "two" in error


def test_tasks_without_single_texts_in_classes_end_in_one_line(tiny, data, tmp_path, capsys):
    words = ["--option", "mnrl", "--weights", str(tiny), "--data", str(data), "--tasks", "similarity"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: --option mnrl needs a task with classes")
