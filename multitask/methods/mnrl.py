"""MNRL: multiple negatives ranking loss on sentiment (Henderson et al. 2017,
https://arxiv.org/abs/1705.00652, section 4.4), as adapted in "Jack of All Trades, Master of
Some: Improving BERT for Multitask Learning" (Stanford CS224N), section 3.4.

A group holds two sentences of each of the K classes, a_i and b_i for class i. With A and B the unit vectors
of the a_i and the b_i,

    S = C A B^T,      loss = mean over i of cross-entropy(S_i, i)

so a_i learns to find b_i among the sentences of the other classes. A group has only one pair per class: a
second pair of the same class would wrongly count as negatives. The paper's formula omits the softmax of the
cross-entropy, which is needed.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minbert.errors import InputError

BLOCK = 1024  # rows compared with all others at once


def multiple_negatives_ranking_loss(a: Tensor, b: Tensor, scale: float = 20.0) -> Tensor:
    """Return the loss, a scalar, of a and b (K, H), of which only a_i and b_i match.

    The rows are normalised here; `scale` is C. Raises ValueError if the shapes differ.

    >>> same = torch.ones(4, 8)  # every b matches every a: no better than chance, log 4
    >>> multiple_negatives_ranking_loss(same, same)
    tensor(1.3863)
    """
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"needs two (K, H) of the same shape, not {tuple(a.shape)} and {tuple(b.shape)}")
    scores = scale * F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    return F.cross_entropy(scores, torch.arange(len(a), device=a.device))


def group_loss(vectors: Tensor, groups: int, scale: float = 20.0) -> Tensor:
    """Return the mean loss of the groups. Vectors (groups * 2 * K, H), in the order of `draw_groups`."""
    a, b = vectors.unflatten(0, (groups, 2, -1)).unbind(dim=1)  # (groups, K, H) each
    return torch.stack(
        [multiple_negatives_ranking_loss(*pair, scale) for pair in zip(a, b, strict=True)]
    ).mean()


def draw_groups(labels: np.ndarray, groups: int, generator: np.random.Generator) -> np.ndarray:
    """Draw the rows of `groups` groups from those with labels (N,), flat: for each group one row a of every
    class, then another row b of every class. Raises InputError if a class has fewer than two rows.

    >>> labels = np.array([0, 1, 0, 1, 1])
    >>> labels[draw_groups(labels, groups=2, generator=np.random.default_rng(0))]
    array([0, 1, 0, 1, 0, 1, 0, 1])
    """
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    if min(map(len, classes), default=0) < 2:
        raise InputError("every class needs at least two sentences")
    drawn = [[generator.choice(rows, 2, replace=False) for rows in classes] for _ in range(groups)]
    return np.array(drawn).transpose(0, 2, 1).reshape(-1)


def retrieval_accuracy(vectors: Tensor, labels: np.ndarray) -> float:
    """Return the fraction of rows whose nearest other row, by cosine, has the same class. Vectors (N, H)."""
    directions, nearest = F.normalize(vectors, dim=1), list[int]()
    for block in directions.split(BLOCK):
        similarity = block @ directions.T
        similarity.diagonal(len(nearest)).fill_(-2.0)  # each row's with itself
        nearest += similarity.argmax(dim=1).tolist()
    return float(np.mean(labels[nearest] == labels))


def knn_accuracy(
    train: Tensor, train_labels: np.ndarray, dev: Tensor, dev_labels: np.ndarray, k: int = 25
) -> float:
    """Return the fraction of dev sentences whose class is that of most of their k nearest training sentences,
    by cosine. Vectors (N, H)."""
    directions, predicted = F.normalize(train, dim=1), list[int]()
    for block in dev.split(BLOCK):
        similarity = block @ directions.T  # cosine times |dev|, which does not change the order
        nearest = similarity.topk(min(k, len(train)), dim=1).indices.cpu().numpy()
        predicted += [int(np.bincount(row).argmax()) for row in train_labels[nearest].astype(int)]
    return float(np.mean(np.array(predicted) == dev_labels))
