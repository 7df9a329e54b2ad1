"""mlm.py: masking token by token, the head against Hugging Face's, checkpoints both ways; and `--option mlm`,
whose encoder other runs start from."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT, write_table, write_tables
from safetensors.torch import load_file, save_file
from torch import Tensor, tensor

from minbert import BertForMaskedLM, BertModel, BertTokenizer, InputError, fill, mask_tokens, mlm
from minbert.mlm import Masking, words_in
from multitask import MultitaskBert
from multitask.command_line import resolve
from multitask.data.tables import SAMPLE, SPLITS, is_held_out
from multitask.data.tasks import BUILT_IN, SENTIMENT
from multitask.methods.sampling import random_seed
from multitask.preparation import prepare, read_rows, tasks_of
from multitask.report.page import write_report
from multitask.run import main

MASK, VOCAB = 4, 1000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Masking


def test_the_rate_and_the_three_fates():
    """200 rows of 100 tokens: 15 of each row are chosen; of these 3,000, 80% are [MASK], 10% are random and
    10% stay, up to chance (four standard deviations)."""
    ids = torch.full((200, 100), 7)
    masked, chosen = mask_tokens(ids, torch.arange(100).expand(200, 100), MASK, VOCAB, generator())
    assert (chosen.sum(dim=1) == 15).all()
    assert torch.equal(masked[~chosen], ids[~chosen])
    fates = masked[chosen]
    shares = [(fates == MASK).sum(), ((fates != MASK) & (fates != 7)).sum(), (fates == 7).sum()]
    for share, wanted in zip(shares, (0.8, 0.1, 0.1), strict=True):
        assert abs(share.item() / 3000 - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / 3000)
    assert fates.unique().numel() > 200  # the random ones are from the whole vocabulary
    assert chosen.sum(dim=0).min() > 10  # and every position is chosen as often as any other


def test_it_is_a_function_of_its_arguments():
    ids, words = torch.randint(5, VOCAB, (4, 20)), torch.arange(20).expand(4, 20)
    before = ids.clone()
    first, again, other = (mask_tokens(ids, words, MASK, VOCAB, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    assert torch.equal(ids, before)


def test_at_least_one_token_of_a_row_is_chosen_and_none_where_none_may_be():
    words = tensor([[-1, 1, -1, -1], [-1, -1, -1, -1]])
    _, chosen = mask_tokens(torch.full((2, 4), 7), words, MASK, VOCAB, generator())
    assert chosen.tolist() == [[False, True, False, False], [False] * 4]


def test_words_begin_where_no_token_continues_one():
    """[CLS] play ##ing ##s a [SEP] [PAD]: the words begin at 1 and 4."""
    special, continues = torch.zeros(9, dtype=torch.bool), torch.zeros(9, dtype=torch.bool)
    special[:3], continues[5:7] = True, True
    ids = tensor([[0, 4, 5, 6, 7, 1, 2]])
    assert words_in(ids, special, continues).tolist() == [[-1, 1, 1, 1, 4, -1, -1]]
    assert words_in(ids, special).tolist() == [[-1, 1, 2, 3, 4, -1, -1]]


def test_a_window_that_begins_inside_a_word_has_a_word_there():
    """[CLS] ##ing ##s a [SEP] ##s [SEP]: or the first pieces could never be chosen."""
    special, continues = torch.zeros(9, dtype=torch.bool), torch.zeros(9, dtype=torch.bool)
    special[:3], continues[5:7] = True, True
    words = words_in(tensor([[0, 5, 6, 7, 1, 6, 1]]), special, continues)
    assert words.tolist() == [[-1, 1, 1, 3, -1, 5, -1]]
    _, chosen = mask_tokens(torch.full((1, 7), 7), words, MASK, VOCAB, generator(), rate=1.0)
    assert chosen.tolist() == [[False, True, True, True, False, True, False]]


