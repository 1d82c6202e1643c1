"""Converts log-probabilities received over the link to vLLM's format."""

from collections import deque

from vllm.logprobs import Logprob, PromptLogprobs, SampleLogprobs

from serving.link.v1 import link_pb2
from serving.vllm_adapter.detokenizer import CandidateTexts

_CONVERTED = 64
"""Number of prompt positions whose log-probabilities are converted at a time."""


def convert_some(
    positions: deque[link_pb2.PositionLogprobs],
    converted: PromptLogprobs,
    candidates: CandidateTexts | None,
) -> None:
    """Convert some of a prompt's log-probabilities; takes about 1 ms.

    Args:
        positions: Positions to convert; converted ones are removed.
        converted: Converted positions; new ones are appended.
        candidates: Texts of tokens. If None, texts are omitted.
    """
    for _ in range(min(_CONVERTED, len(positions))):
        converted.append(candidates_at(positions.popleft(), candidates, converted) or None)


def check_logprobs(choice: link_pb2.ChoiceDelta) -> None:
    """Check that each token has log-probabilities, and each position has candidates.

    Raises:
        ValueError: Log-probabilities or candidates are missing.
    """
    if len(choice.logprobs) != len(choice.token_ids):
        raise ValueError(
            f"{len(choice.logprobs)} log-probabilities for {len(choice.token_ids)} tokens",
        )
    for position in choice.logprobs:
        if not 0 < len(position.token_ids) == len(position.logprobs):
            raise ValueError(
                f"{len(position.logprobs)} log-probabilities for {len(position.token_ids)} "
                "candidates of a position",
            )


def candidates_at(
    position: link_pb2.PositionLogprobs,
    candidates: CandidateTexts | None,
    before: SampleLogprobs | PromptLogprobs,
) -> dict[int, Logprob]:
    """Return a position's log-probabilities in vLLM's format.

    Args:
        position: The position as received.
        candidates: Texts of tokens. If None, texts are omitted.
        before: Log-probabilities of the positions before it.
    """
    ranks, tokens = position.vocab_ranks, position.token_ids
    texts = [None] * len(tokens) if candidates is None else candidates.texts(tokens, before)
    return {
        token: Logprob(logprob, (ranks[i] if i < len(ranks) else 0) or None, texts[i])
        for i, (token, logprob) in enumerate(zip(tokens, position.logprobs, strict=True))
    }
