"""A request that was checked and is ready to be sent."""

from dataclasses import dataclass

from vllm.sampling_params import SamplingParams

from serving.link.v1 import link_pb2
from serving.request_context import Caller
from serving.requests.output_buffer import Transcript

EXPECTED_OUTPUT_LIMIT = 1024
"""Most output tokens that a choice counts for in admission and routing: clients rarely use up a
large max_tokens, and one that names none must not look like the end of the world."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that was checked and is ready to be sent."""

    request_id: str
    """The caller's."""
    work: link_pb2.Submit
    params: SamplingParams
    transcript: Transcript
    caller: Caller
    deadline: float
    """Seconds on the router's monotonic clock."""

    @property
    def expected_output(self) -> int:
        """Output tokens to expect, over all choices."""
        each = min(self.params.max_tokens or 1, EXPECTED_OUTPUT_LIMIT)
        return int(each * self.params.n)