@pytest.mark.parametrize("whole", [False, True])
def test_words_are_chosen_whole_or_not(tiny, whole):
    """Of texts in a vocabulary of small pieces: no word is ever cut, or else many are."""
    tokenizer = BertTokenizer.from_pretrained(tiny)
    batch = tokenizer(["unbelievable lighthouses and extraordinary melodies of yesterday"] * 100)["input_ids"]
    masking = Masking(tokenizer, rate=0.3, whole_words=whole)
    _, chosen = masking(batch, generator())
    starts = words_in(batch, masking.special, Masking(tokenizer, whole_words=True).continues)
    real = starts >= 0
    cut = (chosen.gather(1, starts.clamp(min=0)) != chosen) & real
    assert not cut.any() if whole else cut.any(dim=1).float().mean() > 0.5
    assert 0.25 < chosen.sum() / real.sum() < 0.45


def test_special_tokens_and_padding_are_never_chosen(tiny):
    tokenizer = BertTokenizer.from_pretrained(tiny)
    batch = tokenizer(["a film ☃ [MASK] of the year", "why"], ["dull, and long", "it was"])
    masking = Masking(tokenizer, rate=1.0)
    masked, chosen = masking(batch["input_ids"], generator())
    tokens = [tokenizer.tokens(row) for row in batch["input_ids"]]
    for row, (words, picked) in enumerate(zip(tokens, chosen.tolist(), strict=True)):
        assert picked == [word not in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") for word in words], row
    assert {"[PAD]", "[UNK]", "[MASK]"} <= {word for words in tokens for word in words}
    assert torch.equal(masked[~chosen], batch["input_ids"][~chosen])


# The model


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    tensors = load_file(ROOT / "tests" / "reference.safetensors")
    return {key.removeprefix("masked."): x for key, x in tensors.items() if key.startswith("masked.")}


@pytest.fixture
def published(tiny: Path, tmp_path: Path, reference: dict[str, Tensor]) -> Path:
    """The tiny encoder and the reference's head, as a BertForMaskedLM is published: without a pooler."""
    encoder = load_file(tiny / "model.safetensors")
    tensors = {f"bert.{key}": x for key, x in encoder.items() if not key.startswith("pooler.")}
    tensors |= {key: x for key, x in reference.items() if key.startswith("cls.")}
    folder = tmp_path / "published"
    shutil.copytree(tiny, folder)
    save_file(tensors, folder / "model.safetensors")
    return folder


def inputs_of(reference: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: reference[name] for name in ("input_ids", "attention_mask", "token_type_ids")}


@torch.no_grad()
def test_its_logits_are_hugging_faces(published, reference):
    model, inputs = BertForMaskedLM.from_pretrained(published), inputs_of(reference)
    real = inputs["attention_mask"].bool()
    logits = model(**inputs)
    torch.testing.assert_close(logits[real], reference["logits"][real], rtol=0, atol=1e-5)
    assert not logits[~real].any()
    chosen = (torch.rand(real.shape) < 0.5) & real
    guesses = model.guesses(chosen, **inputs)
    torch.testing.assert_close(guesses, reference["logits"][chosen], rtol=0, atol=1e-5)


def test_only_chosen_tokens_have_logits(published, reference, monkeypatch):
    """The head sees N rows, whatever the size of the batch."""
    model, inputs = BertForMaskedLM.from_pretrained(published), inputs_of(reference)
    rows, forward = [], model.head.forward
    monkeypatch.setattr(model.head, "forward", lambda x, table: rows.append(len(x)) or forward(x, table))
    chosen = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    chosen[0, 4] = chosen[1, 1] = True
    assert model.guesses(chosen, **inputs).shape == (2, model.bert.config.vocab_size)
    assert rows == [2]


def test_the_embeddings_learn_from_both_their_uses(published, reference):
    """As a table they have gradients at the input's tokens alone; as the decoder, everywhere."""
    model, inputs = BertForMaskedLM.from_pretrained(published), inputs_of(reference)
    chosen = inputs["input_ids"] == MASK
    F.cross_entropy(model.guesses(chosen, **inputs), tensor([7, 8])).backward()
    gradient = model.bert.embeddings.word.weight.grad
    assert gradient is not None and gradient.any(dim=1).all()
    assert "head.decoder.weight" not in model.state_dict()


def test_a_checkpoint_without_a_pooler(published, tiny):
    """It pools by means alone; a head that needs the pooler says so."""
    bert, whole = BertModel.from_pretrained(published), BertModel.from_pretrained(tiny)
    inputs = BertTokenizer.from_pretrained(tiny)(["the film was good", "bad"])
    assert bert.pooler is None and bert(**inputs).pooler_output is None
    assert torch.equal(bert.pooled(**inputs, pooling="mean"), whole.pooled(**inputs, pooling="mean"))
    with pytest.raises(InputError, match=r"this checkpoint has no pooler, .*; use pooling mean"):
        bert.pooled(**inputs)


def test_through_transformers_and_back(published, reference, tmp_path):
    """What we save is what transformers reads, and the other way round, to the bit."""
    transformers = pytest.importorskip("transformers")
    BertForMaskedLM.from_pretrained(published).save_pretrained(tmp_path / "ours")
    theirs, said = transformers.BertForMaskedLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(said.values())
    logits = theirs.eval()(**inputs_of(reference)).logits
    torch.testing.assert_close(logits, reference["logits"], rtol=0, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    state = BertForMaskedLM.from_pretrained(tmp_path / "theirs").state_dict()
    for name, expected in BertForMaskedLM.from_pretrained(published).state_dict().items():
        assert torch.equal(state[name], expected), name
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM"]


def test_a_pooler_is_kept(tiny, tmp_path):
    BertForMaskedLM.from_pretrained(tiny).save_pretrained(tmp_path)
    again, before = (
        BertModel.from_pretrained(tmp_path).state_dict(),
        BertModel.from_pretrained(tiny).state_dict(),
    )
    assert again.keys() == before.keys() and all(torch.equal(again[name], before[name]) for name in again)


CLS = "cls.predictions."


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda found: found.pop(f"{CLS}bias"), f"{CLS}bias is missing"),
        (lambda found: found.pop(f"{CLS}transform.dense.weight"), f"{CLS}transform.dense.weight is missing"),
        (
            lambda found: found.update({f"{CLS}bias": torch.zeros(3)}),
            r"bias has shape \(3,\), config.json wants",
        ),
        (
            lambda found: found.update({f"{CLS}decoder.weight": torch.zeros(1200, 32)}),
            "its decoder is not its",
        ),
    ],
)
def test_a_head_that_does_not_fit_is_refused(published, change, problem):
    tensors = load_file(published / "model.safetensors")
    change(tensors)
    save_file(tensors, published / "model.safetensors")
    with pytest.raises(InputError, match=problem):
        BertForMaskedLM.from_pretrained(published)
    assert BertModel.from_pretrained(published)  # which the head does not concern


