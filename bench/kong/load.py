"""The clients and the upstream."""

from __future__ import annotations

import select
import socket
import time
from itertools import cycle

CLIENTS = 16
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nup\n"


class Load:
    """The clients and the upstream, in one epoll loop: what they cost is the same for every row."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.listening.setblocking(False)
        self.epoll.register(self.listening, select.EPOLLIN)
        self.upstream: dict[int, tuple[socket.socket, bytearray]] = {}

    @property
    def port(self) -> int:
        return int(self.listening.getsockname()[1])

    def run(self, port: int, messages: list[bytes], seconds: float) -> tuple[float, list[float]]:
        """Requests per second, and their times in seconds, sorted. Raises RuntimeError for any answer but 200."""
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(CLIENTS)]
        by_fd = {sock.fileno(): sock for sock in clients}
        for sock in clients:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.epoll.register(sock, select.EPOLLIN)
        clock, next_message = time.perf_counter, cycle(messages).__next__
        started: dict[int, float] = {}
        times: list[float] = []
        begin = clock()
        end = begin + seconds
        for fd, sock in by_fd.items():
            started[fd] = clock()
            sock.send(next_message())
        while started:
            ready = self.epoll.poll(30)
            if not ready:
                raise TimeoutError("Kong does not answer")
            for fd, _ in ready:
                client = by_fd.get(fd)
                if client is None:
                    self.serve(fd)
                    continue
                data = client.recv(65536)
                if not data.endswith(b"up\n"):
                    data += rest(client, data)
                if not data.startswith(b"HTTP/1.1 200"):
                    raise RuntimeError(f"not 200: {data[:600].decode(errors='replace')}")
                now = clock()
                times.append(now - started[fd])
                if now > end:
                    del started[fd]
                else:
                    started[fd] = now
                    client.send(next_message())
        elapsed = clock() - begin
        for sock in clients:
            self.epoll.unregister(sock)
            sock.close()
        times.sort()
        return len(times) / elapsed, times

    def serve(self, fd: int) -> None:
        """What an upstream does: takes a whole request, answers."""
        if fd == self.listening.fileno():
            sock = self.listening.accept()[0]
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.upstream[sock.fileno()] = (sock, bytearray())
            self.epoll.register(sock, select.EPOLLIN)
            return
        sock, seen = self.upstream[fd]
        data = sock.recv(65536)
        if not data:
            self.epoll.unregister(sock)
            del self.upstream[fd]
            sock.close()
            return
        seen += data
        if seen.endswith(b"}"):  # Kong sends one request at a time; its head ends in no brace
            seen.clear()
            sock.send(ANSWER)

    def close(self) -> None:
        for sock, _ in self.upstream.values():
            sock.close()
        self.listening.close()
        self.epoll.close()


def rest(client: socket.socket, data: bytes) -> bytes:
    """The remainder of an answer that did not come at once; of a refusal whatever is there."""
    found = b""
    client.settimeout(2)
    while data.startswith(b"HTTP/1.1 200") and not (data + found).endswith(b"up\n"):
        found += client.recv(65536)
    client.settimeout(None)
    return found
