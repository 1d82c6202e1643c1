"""Batches: the samples of a step, grouped by length and concatenated, with targets."""

from collections import defaultdict
from dataclasses import dataclass

import samples
import tokenizer as tok
import torch
from model import Groups, PocketR1
from samples import Sample
from torch import Tensor

GROUPS = 8  # more groups: less padding, more small attention calls


@dataclass(frozen=True)
class Batch:
    """A batch as flat tensors.

    ``ids`` and ``real`` (not padding) are ``[tokens]``. ``at`` has the positions whose next token is
    learnt, and ``next`` its ids. ``at2`` and ``next2`` are the same for the token after the next, for
    the MTP layer.
    """

    ids: Tensor
    real: Tensor
    groups: Groups
    at: Tensor
    next: Tensor
    at2: Tensor
    next2: Tensor


def collate(part: list[Sample], groups: int = GROUPS) -> tuple[Batch, list[Sample]]:
    """Return a batch, and its samples in the batch's order."""
    ordered = sorted(part, key=lambda s: len(s.ids))
    ids, learnt, real = [], [], []
    shapes: Groups = []
    pad = tok.SPECIALS[tok.PAD]
    for first, last in cuts([len(s.ids) for s in ordered], groups):
        rows = ordered[first:last]
        length = len(rows[-1].ids)
        shapes.append((len(rows), length))
        for row in rows:
            fill = length - len(row.ids)
            ids += row.ids + [pad] * fill
            learnt += row.learnt + [False] * fill
            real += [True] * len(row.ids) + [False] * fill
    # The first two tokens of a row are part of the prompt and never learnt, so shifts by one and
    # two positions across rows are harmless.
    token, wanted = torch.tensor(ids), torch.tensor(learnt)
    at, at2 = wanted.nonzero().flatten() - 1, wanted.nonzero().flatten() - 2
    return Batch(token, torch.tensor(real), shapes, at, token[at + 1], at2, token[at2 + 2]), ordered


def cuts(lengths: list[int], groups: int) -> list[tuple[int, int]]:
    """Split sorted lengths into at most ``groups`` runs with the least padding in total."""
    count = len(lengths)
    cost = [[0.0] + [float("inf")] * count]
    came: list[list[int]] = []
    for _ in range(min(groups, count)):
        before, row, froms = cost[-1], [float("inf")], [0]
        for end in range(1, count + 1):
            best = min(range(end), key=lambda i: before[i] + (end - i) * lengths[end - 1])
            row.append(before[best] + (end - best) * lengths[end - 1])
            froms.append(best)
        cost.append(row)
        came.append(froms)
    out, end = [], count
    for froms in reversed(came):
        out.append((froms[end], end))
        end = froms[end]
    return out[::-1]


def quarter(batch: Batch, which: int) -> tuple[Tensor, Batch]:
    """Return every fourth group as a batch, with the flat positions of its tokens."""
    keep, groups, start = [], [], 0
    for index, (rows, length) in enumerate(batch.groups):
        if index % 4 == which % 4:
            keep.append(torch.arange(start, start + rows * length))
            groups.append((rows, length))
        start += rows * length
    kept = torch.cat(keep)
    new = torch.full((start,), -1)
    new[kept] = torch.arange(len(kept))

    def moved(at: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        inside = new[at] >= 0
        return new[at][inside], following[inside]

    at, following = moved(batch.at, batch.next)
    at2, following2 = moved(batch.at2, batch.next2)
    return kept, Batch(batch.ids[kept], batch.real[kept], groups, at, following, at2, following2)


@torch.no_grad()
def exact(model: PocketR1, part: list[Sample]) -> tuple[dict[str, tuple[int, int]], float]:
    """Return (right, asked) for each task, and the share of MTP predictions that match the model's.

    A sample is right if each learnt token is the most likely one. As traces are deterministic, that
    is equivalent to greedy decoding of trace and answer, at the cost of one forward pass.
    """
    batch, ordered = collate(part)
    hidden = model(batch.ids, batch.groups, batch.real)
    said = model.lm_head(hidden[batch.at]).argmax(-1)
    wrong = batch.at[said != batch.next] + 1
    later = model.lm_head(
        model.predict_after_next(hidden, batch.ids, batch.groups)[batch.at2]
    ).argmax(-1)
    agreement = (later == said).float().mean().item()
    miss = torch.zeros(len(batch.ids), dtype=torch.bool)
    miss[wrong] = True
    score: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    start = row = 0
    for rows, length in batch.groups:
        bad = miss[start : start + rows * length].view(rows, length).any(1)
        start += rows * length
        for flag in bad.tolist():
            right, asked = score[ordered[row].task]
            score[ordered[row].task] = (right + (not flag), asked + 1)
            row += 1
    return dict(score), agreement


def draw(seed: int, step: int, size: int) -> list[Sample]:
    """Return the samples of a step, which depend only on the seed and the step."""
    rng = samples.rng_for(seed, step)
    return [samples.sample(rng) for _ in range(size)]