def test_a_tied_decoder_may_be_written_out(published):
    tensors = load_file(published / "model.safetensors")
    table = tensors["bert.embeddings.word_embeddings.weight"]
    tied = {f"{CLS}decoder.weight": table.clone(), f"{CLS}decoder.bias": tensors[f"{CLS}bias"].clone()}
    save_file(tensors | tied, published / "model.safetensors")
    assert BertForMaskedLM.from_pretrained(published).head.bias.any()


# Guessing


def test_fill_gives_the_likeliest_tokens_of_every_mask(published):
    model, tokenizer = BertForMaskedLM.from_pretrained(published), BertTokenizer.from_pretrained(published)
    found = fill(model, tokenizer, "The [MASK] was [MASK].", k=3)
    batch = tokenizer(["The [MASK] was [MASK]."])
    probabilities = model(**batch)[0, [2, 4]].softmax(dim=-1)
    for guesses, row in zip(found, probabilities, strict=True):
        values, ids = row.topk(3)
        assert [token for token, _ in guesses] == tokenizer.tokens(ids)
        assert [p for _, p in guesses] == pytest.approx(values.tolist(), rel=1e-4)
    with pytest.raises(InputError, match=r"has no \[MASK\] among its first 512 tokens"):
        fill(model, tokenizer, "The train was late. " * 200 + "[MASK]")
    with pytest.raises(InputError, match="must be at least 1, not 0"):
        fill(model, tokenizer, "A [MASK].", k=0)


