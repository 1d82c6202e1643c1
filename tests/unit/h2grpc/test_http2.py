"""Deviations from h2; test_connection.py tests most of them over sockets."""

from serving.h2grpc import http2
from serving.h2grpc.http2 import Http2


def test_long_headers_take_no_time_in_the_square_of_their_length():
    """A status may repeat data of a client; Huffman coding of a megabyte takes a minute."""
    (name, value) = (b"grpc-message", b"x" * 2**20)
    encoded = http2._Encoder().encode([(name, value)])
    assert value in encoded


def test_streams_are_not_all_counted_for_each_new_one(monkeypatch):
    counted = []
    whole = http2.H2Connection._open_streams

    def counting(connection, remainder):
        counted.append(1)
        return whole(connection, remainder)

    monkeypatch.setattr(http2.H2Connection, "_open_streams", counting)
    open_streams = range(64)
    server = Http2(2**14, open_streams=open_streams)
    server.streams = dict.fromkeys(range(1, 2 * 64, 2), None)
    assert [server.open_inbound_streams for _ in range(3)] == [64] * 3
    assert counted == []
