"""MNRL: multiple negatives ranking loss on sentiment (Henderson et al. 2017,
https://arxiv.org/abs/1705.00652, section 4.4), as adapted in "Jack of All Trades, Master of
Some: Improving BERT for Multitask Learning" (Stanford CS224N), section 3.4.

A group holds two sentences of each of the K classes, a_i and b_i of class i. With unit vectors,

    S = C A B^T,      loss = mean over i of cross-entropy(S_i, i)

so a_i learns to find b_i among the other classes' sentences. One pair per class in a group: a second pair
would stand among the negatives although it is none. The paper's formula leaves the softmax of cross-entropy
out; it is needed.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minbert.errors import InputError


def multiple_negatives_ranking_loss(a: Tensor, b: Tensor, scale: float = 20.0) -> Tensor:
    """a and b (K, H), where only a_i and b_i belong together; rows are normalised here, scale is C. A
    scalar."""
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"needs two (K, H) of one shape, not {tuple(a.shape)} and {tuple(b.shape)}")
    scores = scale * F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    return F.cross_entropy(scores, torch.arange(len(a), device=a.device))


def group_loss(vectors: Tensor, groups: int, scale: float = 20.0) -> Tensor:
    """The mean loss of `groups` groups; vectors (groups * 2 * K, H) as `draw_groups` orders their rows."""
    a, b = vectors.unflatten(0, (groups, 2, -1)).unbind(dim=1)  # (groups, K, H) each
    return torch.stack(
        [multiple_negatives_ranking_loss(*pair, scale) for pair in zip(a, b, strict=True)]
    ).mean()


def draw_groups(labels: np.ndarray, groups: int, generator: np.random.Generator) -> np.ndarray:
    """Rows of `groups` groups, flat: in each, one sentence a of every class, then another one b of every
    class."""
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    if min(map(len, classes), default=0) < 2:
        raise InputError("every class needs at least two sentences")
    drawn = [[generator.choice(rows, 2, replace=False) for rows in classes] for _ in range(groups)]
    return np.array(drawn).transpose(0, 2, 1).reshape(-1)


def retrieval_accuracy(vectors: Tensor, labels: np.ndarray) -> float:
    """The share of sentences whose nearest other sentence, by cosine, has the same class; vectors (N, H)."""
    directions = F.normalize(vectors, dim=1)
    nearest = (directions @ directions.T).fill_diagonal_(-2.0).argmax(dim=1).cpu().numpy()
    return float(np.mean(labels[nearest] == labels))


def knn_accuracy(
    train: Tensor, train_labels: np.ndarray, dev: Tensor, dev_labels: np.ndarray, k: int = 25
) -> float:
    """The share of dev sentences that the majority of their k nearest training sentences, by cosine, gets
    right."""
    similarity = dev @ F.normalize(train, dim=1).T  # times |dev|, which changes no order
    nearest = similarity.topk(min(k, len(train)), dim=1).indices.cpu().numpy()
    votes = train_labels[nearest].astype(int)
    predicted = np.array([np.bincount(row).argmax() for row in votes])
    return float(np.mean(predicted == dev_labels))
