"""Batches: samples of a step sorted by length into groups, laid flat, with their targets."""

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
    """``ids`` and ``real``: (tokens,); ``at``: positions whose next token is learnt, ``next`` its id.

    ``at2`` and ``next2`` say the same of the token after the next, for the MTP layer.
    """

    ids: Tensor
    real: Tensor
    groups: Groups
    at: Tensor
    next: Tensor
    at2: Tensor
    next2: Tensor


def collate(part: list[Sample], groups: int = GROUPS) -> tuple[Batch, list[Sample]]:
    """A batch, and the samples in the order in which it holds them."""
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
    # the first token of a row is never learnt, so a shift across rows does no harm; a shift
    # by two reaches the second token, which is part of the prompt and not learnt either
    token, wanted = torch.tensor(ids), torch.tensor(learnt)
    at, at2 = wanted.nonzero().flatten() - 1, wanted.nonzero().flatten() - 2
    return Batch(token, torch.tensor(real), shapes, at, token[at + 1], at2, token[at2 + 2]), ordered


def cuts(lengths: list[int], groups: int) -> list[tuple[int, int]]:
    """Cut sorted lengths into at most ``groups`` runs with the least padding in all."""
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
    """Every fourth group as a batch of their own, and the flat positions they had."""
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
    """Per task (right, asked), where right means that every learnt token is the likeliest one.

    As the traces are deterministic, that is the same as greedy decoding giving trace and answer
    exactly, for one forward pass. Also the share of MTP predictions that agree with the model's.
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
    """The samples of a step: they depend on seed and step only."""
    rng = samples.rng_for(seed, step)
    return [samples.sample(rng) for _ in range(size)]
