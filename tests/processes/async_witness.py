"""Sessions at the witness that belong to event loops."""

from __future__ import annotations

import asyncio
import os
import socket

from mppool import AsyncRecipe, Opening


class AsyncSession:
    """A connection to the witness that belongs to an event loop.

    A plain socket, not a stream: that can be closed when its loop has ended, and warns of nothing then.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.number = 0
        self.asked = 0

    async def ask(self) -> None:
        """One exchange, whose answer must be ours."""
        self.asked += 1
        question = f"{os.getpid()}.{self.asked}"
        assert await self.exchange(question) == f"{self.number} {question}"

    async def exchange(self, line: str) -> str:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self.sock, line.encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            part = await loop.sock_recv(self.sock, 1000)
            if not part:
                raise ConnectionError("the witness has closed the connection")
            answer += part
        return answer.decode().strip()


class AsyncSessionRecipe(AsyncRecipe[AsyncSession]):
    def __init__(self, path: str) -> None:
        self.path = path

    async def open(self, opening: Opening) -> AsyncSession:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, self.path)
            session = AsyncSession(sock)
            inode = os.fstat(sock.fileno()).st_ino
            session.number = int(await session.exchange(f"open {sock.fileno()} {inode}"))
        except BaseException:  # also cancelled: nobody else knows of it
            sock.close()
            raise
        return session

    async def close(self, session: AsyncSession) -> None:
        try:
            await session.exchange("close")
        finally:
            session.sock.close()

    def abandon(self, session: AsyncSession) -> None:
        session.sock.close()
