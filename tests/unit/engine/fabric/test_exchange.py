"""Known contents: any wrong byte of any sender is found."""

import pytest
import torch

from serving.engine.fabric.exchange import Contents
from serving.engine.fabric.worker import Exchange, WrongContents, first_line, network_of

WORDS = 4096


def test_right_contents_are_right():
    contents = Contents(WORDS, "cpu")
    assert contents.wrong(contents.make(0, 1, 2), 0, 1, 2) is None


@pytest.mark.parametrize("place", [0, 1, 2, 3, 4, 4 * WORDS // 2 + 3, 4 * WORDS - 1])
@pytest.mark.parametrize("bit", [0, 7])
def test_every_bit_counts(place, bit):
    contents = Contents(WORDS, "cpu")
    sent = contents.make(3, 4, 5)
    sent.view(torch.uint8)[place] ^= 1 << bit
    assert contents.wrong(sent, 3, 4, 5) == (1, place // 4 * 4)


@pytest.mark.parametrize("other", [(1, 1, 0), (0, 2, 0), (1, 0, 0), (0, 1, 1)])
def test_another_sender_receiver_or_round_is_wrong_everywhere(other):
    contents = Contents(WORDS, "cpu")
    wrong = contents.wrong(contents.make(*other), 0, 1, 0)
    assert wrong is not None
    assert wrong[0] == WORDS


def test_zeros_and_shifted_data_are_wrong():
    contents = Contents(WORDS, "cpu")
    sent = contents.make(0, 1, 0)
    assert contents.wrong(torch.zeros_like(sent), 0, 1, 0)
    shifted = contents.wrong(sent.roll(1), 0, 1, 0)
    assert shifted is not None
    assert shifted[0] > WORDS // 2


class Wire:
    """Collectives of a single rank: sent data is returned as the other rank's data."""

    isend, irecv = "isend", "irecv"

    def __init__(self, *, spoil=None):
        self.contents = {}
        self.spoil = spoil
        self.received = 0

    class P2POp:
        def __init__(self, kind, tensor, other):
            self.kind, self.tensor, self.other = kind, tensor, other

    def batch_isend_irecv(self, operations):
        (into,) = [op for op in operations if op.kind == "irecv"]
        self.received += 1
        number = self.received - 1
        self._fill(into.tensor, into.other, 0, number)
        return [self]

    def wait(self):
        pass

    def all_to_all_single(self, into, out):
        share = out.numel() // 2
        into[:share] = out[:share]
        part = into[share:]
        self._fill(part, 1, 0, self.received - 2)
        self.received += 1

    def _fill(self, tensor, source, target, number):
        tensor.copy_(Contents(tensor.numel(), "cpu").make(source, target, number))
        if self.received == self.spoil:
            tensor[tensor.numel() // 2] += 1


JOB = {"rank": 0, "world": 2, "workers": 1, "size": 4 * WORDS, "rounds": 3}


def exchange(wire):
    reports = []
    return Exchange(JOB, wire, "cpu", lambda **report: reports.append(report)), reports


def test_all_that_came_is_compared():
    one, reports = exchange(Wire())
    assert set(one.pairs()) == {1}
    assert len(one.all_to_all()) == 3
    # Twice in pairs, and the rounds including its own part.
    assert one.checked == 4 * WORDS * 2 + 3 * 4 * WORDS
    assert [report["text"] for report in reports] == [
        "exchange with peer 1",
        *(f"all-to-all, round {number} of 3" for number in (1, 2, 3)),
    ]
    ordinals = [report["ordinal"] for report in reports]
    assert ordinals == sorted(set(ordinals))


@pytest.mark.parametrize("spoil", [1, 2])
def test_a_wrong_word_in_a_pair_ends_it(spoil):
    one, _ = exchange(Wire(spoil=spoil))
    with pytest.raises(
        WrongContents, match=r"1 of 4096 words from worker 0 of peer 1 .* byte 8192"
    ):
        one.pairs()


@pytest.mark.parametrize("spoil", [2, 3, 4])
def test_a_wrong_word_in_any_round_ends_it(spoil):
    wire = Wire(spoil=spoil)
    wire.received = 2
    one, _ = exchange(wire)
    with pytest.raises(WrongContents, match="1 of 2048 words from worker 0 of peer 1"):
        one.all_to_all()


def test_what_nccl_says_of_its_network(tmp_path):
    notes = tmp_path / "nccl.log"
    assert network_of(notes) == ""
    notes.write_text("n:1:1 [0] NCCL INFO NET/Plugin\nn:1:1 [0] NCCL INFO Using network Socket\n")
    assert network_of(notes) == "Socket"
    notes.write_text("n:1:1 [0] NCCL INFO Using network IB\n")
    assert network_of(notes) == "IB"


def test_errors_of_gloo_without_their_source_line():
    error = RuntimeError(
        "[/a/b/gloo/transport/tcp/pair.cc:537] Read error [10.0.0.1]:5: Connection reset by peer. "
        "This is typically caused by a remote worker hanging"
    )
    assert first_line(error) == "Read error [10.0.0.1]:5: Connection reset by peer."
