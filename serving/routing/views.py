"""The parts of the fleet that a routing decision reads.

Tests and the simulation decide on frozen snapshots. The router decides on the fleet's live records,
so that nothing is copied per request. The records do not change during a decision, because a
decision never waits.
"""

from collections.abc import Sequence
from typing import Protocol

from serving.routing.snapshot import MemberState, RankId, RankLoad


class RankView(Protocol):
    """A rank: a ``RankSnapshot``, or a ``fleet.candidates.CandidateRank``."""

    @property
    def rank_id(self) -> RankId:
        """Group, epoch and rank."""
        ...

    @property
    def group_id(self) -> str:
        """Id of the rank's group."""
        ...

    @property
    def rank(self) -> int:
        """Number of the rank in its group."""
        ...

    @property
    def healthy(self) -> bool:
        """Whether the rank is healthy according to its last report."""
        ...

    @property
    def draining(self) -> bool:
        """Whether the rank accepts no new requests."""
        ...

    @property
    def inflight_requests(self) -> int:
        """Number of this router's requests on the rank."""
        ...

    @property
    def outstanding_tokens(self) -> int:
        """Prompt and expected output tokens still to compute for these requests."""
        ...

    @property
    def load(self) -> RankLoad:
        """The last load report."""
        ...

    @property
    def max_model_len(self) -> int:
        """Maximum number of tokens in prompt plus output; 0 if unknown."""
        ...

    @property
    def max_num_seqs(self) -> int:
        """Maximum number of concurrent sequences; 0 if unknown."""
        ...

    @property
    def adapter_slots(self) -> int:
        """LoRA adapters that the rank can hold; 0: it runs none."""
        ...

    @property
    def kv_blocks(self) -> int:
        """Number of KV-cache blocks; 0 if unknown."""
        ...

    @property
    def kv_block_size(self) -> int:
        """Tokens per KV-cache block; 0 if unknown."""
        ...


class GroupView(Protocol):
    """A group: a ``GroupSnapshot``, or a ``fleet.candidates.CandidateGroup``."""

    @property
    def group_id(self) -> str:
        """The group's id, unique in the fleet."""
        ...

    @property
    def epoch(self) -> str:
        """The epoch of the group's ranks."""
        ...

    @property
    def state(self) -> MemberState:
        """Whether the group accepts requests, or why not."""
        ...

    @property
    def reason(self) -> str:
        """Reason for the state, as a sentence."""
        ...

    @property
    def ranks(self) -> Sequence[RankView]:
        """Joined ranks, in ascending order."""
        ...


class FleetView(Protocol):
    """A fleet: a ``FleetSnapshot``, or a ``fleet.candidates.CandidateFleet``."""

    @property
    def groups(self) -> Sequence[GroupView]:
        """Groups with joined ranks, ordered by id."""
        ...

    @property
    def history(self) -> Sequence[GroupView]:
        """Groups that are gone, most recent first."""
        ...

    @property
    def ready(self) -> bool:
        """Whether any group accepts requests."""
        ...
