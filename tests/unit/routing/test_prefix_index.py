"""PrefixIndex: equals a naive model under any reports, gaps and resets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.link.block_hashes import PromptBlockHashes, block_hashes
from serving.routing.prefix_index import PrefixIndex
from tests.support.samples import sample

SIZE = 4
A, B = ("g0", "e", 0), ("g0", "e", 1)


def names(tokens, size=SIZE):
    return list(block_hashes(tokens, size))


def tell(index, rank, sequence, *, reset=False, removed=(), stored=(), size=SIZE):
    index.apply(
        rank, sequence=sequence, reset=reset, block_size=size, removed=removed, stored=stored
    )


def test_the_longest_match_of_each_rank():
    index = PrefixIndex()
    prompt = list(range(20))
    tell(index, A, 0, reset=True, stored=names(prompt[:8]))
    tell(index, B, 0, reset=True, stored=names(prompt))
    assert index.matches(PromptBlockHashes(prompt)) == {A: 8, B: 16}, (
        "the last token is not reusable"
    )
    assert index.matches(PromptBlockHashes([*prompt[:8], 99, 99, 99, 99, 99])) == {A: 8, B: 8}
    assert index.matches(PromptBlockHashes([99, *prompt])) == {}
    assert index.matches(PromptBlockHashes()) == {}


def test_a_gap_in_the_chain_ends_the_match():
    index = PrefixIndex()
    first, _, third = names(range(12))
    tell(index, A, 0, reset=True, stored=[first, third])
    assert index.matches(PromptBlockHashes(range(13))) == {A: 4}


def test_removed_and_reset():
    index = PrefixIndex()
    prompt = PromptBlockHashes(range(13))
    tell(index, A, 0, reset=True, stored=names(range(12)))
    tell(index, A, 1, removed=names(range(12))[2:])
    assert index.matches(prompt) == {A: 8}
    tell(index, A, 2, reset=True, stored=names(range(4)))
    assert index.matches(prompt) == {A: 4}


def test_after_a_gap_nothing_is_known_until_the_next_reset():
    index = PrefixIndex()
    prompt = PromptBlockHashes(range(5))
    before = sample("moe_prefix_gaps_total")
    tell(index, A, 0, reset=True, stored=names(range(4)))
    tell(index, A, 2, stored=names(range(50, 54)))
    assert index.matches(prompt) == {}
    tell(index, A, 3, stored=names(range(4)))
    assert index.matches(prompt) == {}
    assert sample("moe_prefix_gaps_total") == before + 1
    tell(index, A, 4, reset=True, stored=names(range(4)))
    assert index.matches(prompt) == {A: 4}


def test_a_stream_that_does_not_begin_with_a_reset_is_not_believed():
    index = PrefixIndex()
    tell(index, A, 0, stored=names(range(4)))
    assert index.blocks(A) == frozenset()


def test_a_rank_that_left_is_forgotten_and_its_place_is_taken():
    index = PrefixIndex()
    tell(index, A, 0, reset=True, stored=names(range(4)))
    tell(index, B, 0, reset=True, stored=names(range(4)))
    index.forget(A)
    index.forget(A)
    assert index.matches(PromptBlockHashes(range(5))) == {B: 4}
    newer = ("g0", "e2", 0)
    tell(index, newer, 0, reset=True)
    assert index.matches(PromptBlockHashes(range(5))) == {B: 4}, "it inherits nothing"


def test_ranks_of_different_block_sizes():
    index = PrefixIndex()
    tell(index, A, 0, reset=True, stored=names(range(32), 4), size=4)
    tell(index, B, 0, reset=True, stored=names(range(32), 16), size=16)
    assert index.matches(PromptBlockHashes(range(33))) == {A: 32, B: 32}
    assert index.matches(PromptBlockHashes(range(15))) == {A: 12}


def test_blocks_of_a_rank_are_bounded():
    index = PrefixIndex(blocks_per_rank=3)
    tell(index, A, 0, reset=True, stored=names(range(40)))
    assert len(index.blocks(A)) == 3


def test_sent_prompts_are_guesses_until_the_rank_reports():
    index = PrefixIndex()
    prompt = PromptBlockHashes(range(9))
    index.guess(A, prompt, SIZE)
    assert index.matches(prompt) == {A: 8}
    assert A in index.guessing
    tell(index, A, 0, reset=True, stored=names(range(4)))
    assert index.matches(prompt) == {A: 4}
    assert A not in index.guessing
    index.guess(A, prompt, SIZE)
    assert index.matches(prompt) == {A: 4}, "what it tells is not overruled"


def test_guesses_are_bounded_and_the_oldest_go_first_ends_before_beginnings():
    index = PrefixIndex(guesses_per_rank=4)
    old, new = PromptBlockHashes(range(9)), PromptBlockHashes(range(100, 113))
    index.guess(A, old, SIZE)
    index.guess(A, new, SIZE)
    assert index.matches(new) == {A: 12}
    assert index.matches(old) == {A: 4}
    index.guess(A, PromptBlockHashes(range(1000)), SIZE)
    assert len(index.blocks(A)) == 4


def test_nothing_is_guessed_of_prompts_without_tokens():
    index = PrefixIndex()
    index.guess(A, PromptBlockHashes(), 0)
    assert not index.guessing
    index.guess(A, PromptBlockHashes(range(65)), 0)
    assert index.matches(PromptBlockHashes(range(65))) == {A: 64}, "a usual block size is taken"


def size_of(rank):
    """Return the block size of a rank: two of three have the same."""
    return SIZE if rank[2] % 3 else SIZE // 2


class Naive:
    """The naive model: a set of block hashes for each rank, searched rank by rank."""

    def __init__(self):
        self.sets = {}
        self.following = {}

    def tell(self, rank, sequence, reset, removed, stored):
        known = self.sets.setdefault(rank, set())
        if reset or self.following.get(rank) != sequence:
            known.clear()
            self.following[rank] = sequence if reset else None
        if self.following[rank] is not None:
            self.following[rank] = sequence + 1
            known -= set(removed)
            known |= set(stored)

    def forget(self, rank):
        self.sets.pop(rank, None)
        self.following.pop(rank, None)

    def matches(self, tokens):
        found = {}
        for rank, known in self.sets.items():
            depth = 0
            for name in names(tokens[:-1], size_of(rank)):
                if name not in known:
                    break
                depth += 1
            if depth:
                found[rank] = depth * size_of(rank)
        return found


prompts = st.lists(st.integers(0, 1), min_size=1, max_size=20)
ranks = st.integers(0, 5).map(lambda number: ("g", "e", number))
happenings = st.one_of(
    st.tuples(st.just("stored"), ranks, prompts),
    st.tuples(st.just("removed"), ranks, prompts),
    st.tuples(st.just("reset"), ranks, prompts),
    st.tuples(st.just("lost"), ranks, prompts),
    st.tuples(st.just("forget"), ranks, prompts),
)


@given(st.lists(happenings, max_size=60), st.lists(prompts, min_size=1, max_size=5))
def test_equals_a_naive_model(history, asked):
    index, naive, sequences = PrefixIndex(), Naive(), {}
    for what, rank, tokens in history:
        if what == "forget":
            index.forget(rank)
            naive.forget(rank)
            sequences.pop(rank, None)
            continue
        sequence = sequences.get(rank, -1) + 1
        sequences[rank] = sequence
        if what == "lost":
            continue
        size = size_of(rank)
        stored = names(tokens, size) if what != "removed" else []
        removed = names(tokens, size)[-1:] if what == "removed" else []
        changes = {"reset": what == "reset", "removed": removed, "stored": stored}
        tell(index, rank, sequence, **changes, size=size)
        naive.tell(rank, sequence, what == "reset", removed, stored)
    for tokens in asked:
        assert index.matches(PromptBlockHashes(tokens)) == naive.matches(tokens)
    for rank in list(sequences):
        index.forget(rank)
    assert len(index) == 0
    assert not index.ranks


@pytest.mark.parametrize("count", [1, 100])
def test_a_prompt_is_looked_up_for_all_ranks_at_once(count):
    index = PrefixIndex()
    for number in range(count):
        tell(index, ("g", "e", number), 0, reset=True, stored=names(range(4 * (number % 7 + 1))))
    found = index.matches(PromptBlockHashes(range(100)))
    assert found == {("g", "e", number): 4 * (number % 7 + 1) for number in range(count)}
