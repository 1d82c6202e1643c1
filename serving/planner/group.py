"""Latencies of one group under a load, and the highest load that meets the objectives.

All ranks of an expert-parallel group step together, so a prompt on one rank delays all of them. If
each of ``data`` ranks computes prompt tokens in a share ``q`` of the steps, the mean step time is

    decode + (both - decode) * (1 - (1 - q) ** data)

where ``both`` is the time of a step that also has prompt tokens. The numbers of sequences and
prompt tokens in a step follow from its duration by Little's law; the fixed point is found by
iteration. Requests are spread evenly over the ranks. The functions of this module are pure.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

from serving.planner.bisection import largest
from serving.planner.queueing import mean_wait, p90_count, p90_wait
from serving.planner.roofline import Batch, Limit, Step, StepModel
from serving.planner.workload import Workload

_ROUNDS = 80
_CLOSE = 5e-4
_IDLE = 1e-6
"""Share of a group's capacity at which a request practically runs alone."""
_NONE = Step(0.0, Limit.OVERHEAD)


class Role(StrEnum):
    """The work of a group."""

    MIXED = "mixed"
    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class Objective:
    """Upper bounds of a plan."""

    ttft: float = 2.0
    """90th percentile of the time to first token, seconds."""
    itl: float = 0.1
    """Mean time between a request's tokens at the 90th percentile of the load, seconds."""
    price: float = math.inf
    """Maximum price, dollars per million output tokens."""


@dataclass(frozen=True, slots=True)
class Served:
    """A group under a load; times in seconds."""

    ttft: float
    """Mean time to first token; 0 for a group that only decodes."""
    ttft_p90: float
    itl: float
    """Mean time between tokens; 0 for a group that only computes prompts."""
    itl_p90: float
    """Mean time between tokens at the 90th percentile of the number of sequences."""
    sequences: float
    """Mean number of sequences per rank."""
    sequences_p90: float
    load: float
    """Utilization of prefill, 0 to 1."""
    prefill_share: float
    """Share of the busy time spent on prompts."""
    prefill_limit: Limit
    decode_limit: Limit


