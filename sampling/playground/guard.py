"""What stands before the page's server: only a browser on this machine and this page may ask.

A foreign site can make a visitor's browser send requests to a local address, or let its own name
point there; both show in the headers Origin and Host. Uploads are limited by their sum as well.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_UPLOADS = 1 << 30  # bytes in the folder of uploads and pictures before more are refused


class LocalGuard:
    """ASGI middleware that answers 403 to foreign requests and 413 to uploads beyond the limit.

    Args:
        app: the server behind it.
        names: accepted names in Host, at any port: a tunnel may end at another. An Origin must be
            http:// and that Host. Requests without one (of no web page) are judged by their Host.
        folder: where the server keeps uploads and pictures.
        max_bytes: of all files in the folder and the upload that asks, together.
    """

    def __init__(
        self, app: App, names: tuple[str, ...], folder: Path, max_bytes: int = MAX_UPLOADS
    ) -> None:
        self.app = app
        self.names = names
        self.folder = folder
        self.max_bytes = max_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # Gradio's page opens no websockets
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = [(name.lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        given = [value for name, value in headers if name == b"host"]
        origins = [value for name, value in headers if name == b"origin"]
        known = len(given) == 1 and given[0].partition(":")[0] in self.names
        if not known or any(origin != f"http://{given[0]}" for origin in origins):
            await _refuse(send, 403, "this page is served to this machine only")
        elif scope["path"].rstrip("/").endswith("/upload") and self._is_too_much(headers):
            await _refuse(send, 413, f"uploads exceed {self.max_bytes} bytes; remove some or wait")
        else:
            await self.app(scope, receive, send)

    def _is_too_much(self, headers: list[tuple[bytes, str]]) -> bool:
        """Whether the upload does not fit; one that does not say its length never does."""
        lengths = [value for name, value in headers if name == b"content-length"]
        if len(lengths) != 1 or not lengths[0].isdecimal():
            return True
        return folder_bytes(self.folder) + int(lengths[0]) > self.max_bytes


def folder_bytes(folder: Path) -> int:
    """Sizes of all files in a folder; those that vanish meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


async def _refuse(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
