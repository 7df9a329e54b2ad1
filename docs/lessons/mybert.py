"""BERT in 200 lines: text, model, padding left out, and training. Lessons 3 to 5 explain it.

    python docs/lessons/mybert.py FOLDER        # of Hugging Face's files, such as weights/tiny

It learns the sentiment of the sample's sentences, and says how many of the dev sentences it gets right.
"""

import csv
import json
import math
import re
import sys
import unicodedata
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file


class Vocabulary:
    """Text to ids: vocab.txt has a token on each line, and a token's id is the number of its line."""

    def __init__(self, folder):
        lines = (Path(folder) / "vocab.txt").read_text(encoding="utf-8").splitlines()
        self.ids = {token: number for number, token in enumerate(lines)}

    def pieces(self, word):
        """Cut a word into the longest pieces that the vocabulary has, from the left."""
        found, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = word[start:end] if start == 0 else "##" + word[start:end]
                if piece in self.ids:
                    break
            else:
                return ["[UNK]"]
            found.append(piece)
            start = end
        return found

    def tokens(self, text):
        text = unicodedata.normalize("NFD", text.lower())
        text = "".join(c for c in text if unicodedata.category(c) != "Mn")  # accents
        return [piece for word in re.findall(r"[^\W_]+|[^\w\s]|_", text) for piece in self.pieces(word)]

    def encode(self, text, partner=None):
        """Return the tokens' ids and the sentence, 0 or 1, that each belongs to."""
        first = ["[CLS]", *self.tokens(text), "[SEP]"]
        second = [] if partner is None else [*self.tokens(partner), "[SEP]"]
        return [self.ids[token] for token in first + second], [0] * len(first) + [1] * len(second)

    def batch(self, texts, partners=None):
        """Return ids, segments and the mask, each (B, L), padded on the right."""
        rows = [self.encode(*row) for row in zip(texts, partners or [None] * len(texts), strict=True)]
        length = max(len(ids) for ids, _ in rows)
        ids, segments, mask = torch.zeros(3, len(rows), length, dtype=torch.int64)
        for row, (numbers, sides) in enumerate(rows):
            ids[row, : len(numbers)] = torch.tensor(numbers)
            segments[row, : len(sides)] = torch.tensor(sides)
            mask[row, : len(numbers)] = 1
        return ids, segments, mask


class Bert:
    """The encoder, from Hugging Face's files: config.json and model.safetensors."""

    def __init__(self, folder):
        self.config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        self.weights = load_file(Path(folder) / "model.safetensors")

    def __call__(self, ids, segments, mask):
        """(B, L) each -> the last hidden state (B, L, H) and the pooled first token (B, H)"""
        x = self.embed(ids, segments)
        hidden = (1 - mask[:, None, None, :]) * torch.finfo(x.dtype).min  # (B, 1, 1, L), added to the scores
        for number in range(self.config["num_hidden_layers"]):
            x = self.layer(x, hidden, f"encoder.layer.{number}")
        return x, torch.tanh(self.linear(x[:, 0], "pooler.dense"))

    def embed(self, ids, segments):
        """(B, L) -> (B, L, H)"""
        words = self.weights["embeddings.word_embeddings.weight"][ids]
        positions = self.weights["embeddings.position_embeddings.weight"][: ids.shape[1]]  # 0, 1, 2, ...
        sides = self.weights["embeddings.token_type_embeddings.weight"][segments]
        return self.norm(words + positions + sides, "embeddings.LayerNorm")

    def layer(self, x, hidden, name):
        """(B, L, H) -> (B, L, H)"""
        context = self.attention(x, hidden, f"{name}.attention.self")
        attended = self.linear(context, f"{name}.attention.output.dense")
        x = self.norm(x + attended, f"{name}.attention.output.LayerNorm")
        wide = F.gelu(self.linear(x, f"{name}.intermediate.dense"))
        return self.norm(x + self.linear(wide, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def attention(self, x, hidden, name):
        """(B, L, H) -> (B, L, H)"""
        heads = self.config["num_attention_heads"]
        query, key, value = (
            self.linear(x, f"{name}.{part}").unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, A, L, d)
            for part in ("query", "key", "value")
        )
        scores = query @ key.mT / math.sqrt(query.shape[-1]) + hidden  # (B, A, L, L)
        return (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)

    def linear(self, x, name):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, x, name):
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self.config["layer_norm_eps"])


class PackedBert(Bert):
    """The same numbers without padding: the T real tokens of all sentences are one list, (T, H)."""

    def __call__(self, rows):
        """(ids, segments) of each sentence -> the last hidden state (T, H), the pooled first tokens (B, H)"""
        lengths = [len(ids) for ids, _ in rows]
        x = torch.cat(
            [self.embed(torch.tensor([ids]), torch.tensor([segments]))[0] for ids, segments in rows]
        )
        for number in range(self.config["num_hidden_layers"]):
            x = self.layer(x, lengths, f"encoder.layer.{number}")
        first = torch.stack([sentence[0] for sentence in x.split(lengths)])
        return x, torch.tanh(self.linear(first, "pooler.dense"))

    def attention(self, x, lengths, name):
        """(T, H) -> (T, H), sentence by sentence, so that there is nothing to hide"""
        return torch.cat([Bert.attention(self, sentence[None], 0, name)[0] for sentence in x.split(lengths)])


class AdamW:
    def __init__(self, weights, lr, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0):
        self.weights, self.t = list(weights), 0
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.moments = [(torch.zeros_like(theta), torch.zeros_like(theta)) for theta in self.weights]

    @torch.no_grad()
    def step(self):
        self.t += 1
        b1, b2 = self.betas
        for theta, (m, v) in zip(self.weights, self.moments, strict=True):
            m.mul_(b1).add_(theta.grad, alpha=1 - b1)
            v.mul_(b2).addcmul_(theta.grad, theta.grad, value=1 - b2)
            step = (m / (1 - b1**self.t)) / ((v / (1 - b2**self.t)).sqrt() + self.eps)
            theta -= self.lr * (self.weight_decay * theta + step)

    def zero_grad(self):
        for theta in self.weights:
            theta.grad = None


def train(model, head, batches, optimizer):
    """Train on batches of (rows, labels) by cross-entropy, with a head (classes, H). Yield the losses."""
    for rows, labels in batches:
        loss = F.cross_entropy(model(rows)[1] @ head.T, torch.tensor(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def read(split, vocabulary):
    """Return the rows and labels of the sample's sentences."""
    with open(f"multitask/data/sample/ids-sst-{split}.csv", encoding="utf-8") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    return [vocabulary.encode(one["sentence"]) for one in table], [int(one["sentiment"]) for one in table]


def main(folder, passes=4):
    vocabulary, model = Vocabulary(folder), PackedBert(folder)
    head = torch.zeros(5, model.config["hidden_size"])
    weights = [weight for weight in (*model.weights.values(), head) if weight.is_floating_point()]
    for weight in weights:
        weight.requires_grad_()
    rows, labels = read("train", vocabulary)
    starts = [start for _ in range(passes) for start in range(0, len(rows), 16)]
    batches = [(rows[start : start + 16], labels[start : start + 16]) for start in starts]
    losses = list(train(model, head, batches, AdamW(weights, lr=1e-4)))
    rows, labels = read("dev", vocabulary)
    with torch.no_grad():
        right = (model(rows)[1] @ head.T).argmax(dim=1) == torch.tensor(labels)
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, dev accuracy {right.float().mean():.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
