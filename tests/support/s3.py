"""A real S3 server over HTTP, on loopback: moto's. It can be away and come back with what it had."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.config import Config
from moto.server import ThreadedMotoServer

ID, SECRET = "AKIAOFTHETESTS", "s3cret-of-the-tests"
BUCKET = "claude-store"


class S3:
    """`url`: the value of INVOKER_STORE, with another prefix for each that asks for one."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._server: ThreadedMotoServer | None = None
        self.start()
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ID,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=Config(retries={"max_attempts": 1}),
        )
        self.client.create_bucket(Bucket=BUCKET)

    def start(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        """Nobody listens any more; what is there stays."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def url(self, prefix: str) -> str:
        return f"s3://{BUCKET}/{prefix}?endpoint={self.endpoint}"

    def names(self, prefix: str) -> list[str]:
        """All objects whose names begin so, without that."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        return [each["Key"].removeprefix(f"{prefix}/") for page in pages for each in page.get("Contents", [])]


@contextmanager
def away(server: S3) -> Iterator[None]:
    server.stop()
    try:
        yield
    finally:
        server.start()
