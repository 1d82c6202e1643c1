"""Train pocket-r1 from a seed, on CPU.

    python deploy/models/pocket-r1/train.py --out pocket

The defaults train 3,500 steps (about 90 minutes on two idle cores with AVX512-BF16); the README
describes how the committed weights were made. The problems of a step depend only on seed and step,
so a run can be stopped at any time and continued with --resume. The learning rate warms up, stays
constant, and falls linearly for --decay-steps steps from step --decay-at; then the weights are written.
"""

import argparse
import ctypes
import json
import math
import os
import time
from pathlib import Path
from typing import Any

# before torch is loaded: by default, waiting threads spin and take cores from other processes
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import batch as batches
import export
import torch
import torch.nn.functional as F
from model import PocketR1, Shape
from muon import Muon

EVAL_SEED = 1_000_003


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        required=True,
        help="directory for checkpoints, log and the finished model",
    )
    add("--resume", action="store_true", help="continue from the last checkpoint in --out")
    add("--seed", type=int, default=7, help="seed of weights and problems (default: 7)")
    add("--batch", type=int, default=48, help="samples per step (default: 48)")
    add("--lr", type=float, default=2e-3, help="peak learning rate (default: 2e-3)")
    add("--warmup", type=int, default=100, help="warm-up steps (default: 100)")
    add(
        "--decay-at",
        type=int,
        default=1000,
        help="step at which the decay begins (default: 1000); a file DECAY in --out begins it now",
    )
    add("--decay-steps", type=int, default=2500, help="length of the decay (default: 2500)")
    add("--mtp-weight", type=float, default=0.3, help="weight of the MTP loss (default: 0.3)")
    add("--balance", type=float, default=1e-3, help="step of the router bias (default: 1e-3)")
    add("--eval-every", type=int, default=200, help="steps between evaluations (default: 200)")
    add("--save-every", type=int, default=200, help="steps between checkpoints (default: 200)")
    add("--threads", type=int, default=2, help="CPU threads (default: 2)")
    add("--float32", action="store_true", help="use float32 instead of bfloat16 in matrix products")
    return parser.parse_args()


class Trainer:
    """Model, optimizers and position of a training run."""

    def __init__(self, args: argparse.Namespace, shape: Shape | None = None) -> None:
        self.args = args
        torch.manual_seed(args.seed)
        self.model = PocketR1(shape or Shape())
        named = dict(self.model.named_parameters())
        # AdamW updates embeddings, head, routers and norms, Muon all other matrices
        ours = {
            n for n, p in named.items() if p.dim() > 1 and not n.startswith(("embed", "lm_head"))
        }
        ours -= {n for n in ours if n.endswith("gate.weight")}
        rest = [p for n, p in named.items() if n not in ours]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon([named[n] for n in sorted(ours)], lr=args.lr),
            torch.optim.AdamW(
                rest, lr=args.lr, betas=(0.9, 0.95), eps=1e-9, weight_decay=0.0, fused=True
            ),
        ]
        self.done = 0
        self.tokens = 0
        self.decay_at: int = args.decay_at

    def rate(self) -> float:
        """Return the learning rate relative to its peak: warm-up, constant, linear decay to 2 %."""
        if self.done < self.args.warmup:
            return float((self.done + 1) / self.args.warmup)
        left = 1 - (self.done - self.decay_at) / self.args.decay_steps
        return float(max(0.02, min(1.0, left)))

    def finished(self) -> bool:
        """Return whether the decay is over."""
        return bool(self.done >= self.decay_at + self.args.decay_steps)

    def step(self) -> tuple[float, float]:
        """Make one update; return the losses of the next token and of the one after it."""
        model, args = self.model.train(), self.args
        part = batches.draw(args.seed, self.done, args.batch)
        batch, _ = batches.collate(part)
        rate = self.rate()
        for group in [g for optimizer in self.optimizers for g in optimizer.param_groups]:
            group["lr"] = args.lr * rate
        with torch.autocast("cpu", torch.bfloat16, enabled=not args.float32):
            hidden = model(batch.ids, batch.groups, batch.real)
            loss = F.cross_entropy(model.lm_head(hidden[batch.at]).float(), batch.next)
            # train the MTP layer on a quarter of each batch: on the whole batch it would be a
            # quarter of the work
            kept, mine = batches.quarter(batch, self.done)
            after = model.predict_after_next(hidden[kept], mine.ids, mine.groups, mine.real)
            mtp = F.cross_entropy(model.lm_head(after[mine.at2]).float(), mine.next2)
        (loss + args.mtp_weight * mtp).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.balance(rate)
        self.done += 1
        self.tokens += int(batch.real.sum())
        return loss.item(), mtp.item()

    def balance(self, rate: float) -> None:
        """Apply DeepSeek-V3's loss-free balancing: bias += step * sign(mean load - load)."""
        for gate in self.model.gates().values():
            gate.e_score_correction_bias += (
                self.args.balance * rate * (gate.load.mean() - gate.load).sign()
            )
            gate.load.zero_()

    def save(self, path: Path) -> None:
        """Write a checkpoint atomically."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "done": self.done,
            "tokens": self.tokens,
            "decay_at": self.decay_at,
        }
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint."""
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.done, self.tokens = state["done"], state["tokens"]
        # continue a decay that has begun, unless --decay-at is later: then keep training at the
        # constant rate
        if state["decay_at"] <= self.done and self.decay_at <= self.done:
            self.decay_at = state["decay_at"]

    def evaluate(self, size: int = 256) -> tuple[dict[str, float], float]:
        """Return the share of exact answers by task on new problems, and the MTP agreement."""
        score, agreement = batches.exact(
            self.model.eval(), batches.draw(EVAL_SEED, self.done, size)
        )
        return {
            task: round(right / asked, 2) for task, (right, asked) in sorted(score.items())
        }, agreement


