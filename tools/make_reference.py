"""Make the reference data of the tests: `weights/tiny`, a tiny checkpoint, and `tests/reference.safetensors`.

    python tools/make_reference.py

The weights are random; the reference holds the outputs of `transformers.BertModel` (eager attention) on them,
and under `masked.` those of `transformers.BertForMaskedLM` with a random head, which is there as well.
Two runs on one machine with the same versions give the same bytes. Needs the extra `test` (transformers).
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer
from torch import Tensor

from minbert import BertConfig, BertModel, BertTokenizer
from minbert.sanity import REFERENCE, TINY, reference_loss
from minbert.tokenizer import SPECIAL_TOKENS

ROOT = Path(__file__).resolve().parent.parent

SENTENCES = [
    "The train was late.",
    "A quiet film about a lighthouse, and one of the best of the year; I'd see it again tomorrow.",
    "Why?",
]
PARTNERS = ["It left an hour after it should have.", "Dull.", "Because the sea is salty, and the ice is not."]
# A gradient of each kind of part: an embedding, attention at the bottom, a LayerNorm, the top, the pooler.
GRADIENTS = [
    "embeddings.token_type_embeddings.weight",
    "encoder.layer.0.attention.self.query.weight",
    "encoder.layer.0.attention.self.value.bias",
    "encoder.layer.0.attention.output.LayerNorm.weight",
    "encoder.layer.1.output.dense.weight",
    "pooler.dense.weight",
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()  # it has no flags: --help must not run it
    torch.set_num_threads(1)
    torch.manual_seed(0)
    TINY.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(read_sample())
    tokenizer.save_pretrained(TINY)
    make_model(tokenizer.vocab_size).save_pretrained(TINY)
    tensors = make_reference(tokenizer) | make_masked_reference(tokenizer)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    # Only one key: safetensors writes several in random order, and the bytes should always be the same.
    save_file(tensors, REFERENCE, metadata={"made_by": json.dumps(versions)})
    for path in [*sorted(TINY.iterdir()), REFERENCE]:
        print(f"{path.stat().st_size:9,}  {path.relative_to(ROOT)}")


def read_sample() -> list[str]:
    """Return every sentence of the shipped sample, our own text in the public domain."""
    texts = []
    for path in sorted((ROOT / "multitask" / "data" / "sample").glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as table:
            for row in csv.DictReader(table, delimiter="\t"):
                texts += [text for column, text in row.items() if column.startswith("sentence")]
    return texts


def make_tokenizer(texts: Iterable[str], vocab_size: int = 1200) -> BertTokenizer:
    """Train a lower-case WordPiece vocabulary on the texts."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    texts = [tokenizer.normalizer.normalize_str(text) for text in texts]
    # By default the trainer numbers letters in the order of a randomly seeded hash table, and breaks ties
    # between pairs by number; letters that are listed in advance keep their place.
    letters = sorted(set("".join(texts)) - {" "})
    fixed = [*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters)]
    trainer = WordPieceTrainer(vocab_size=vocab_size, special_tokens=fixed, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = tokenizer.get_vocab()
    with tempfile.TemporaryDirectory() as folder:
        lines = "".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.__getitem__))
        Path(folder, "vocab.txt").write_text(lines, encoding="utf-8")
        return BertTokenizer.from_pretrained(folder)


def make_model(vocab_size: int) -> BertModel:
    """Make a model that is random everywhere, even in biases and LayerNorm, so that all outputs differ."""
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.2,
    )
    model = BertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=config.initializer_range)
    return model


def make_reference(tokenizer: BertTokenizer) -> dict[str, Tensor]:
    """Return inputs and outputs of `transformers`, with keys CASE.NAME and shapes as in `BertOutput`."""
    model = transformers.BertModel.from_pretrained(TINY, attn_implementation="eager").eval()
    cases = {
        "single": tokenizer(SENTENCES),
        "pair": tokenizer(SENTENCES, PARTNERS),
        "one": tokenizer(SENTENCES[1:2]),
        "long": tokenizer([" ".join(SENTENCES * 40)], max_length=512),
    }
    tensors: dict[str, Tensor] = {}
    for case, batch in cases.items():
        output = model(**batch, output_hidden_states=True, output_attentions=True)
        found = {"last_hidden_state": output.last_hidden_state, "pooler_output": output.pooler_output}
        if case != "long":  # its attention alone would be 8 MB
            found |= {f"hidden_states.{i}": state for i, state in enumerate(output.hidden_states)}
            found |= {f"attentions.{i}": weights for i, weights in enumerate(output.attentions)}
        if case == "pair":
            model.zero_grad()
            reference_loss(output.last_hidden_state, output.pooler_output, batch["attention_mask"]).backward()
            found |= {f"gradients.{name}": model.get_parameter(name).grad for name in GRADIENTS}
        tensors |= {f"{case}.{name}": tensor.detach().clone() for name, tensor in (batch | found).items()}
    return tensors


def make_masked_reference(tokenizer: BertTokenizer) -> dict[str, Tensor]:
    """Return the input, the head's weights and the logits of a masked language model on the tiny encoder."""
    model = transformers.BertForMaskedLM.from_pretrained(TINY, attn_implementation="eager").eval()
    head = model.cls.predictions
    with torch.no_grad():
        for parameter in (*head.transform.parameters(), head.bias):
            parameter.normal_(std=0.2)
    batch = tokenizer(["The train was [MASK].", "[MASK]?"])
    logits = model(**batch).logits.detach()
    names = [f"transform.{layer}.{name}" for layer in ("dense", "LayerNorm") for name in ("weight", "bias")]
    weights = {
        f"cls.predictions.{name}": head.get_parameter(name).detach().clone() for name in ("bias", *names)
    }
    return {f"masked.{name}": tensor for name, tensor in (batch | weights | {"logits": logits}).items()}


if __name__ == "__main__":
    main()