@dataclass(frozen=True, slots=True)
class Group:
    """One group and its settings."""

    steps: StepModel
    role: Role
    chunk: int
    """Maximum number of prompt tokens in a step of a rank."""
    most_sequences: float
    """Maximum number of sequences per rank, by KV cache and settings."""
    most_limit: Limit
    """The resource that limits ``most_sequences``."""
    drafts: int = 0
    """Number of tokens drafted per step and sequence."""
    acceptance: float = 0.0
    """Share of drafted tokens that are accepted."""

    @property
    def accepted(self) -> float:
        """Mean number of tokens that a step adds to a sequence.

        A draft counts only if all drafts before it were accepted (Leviathan et al., arXiv
        2211.17192).
        """
        return sum(self.acceptance**n for n in range(self.drafts + 1))

    def serve(self, load: Workload, rate: float) -> Served | None:
        """Return the group under ``rate`` requests/s with the lengths of ``load``.

        None if it cannot keep up.
        """
        each = rate / self.steps.data
        found = self._settle(load, each)
        if found is None:
            return None
        sequences, step, decode, both = found
        many = p90_count(sequences * self.steps.data) / self.steps.data
        high = step - decode.seconds + self._decode(load, many).seconds
        ttft = self._ttft(load, each, sequences, step)
        if math.isinf(ttft[0]):
            return None
        per_token = self.accepted if self._decodes else math.inf
        return Served(
            ttft=ttft[0],
            ttft_p90=ttft[1],
            itl=step / per_token,
            itl_p90=high / per_token,
            sequences=sequences,
            sequences_p90=many,
            load=ttft[2],
            prefill_share=(step - decode.seconds) / step if step else 1.0,
            prefill_limit=both.limit,
            decode_limit=decode.limit,
        )

    def _settle(self, load: Workload, each: float) -> tuple[float, float, Step, Step] | None:
        """Return sequences, mean step, step without prompts and step with prompts, for ``each``
        requests/s per rank.

        None if more requests arrive than are served.
        """
        step, decode, both = 0.0, _NONE, _NONE
        for _ in range(_ROUNDS):
            before = step
            sequences = each * load.output * step / self.accepted if self._decodes else 0.0
            arriving = each * load.computed * step if self._prefills else 0.0
            if sequences > self.most_sequences or arriving > self.chunk:
                return None
            decode = self._decode(load, sequences)
            step = decode.seconds
            if self._prefills:
                at_once = min(self.chunk, max(load.computed, arriving))
                chance = min(1.0, arriving / at_once)
                shared = 1 - (1 - chance) ** self.steps.data
                mean = arriving / shared if shared else at_once / self.steps.data
                both = self._step(load, sequences, at_once, mean)
                step += (both.seconds - decode.seconds) * shared
            if abs(step - before) <= _CLOSE * step:
                return sequences, step, decode, both
        return None

    def meets(self, load: Workload, rate: float, objective: Objective) -> bool:
        """Return whether the group serves ``rate`` requests/s within its objectives and limits."""
        found = self.serve(load, rate)
        return found is not None and self._excess(found, objective) is None

    def capacity(self, load: Workload, objective: Objective) -> float:
        """Return the highest rate that meets the objectives, requests/s; 0 if no rate does."""
        bound = self.bound(load)
        if not self.meets(load, bound * _IDLE, objective):
            return 0.0
        return largest(lambda rate: self.meets(load, rate, objective), bound)

    def limit(self, load: Workload, rate: float, objective: Objective) -> Limit:
        """Return the resource that prevents the group from exceeding ``rate`` requests/s."""
        more = self.serve(load, rate * 1.02)
        at = more or self.serve(load, rate)
        if at is None:
            return self._step(load, 1.0, min(load.computed, self.chunk)).limit
        found = self._excess(at, objective)
        if found is None:
            found = at.prefill_limit if at.prefill_share > 1 / 2 else at.decode_limit
        return found

    def _excess(self, found: Served, objective: Objective) -> Limit | None:
        """Return the resource whose limit is exceeded, or None."""
        if found.sequences_p90 > self.most_sequences:
            return self.most_limit
        if found.load > self.steps.constants.utilisation or found.ttft_p90 > objective.ttft:
            return found.prefill_limit
        if found.itl_p90 > objective.itl:
            slow = found.prefill_share > 1 / 2
            return found.prefill_limit if slow else found.decode_limit
        return None

    @property
    def _decodes(self) -> bool:
        return self.role is not Role.PREFILL

    @property
    def _prefills(self) -> bool:
        return self.role is not Role.DECODE

    def bound(self, load: Workload) -> float:
        """Return an upper bound of the group's rate, requests/s."""
        bounds = []
        if self._decodes:
            step = self._decode(load, self.most_sequences).seconds
            bounds.append(self.most_sequences * self.accepted / load.output / step)
        if self._prefills:
            step = self._step(load, 0.0, self.chunk).seconds
            bounds.append(self.chunk / load.computed / step)
        return min(bounds) * self.steps.data

    def _decode(self, load: Workload, sequences: float) -> Step:
        """Return a step without prompts, with at least the request itself."""
        if not self._decodes:
            return _NONE
        return self.steps.decode(max(sequences, 1.0), load.context, self.drafts)

    def _step(
        self, load: Workload, sequences: float, tokens: float, mean: float | None = None
    ) -> Step:
        """Return a step with ``tokens`` prompt tokens; see ``Batch`` for ``mean``."""
        prompts = max(tokens / load.computed, 1.0)
        batch = Batch(
            sequences=max(sequences, 1.0) if self._decodes else 0.0,
            context=load.context,
            drafts=self.drafts if self._decodes else 0,
            prompt=tokens,
            attended=load.reused + load.computed / 2,
            cached=load.reused * prompts,
            mean_prompt=mean,
        )
        return self.steps.step(batch)

    def _ttft(
        self, load: Workload, each: float, sequences: float, step: float
    ) -> tuple[float, float, float]:
        """Return mean and 90th percentile of the time to first token, and the load of prefill.

        Args:
            load: The workload.
            each: Requests/s per rank.
            sequences: Sequences per rank.
            step: Mean step, which must end before a new prompt begins.
        """
        if not self._prefills:
            return 0.0, 0.0, 0.0
        ranks, spread = self.steps.data, load.prompt_spread
        # A rank can compute a full chunk in each step.
        full = self._step(load, sequences, self.chunk).seconds
        service = load.computed / self.chunk * full
        used = each * service
        own = self._step(load, sequences, min(load.computed, self.chunk)).seconds
        alone = max(1.0, load.computed / self.chunk) * own
        # A group that only computes prompts does not step without one.
        rest = step if self._decodes else own * (1 - (1 - min(used, 1.0)) ** ranks)
        known = self.steps.constants
        first = known.first_token_seconds + known.first_token_per_sequence * sequences * ranks
        mean = mean_wait(used, service, ranks, spread) + rest / 2 + alone + first
        high = p90_wait(used, service, ranks, spread) + rest + alone * load.long_prompt + first
        return mean, high, used
