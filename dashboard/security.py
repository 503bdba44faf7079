"""What the browser may do with our pages: nothing from outside, no script but ours, no frame around us."""

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import streamlit
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["SecurityHeaders", "security_headers"]

INLINE_SCRIPT = re.compile(rb"<script(?P<attributes>[^>]*)>(?P<body>.*?)</script>", re.DOTALL)
INDEX = Path(streamlit.__file__).parent / "static" / "index.html"


def security_headers(index: Path = INDEX) -> dict[bytes, bytes]:
    """The headers of every response. Inline scripts of Streamlit's own page are allowed by their hashes."""
    hashes = " ".join(f"'sha256-{_sha256(body)}'" for body in _inline_scripts(index.read_bytes()))
    policy = {
        "default-src": "'self'",
        "script-src": f"'self' {hashes} 'wasm-unsafe-eval' blob:",
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "connect-src": "'self' ws: blob: data:",
        "worker-src": "'self' blob:",
        "frame-src": "'self' blob: data:",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
        "base-uri": "'self'",
        "object-src": "'none'",
    }
    return {
        b"content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()).encode(),
        b"x-frame-options": b"DENY",
        b"x-content-type-options": b"nosniff",
        b"referrer-policy": b"no-referrer",
    }


class SecurityHeaders:
    """ASGI middleware: replaces or adds the headers of every HTTP response; websockets pass through."""

    def __init__(self, app: ASGIApp, headers: Mapping[bytes, bytes]) -> None:
        self.app, self.headers = app, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message["headers"] if pair[0].lower() not in self.headers]
                message = {**message, "headers": kept + list(self.headers.items())}
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def _inline_scripts(page: bytes) -> list[bytes]:
    return [found["body"] for found in INLINE_SCRIPT.finditer(page) if b"src=" not in found["attributes"]]


def _sha256(script: bytes) -> str:
    return base64.b64encode(hashlib.sha256(script).digest()).decode()
