"""A client process that is killed while it reads: `python -m ... ADDRESS PATH AUTHORIZATION < message`."""

from __future__ import annotations

import sys

import grpc


def main() -> None:
    """Says when each piece of the answer comes, and never ends on its own."""
    address, path, authorization = sys.argv[1:]
    with grpc.insecure_channel(address) as channel:
        print("ready", flush=True)
        call = channel.unary_stream(path)(sys.stdin.buffer.read(), metadata=(("authorization", authorization),))
        for message in call:
            print(len(message), flush=True)


if __name__ == "__main__":
    main()
