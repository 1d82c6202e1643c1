"""Counts the reasoning tokens of raw text, which vLLM's completion handlers do not parse."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """The tokens that delimit reasoning, e.g. the tokens of <think> and </think>."""

    start: int
    end: int

    @classmethod
    def of(cls, reasoning_config: Any) -> "ReasoningMarks | None":
        """Return the marks of vLLM's ``ReasoningConfig``; None unless each is a single token."""
        if reasoning_config is None or not reasoning_config.enabled:
            return None
        marks = (
            reasoning_config.reasoning_start_token_ids,
            reasoning_config.natural_reasoning_end_token_ids,
        )
        if any(len(ids or ()) != 1 for ids in marks):
            return None
        (start,), (end,) = marks
        return cls(start, end)

    def count(self, prompt: Sequence[int], output: Sequence[int]) -> int:
        """Return the number of reasoning tokens in the output, without the marks.

        Args:
            prompt: Token ids of the prompt, [tokens]; the prompt can begin the reasoning.
            output: Token ids of one choice, [tokens].
        """
        total = at = 0
        inside = self._is_open(prompt)
        while at < len(output):
            mark = self.end if inside else self.start
            try:
                found = output.index(mark, at)
            except ValueError:
                found = len(output)
            if inside:
                total += found - at
            at, inside = found + 1, not inside
        return total

    def _is_open(self, prompt: Sequence[int]) -> bool:
        """Return whether the prompt's last mark starts reasoning."""
        if self.start not in prompt:  # nearly all prompts; this is fast
            return False
        last = next(token for token in reversed(prompt) if token in {self.start, self.end})
        return last == self.start
