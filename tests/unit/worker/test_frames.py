"""Messages survive being cut anywhere."""

import pytest

from adjourn.worker import frames

MESSAGES = [
    (frames.READY,),
    (frames.TASKS, [("l1", "queues/q/tasks/t", 1, b"\x00\xff", False, {"k": "v"}, "", "", "", "")]),
    (frames.ENDED, 3, 0.5, (2, b"", "E", "lone \udcff surrogate", "")),
    (frames.RETURNED, []),
]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_messages_are_put_together_from_pieces_of_any_size(size):
    data = b"".join(map(frames.encode, MESSAGES))
    decoder = frames.FrameDecoder()
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert [message for piece in pieces for message in decoder.feed(piece)] == MESSAGES


def test_a_frame_that_was_cut_off_is_no_message():
    assert frames.FrameDecoder().feed(frames.encode(MESSAGES[2])[:-1]) == []
