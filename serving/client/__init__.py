"""Clients of a router over REST and gRPC, for commands, the load generator and tests.

``rest`` and ``grpc`` are blocking clients for commands; ``aio`` provides both for asyncio. All
accept ``credentials.Access`` and use the types in ``chat``. ``flags`` contains the command-line
flags for addresses and credentials.
"""