def keep_memory() -> None:
    """Let glibc keep freed memory; by default, mapping large tensors takes a third of the time.

    Other C libraries are not changed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(-4, 0)  # M_MMAP_MAX: allocate everything from the heap
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: do not return its top
    mallopt(-2, 2**28)  # M_TOP_PAD: grow it in large steps


def main() -> None:
    """Run the command line: train, log, save, export."""
    keep_memory()
    args = arguments()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / "checkpoint.pt"
    trainer = Trainer(args)
    if args.resume:
        trainer.load(checkpoint)
    started, first, seen = time.monotonic(), trainer.done, trainer.tokens
    with (args.out / "log.jsonl").open("a") as log:
        while not trainer.finished():
            loss, mtp = trainer.step()
            if not math.isfinite(loss):
                raise SystemExit(f"loss is {loss} at step {trainer.done}: resume with a lower --lr")
            if trainer.done < trainer.decay_at and (args.out / "DECAY").exists():
                (args.out / "DECAY").unlink()
                trainer.decay_at = trainer.done
                print(f"decay begins at step {trainer.done}", flush=True)
            if trainer.done % 20 == 0:
                spent = time.monotonic() - started
                left = (
                    (trainer.decay_at + args.decay_steps - trainer.done)
                    * spent
                    / (trainer.done - first)
                )
                line: dict[str, Any] = {
                    "step": trainer.done,
                    "tokens": trainer.tokens,
                    "loss": round(loss, 4),
                    "mtp_loss": round(mtp, 4),
                    "lr": round(args.lr * trainer.rate(), 6),
                    "tokens_per_s": round((trainer.tokens - seen) / spent),
                    "cpu_s": round(time.process_time()),
                    "eta_min": round(left / 60, 1),
                }
                if trainer.done % args.eval_every == 0:
                    line["exact"], agreement = trainer.evaluate()
                    line["mtp_agreement"] = round(agreement, 3)
                print(json.dumps(line), flush=True)
                print(json.dumps(line), file=log, flush=True)
            if trainer.done % args.save_every == 0 or trainer.finished():
                trainer.save(checkpoint)
    export.write(trainer.model, args.out / "model")
    print(f"written to {args.out / 'model'}; decay began at step {trainer.decay_at}", flush=True)


if __name__ == "__main__":
    main()
