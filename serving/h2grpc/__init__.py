"""A gRPC server for asyncio on the HTTP/2 library h2.

It runs the servicers that protoc generates for ``grpc.aio``, unchanged; what differs is the
price of a streamed message: grpc.aio hands each one through its completion queue to the event
loop and writes each to the socket by itself. Here a message is appended to what leaves the
connection at the end of the event loop's turn. deploy/docs/adr/0012 says why, with figures.

h2 keeps the protocol's rules (frames, header compression, stream states, flow control, bounds on
what a peer may send). Promise: nothing in this package knows what the messages are about.
"""
