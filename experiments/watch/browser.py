"""Show the terminal's live view in a browser: on the loopback interface only, to everyone who has the token."""

import hmac
import logging
import secrets
import shlex
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web
from textual_serve.server import Server

LOOPBACK = "127.0.0.1"
COOKIE = "testbed-watch"
TOKEN = "token"
TEMPLATES = Path(__file__).parent / "templates"
"""Page templates that replace those of textual-serve, because its templates load a font from another server."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class WatchServer(Server):
    """Serves the view of the run in ``folder``. Opening ``address`` sets a cookie, which all requests need."""

    def __init__(self, folder: Path, port: int) -> None:
        command = shlex.join([sys.executable, "-m", "experiments", "watch", str(folder)])
        super().__init__(command, LOOPBACK, port, title="testbed watch", templates_path=TEMPLATES)
        self._token = secrets.token_urlsafe(24)

    @property
    def address(self) -> str:
        """Return the URL to open, which includes the token."""
        return f"{self.public_url}/?{TOKEN}={self._token}"

    def initialize_logging(self) -> None:
        """Log errors only: a line for each request would hide the address."""
        logging.getLogger("aiohttp.access").setLevel(logging.ERROR)

    async def on_startup(self, app: web.Application) -> None:
        """Print nothing; the command has printed the address."""

    async def _make_app(self) -> web.Application:
        app = await super()._make_app()
        app.middlewares.append(self._authorized)
        return app

    @web.middleware
    async def _authorized(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._is_token(request.cookies.get(COOKIE, "")):
            return await handler(request)
        if self._is_token(request.query.get(TOKEN, "")):
            response = web.HTTPFound("/")
            response.set_cookie(COOKIE, self._token, httponly=True, samesite="Strict")
            raise response
        raise web.HTTPForbidden(text="open the address with the token, which `testbed watch --browser` has printed")

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self._token.encode())
