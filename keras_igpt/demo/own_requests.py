"""A server for the person in front of this machine: requests that other web pages make are refused."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

_Message = MutableMapping[str, Any]
_Application = Callable[[_Message, Callable[[], Awaitable[_Message]], Callable[[_Message], Awaitable[None]]], Any]
# Whose names lead to this machine alone. A page whose name was made to do so still says its own as the host.
_HOSTS = ("127.0.0.1", "localhost")
_REFUSAL = b"Only this machine's own page may ask: 127.0.0.1 or localhost."


class OwnRequestsOnly:
    """ASGI middleware that answers 403 unless a request is to this machine by name, and from its own page.

    Args:
        app: the application behind it.
    """

    def __init__(self, app: _Application) -> None:
        self._app = app

    async def __call__(
        self,
        scope: _Message,
        receive: Callable[[], Awaitable[_Message]],
        send: Callable[[_Message], Awaitable[None]],
    ) -> None:
        """Answers a request."""
        if scope["type"] not in ("http", "websocket") or is_own(dict(scope["headers"])):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": _REFUSAL})


def is_own(headers: dict[bytes, bytes]) -> bool:
    """Whether a request with these headers is to this machine by name, and from no other page than its own."""
    host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
    # Browsers send no origin with what a person opens.
    return urlsplit(f"//{host}").hostname in _HOSTS and (not origin or urlsplit(origin).netloc == host)
