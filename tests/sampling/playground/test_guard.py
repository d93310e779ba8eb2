from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lambda24.sampling.playground.guard import LocalGuard, Message, Receive, Send

HOST = "127.0.0.1:7860"


def _status(folder: Path, path: str = "/", **headers: str) -> int:
    """What a request gets; the server behind the guard answers 200."""
    sent: list[Message] = []

    async def server(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    guard = LocalGuard(server, ("127.0.0.1", "localhost"), folder, max_bytes=100)
    asyncio.run(guard({"type": "http", "path": path, "headers": lines}, receive, send))
    status: int = sent[0]["status"]
    return status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": HOST}, 200),
        ({"host": "localhost:7860"}, 200),
        ({"host": HOST, "origin": f"http://{HOST}"}, 200),
        ({"host": "example.org:7860"}, 403),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, 200),
        ({"host": HOST, "origin": "http://127.0.0.1:8000"}, 403),
        ({}, 403),
        ({"host": HOST, "origin": "http://example.org"}, 403),
        ({"host": HOST, "origin": "null"}, 403),
    ],
)
def test_only_this_page_may_ask(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    assert _status(tmp_path, **headers) == status


@pytest.mark.parametrize(
    ("length", "status"), [("60", 200), ("61", 413), ("-1", 413), ("many", 413)]
)
def test_uploads_are_limited_in_total(tmp_path: Path, length: str, status: int) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "earlier.png").write_bytes(bytes(40))
    path = "/gradio_api/upload"
    assert _status(tmp_path, path, host=HOST, content_length=length) == status


def test_an_upload_of_unknown_length_is_refused(tmp_path: Path) -> None:
    assert _status(tmp_path, "/gradio_api/upload", host=HOST) == 413