def test_fill_never_guesses_the_rows_that_only_the_model_has(published):
    """Some models round their vocabulary up; here the spare tokens would be by far the likeliest."""
    model, tokenizer = BertForMaskedLM.from_pretrained(published), BertTokenizer.from_pretrained(published)
    before = fill(model, tokenizer, "A [MASK].")
    word = model.bert.embeddings.word
    word.weight = torch.nn.Parameter(torch.cat([word.weight, torch.zeros(8, word.weight.shape[1])]))
    model.head.bias = torch.nn.Parameter(torch.cat([model.head.bias, torch.full((8,), 100.0)]))
    (guesses,) = fill(model, tokenizer, "A [MASK].")
    assert [token for token, _ in guesses] == [token for token, _ in before[0]]


def test_the_command_prints_guesses(published, tiny, capsys):
    assert mlm.main([str(published), "The [MASK] was [MASK].", "--best", "2"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "The [MASK] was [MASK]." and len(out.splitlines()) == 3 and err == ""
    assert mlm.main([str(tiny), "A [MASK]."]) == 0
    assert "has no trained head for masked tokens" in capsys.readouterr().err
    assert mlm.main([str(published), "A film."]) == 2
    assert capsys.readouterr().err == "error: 'A film.': has no [MASK] among its first 512 tokens\n"
    assert mlm.main([str(published), "A [MASK].", "--best", "-1"]) == 2


# In a run

SMALL = ["--threads", "1", "--epochs", "2", "--steps-per-epoch", "6"]


@pytest.fixture(scope="module")
def words(tiny, tmp_path_factory) -> list[str]:
    data = write_tables(tmp_path_factory.mktemp("tables"))
    return ["--option", "mlm", "--weights", str(tiny), "--data", str(data), *SMALL, "--lr", "3e-3"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, words) -> Path:
    """A run of 2 epochs of 6 updates; tests must not change it."""
    run = tmp_path_factory.mktemp("runs") / "mlm"
    assert main([*words, "--out", str(run)]) == 0
    return run


def records_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_measures_itself(finished):
    first, last = records_of(finished)
    for record in (first, last):
        dev = record["dev"]
        assert dev.keys() == {"perplexity", "accuracy", "score"} and 0 <= dev["accuracy"] <= 1
        assert dev["perplexity"] == pytest.approx(math.exp(record["dev_loss"]["all"]))
        assert dev["score"] == pytest.approx(1 / dev["perplexity"])
    assert (
        last["loss"]["all"] < first["loss"]["all"] and last["dev"]["perplexity"] < first["dev"]["perplexity"]
    )
    assert json.loads((finished / "result.json").read_text())["dev"] == last["dev"]


def test_perplexity_is_that_of_the_model_in_best(finished, words):
    """Computed once more from the saved model: mask the dev rows, look at the logits of all tokens."""
    model = BertForMaskedLM.from_pretrained(finished / "best")
    tokenizer = BertTokenizer.from_pretrained(finished / "best")
    tables, losses = Path(words[5]), []
    draws = generator()
    for task in BUILT_IN.values():
        rows = [line.split("\t") for line in task.path(tables, "dev").read_text().splitlines()]
        columns = [[row[rows[0].index(name)] for row in rows[1:]] for name in task.texts]
        order = sorted(
            range(len(columns[0])),
            key=lambda row: -len(tokenizer.token_ids(*([c[row]] for c in columns))[0][0]),
        )
        batch = tokenizer(*([column[row] for row in order] for column in columns))
        masked, chosen = Masking(tokenizer)(batch["input_ids"], draws)
        logits = model(**{**batch, "input_ids": masked})
        losses.append(F.cross_entropy(logits[chosen], batch["input_ids"][chosen], reduction="none"))
    wanted = torch.cat(losses).mean().exp().item()
    assert records_of(finished)[1]["dev"]["perplexity"] == pytest.approx(wanted, rel=1e-4)


def test_the_loss_is_the_mean_over_the_chosen_tokens(words):
    """With a forward pass of all tokens beside it; and each step has masks of its own, always the same."""
    config = resolve([*words, "--encoder-dropout", "0", "--tasks", "paraphrase"])
    selected = tasks_of(config)
    method = prepare(config, selected, read_rows(config, SPLITS[:2], selected), torch.device("cpu")).method
    tokens, rows = method.train["paraphrase"].tokens, method.plan.batches(3)
    draws = generator(random_seed(0, "masks", 3))
    ((batch, masked, chosen),) = method.masked(tokens, rows, draws)
    logits = method.model.language(**{**batch, "input_ids": masked})[chosen]
    ((loss, terms),) = method.losses(3)
    torch.testing.assert_close(loss, F.cross_entropy(logits, batch["input_ids"][chosen]))
    assert terms == {"objective/all": loss.item()}
    (again, _), (other, _) = next(method.losses(3)), next(method.losses(4))
    assert again == loss != other


def test_its_report_shows_perplexity(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    page = write_report(tmp_path / "run", None, torch.device("cpu")).read_text()
    for record in records_of(finished):
        assert f"<td>{record['dev']['perplexity']:.3f}</td>" in page
    assert "Perplexity" in (tmp_path / "run" / "figures" / "learning-curves.svg").read_text()
    assert main(["--option", "report", "--run", str(tmp_path / "run"), "--perplexity", "5"]) == 2
    assert "are for t-SNE of a run of mnrl" in capsys.readouterr().err
    first, last = records_of(tmp_path / "run")
    del last["dev"]["accuracy"]
    (tmp_path / "run" / "metrics.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(last)}\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl:2: not the record of an epoch"):
        write_report(tmp_path / "run", None, torch.device("cpu"))


@pytest.mark.parametrize("flag, place", [("--weights", "best"), ("--weights", ""), ("--init", "")])
@pytest.mark.parametrize("option", ["finetune", "mlm"])
def test_others_start_from_it(finished, words, tmp_path, option, flag, place):
    """With a learning rate of 0, what they start from stays as it was; mlm goes on with its head."""
    run = tmp_path / "run"
    command = ["--option", option, flag, str(finished / place), "--data", words[5], "--out", str(run)]
    assert main([*command, "--epochs", "1", "--steps-per-epoch", "2", "--threads", "1", "--lr", "0"]) == 0
    found, before = (load_file(folder / "best" / "model.safetensors") for folder in (run, finished))
    heads = {name for name in before if name.startswith("cls.")}
    assert len(heads) == 5
    names = before.keys() if option == "mlm" else before.keys() - heads
    for name in names:
        ours = name if option == "mlm" else name.removeprefix("bert.")
        assert torch.equal(found[ours], before[name]), name
    assert option == "finetune" or records_of(run)[0]["dev"] == records_of(finished)[1]["dev"]


def test_a_fresh_bias_starts_at_the_frequencies(tiny, words, tmp_path):
    assert main([*words, "--lr", "0", "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    bias = BertForMaskedLM.from_pretrained(tmp_path / "run" / "best").head.bias
    tokenizer = BertTokenizer.from_pretrained(tiny)
    the, never = (tokenizer.token_ids([word])[0][0][1] for word in ("the", "z"))
    assert bias.exp().sum().item() == pytest.approx(1, rel=1e-4) and bias[the] > bias[never] + 1
    assert torch.equal(bias[[tokenizer.pad_token_id, 2, 3]], bias[never].expand(3))  # no [CLS], no [SEP]


def test_weights_without_a_pooler(published, words, tmp_path, capsys):
    """Pooled by means they will do; with cls there is one line that says what is missing."""
    command = ["--option", "finetune", "--weights", str(published), *words[4:6], "--threads", "1"]
    command += ["--epochs", "1", "--steps-per-epoch", "1", "--out", str(tmp_path / "run")]
    assert main([*command, "--pooling", "cls"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "has no pooler, which --pooling cls needs" in said
    assert main(command) == 0
    assert MultitaskBert.load(tmp_path / "run").encoder.pooler is None


def test_plain_text(tiny, tmp_path, capsys):
    """Lines of .txt files, blank ones left out; a share of them is held out by their hash."""
    lines = [f"{line} {number}" for number in range(150) for line in ("the film was good", "a bad movie")]
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "._a.txt").write_bytes(b"\0\xff")
    (tmp_path / "a.txt").write_text("\n\n".join(lines[:290]) + "\n")
    (tmp_path / "b.txt").write_text("\n".join(lines[290:]))
    words = ["--option", "mlm", "--weights", str(tiny), "--data", str(tmp_path), *SMALL]
    words += ["--epochs", "1", "--held-out", "0.2", "--out", str(tmp_path / "run")]
    assert main(words) == 0
    out = capsys.readouterr().out
    held_out = sum(is_held_out((line,), 0.2) for line in lines[:290])
    assert (
        f"a.txt: 20% of a.txt is held out as dev\n  train {290 - held_out} rows\n  dev   {held_out} rows"
        in out
    )
    assert f"  a.txt        {290 - held_out:9,} rows" in out and "b.txt" in out
    assert "finetune --init" in out and "--data DIR" in out and "minbert.mlm" in out


def test_what_is_wrong_with_plain_text_ends_in_one_line(tiny, tmp_path, capsys):
    words = ["--option", "mlm", "--weights", str(tiny), "--data", str(tmp_path), *SMALL]
    (tmp_path / "a.txt").write_bytes(b"a film\n\xff\n")
    assert main(words) == 2
    assert "a.txt:2: not UTF-8" in capsys.readouterr().err
    (tmp_path / "a.txt").write_text("a film\n")
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "have no line for dev; add some, or change --held-out" in said
    assert main([*words[:4], "--held-out", "0.5"]) == 2
    assert "--held-out is for plain text" in capsys.readouterr().err


def test_tables_come_before_text(tiny, tmp_path, capsys):
    """A README.txt beside the tables is no corpus."""
    shutil.copytree(SAMPLE, tmp_path / "data")
    (tmp_path / "data" / "README.txt").write_text("About these tables.\n")
    words = ["--option", "mlm", "--weights", str(tiny), "--data", str(tmp_path / "data"), *SMALL[:2]]
    assert main([*words, "--epochs", "1", "--steps-per-epoch", "1", "--out", str(tmp_path / "run")]) == 0
    assert "README.txt" not in capsys.readouterr().out


def test_long_texts_are_read_in_windows(tiny, tmp_path, capsys):
    header = [SENTIMENT.id, *SENTIMENT.texts, SENTIMENT.label]
    for split in ("train", "dev"):
        rows = [[number, "the film was good " * 10, number % 5] for number in range(10)]
        write_table(SENTIMENT.path(tmp_path, split), [header, *rows])
    words = [
        "--option",
        "mlm",
        "--weights",
        str(tiny),
        "--data",
        str(tmp_path),
        "--tasks",
        "sentiment",
        *SMALL,
    ]
    assert main([*words, "--max-length", "16", "--long", "windows", "--out", str(tmp_path / "run")]) == 0
    assert "sentiment           40 rows" in capsys.readouterr().out  # 40 words are four windows of 14


def test_it_learns(tiny, tmp_path):
    """Texts in which each word follows from its neighbours: perplexity falls to a fraction."""
    texts = [
        " ".join(("the film was good and a bad movie is very " * 2).split()[n : n + 8]) for n in range(10)
    ]
    header = [SENTIMENT.id, *SENTIMENT.texts, SENTIMENT.label]
    for split in ("train", "dev"):
        rows = [[number, text, number % 5] for number, text in enumerate(texts)]
        write_table(SENTIMENT.path(tmp_path, split), [header, *rows])
    words = ["--option", "mlm", "--weights", str(tiny), "--data", str(tmp_path), "--tasks", "sentiment"]
    words += [
        "--threads",
        "1",
        "--epochs",
        "4",
        "--steps-per-epoch",
        "50",
        "--lr",
        "1e-2",
        "--encoder-dropout",
        "0",
    ]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    last = records_of(tmp_path / "run")[-1]["dev"]
    assert last["perplexity"] < 2 and last["accuracy"] > 0.8
