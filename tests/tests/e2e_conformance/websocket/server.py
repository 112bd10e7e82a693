"""A server of WebSocket that sends back what it gets: text as text, bytes as bytes. In: a port. Never: a limit of its own."""

import asyncio
import sys

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed


async def echo(connection):
    try:
        async for message in connection:
            await connection.send(message)
    except ConnectionClosed:
        # How it ended is what the other side looks at.
        pass


async def main(port):
    # Nobody is asked whether they are still there: the cases count frames.
    async with serve(echo, "", port, max_size=None, max_queue=None, ping_interval=None, close_timeout=5):
        await asyncio.Future()


asyncio.run(main(int(sys.argv[1])))
