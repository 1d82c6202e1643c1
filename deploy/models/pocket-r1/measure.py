"""Measures a model directory with one forward pass per batch, without a server or decoding.

    python deploy/models/pocket-r1/measure.py

Prints, for problems that are not in the training data: the share of samples whose reasoning and
answer consist of the most likely tokens (as with greedy decoding), how often the MTP layer predicts
the token that the model generates after the next, and the load of each expert.
"""

import argparse
import json
from pathlib import Path

import batch as batches
import export
import torch

SEED = 2_000_003


def main() -> None:
    """Measure and print a JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--folder", type=Path, default=export.HERE, help="model directory")
    parser.add_argument("--samples", type=int, default=2000, help="samples (default: 2000)")
    args = parser.parse_args()
    model = export.load(args.folder)
    for gate in model.gates().values():
        gate.train()  # counts the chosen experts
    score: dict[str, list[int]] = {}
    agreed = []
    per_batch = 100
    for step in range(args.samples // per_batch):
        part, agreement = batches.exact(model, batches.draw(SEED, step, per_batch))
        agreed.append(agreement)
        for task, (right, asked) in part.items():
            total = score.setdefault(task, [0, 0])
            total[0] += right
            total[1] += asked
    loads = {}
    for name, gate in model.gates().items():
        relative = gate.load / gate.load.mean()
        loads[name] = [round(x, 2) for x in relative.tolist()]
    figures = {
        "exact": {task: round(r / n, 3) for task, (r, n) in sorted(score.items())},
        "asked": {task: n for task, (_, n) in sorted(score.items())},
        "mtp_agreement": round(float(torch.tensor(agreed).mean()), 3),
        "expert_load_over_mean": loads,
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
