"""A server on this machine's own network, and a client that speaks to it byte by byte."""

import asyncio
import socket
import threading
import time
from contextlib import closing, contextmanager

import uvicorn


class _Server(uvicorn.Server):
    """It ends at once, where uvicorn's own looks ten times a second whether it should, and then waits for as long."""

    async def main_loop(self):
        while not await self.on_tick(0):
            await asyncio.sleep(0.01)

    async def shutdown(self, sockets=None):
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await asyncio.sleep(0)
        while self.server_state.tasks and not self.force_exit:
            await asyncio.sleep(0.01)
        if not self.force_exit:
            await self.lifespan.shutdown()


@contextmanager
def serve(app, **options):
    """Run uvicorn in a thread; yields its port."""
    quiet = {"lifespan": "off", "ws": "none", "log_config": None, "access_log": False}
    server = _Server(uvicorn.Config(app, **quiet | options))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit, server.force_exit = True, options.get("lifespan") != "on"
            thread.join(10)


@contextmanager
def connect(port, receive_buffer=None):
    """Open a connection that gives up after five seconds."""
    with closing(socket.socket()) as client:
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(5)
        client.connect(("127.0.0.1", port))
        yield client


def read_all(client):
    """Return all bytes until the server closes the connection, and the seconds until then."""
    start, answer = time.perf_counter(), bytearray()
    while True:
        try:
            part = client.recv(1 << 16)
        except ConnectionResetError:
            part = b""
        if not part:
            return bytes(answer), time.perf_counter() - start
        answer += part


def read_answer(client):
    """Return status, head and body of one answer with a Content-Length, on a connection that stays open."""
    answer = bytearray()
    while b"\r\n\r\n" not in answer:
        part = client.recv(1 << 16)
        assert part, "closed by the server"
        answer += part
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < size:
        body += client.recv(1 << 16)
    return int(head.split()[1]), head.lower(), body
