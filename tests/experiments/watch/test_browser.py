"""The live view in a browser: it is served on the loopback interface, and requires a token."""

import asyncio
import contextlib
import socket
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.experiments.watch.page import serving
from tests.support.results.handwritten import h200_run
from tests.support.services.chromium import Page, chromium_path


@pytest.fixture(scope="module")
def served_address(tmp_path_factory):
    """The address of a view that is served, with its token."""
    with serving(h200_run(tmp_path_factory.mktemp("watch") / "run").path) as address:
        yield address


async def answer(address, token="", tries=100):
    """Return status and headers of the response, as soon as the server answers."""
    url = urlsplit(address)
    query = f"?{token}" if token else ""
    async with aiohttp.ClientSession() as session:
        for _ in range(tries):
            with contextlib.suppress(aiohttp.ClientConnectionError):
                got = await session.get(f"{url.scheme}://{url.netloc}{url.path}{query}", allow_redirects=False)
                return got.status, got.headers
            await asyncio.sleep(0.1)
    raise AssertionError("no answer")


@pytest.mark.parametrize("path", ["/", "/ws", "/static/js/textual.js"])
@pytest.mark.parametrize("token", ["", "token=", "token=wrong"])
def test_nothing_is_served_without_the_token(served_address, path, token):
    url = urlsplit(served_address)
    status, _ = asyncio.run(answer(url._replace(path=path).geturl(), token))
    assert status == 403


def test_the_token_gives_a_cookie_that_scripts_cannot_read(served_address):
    status, headers = asyncio.run(answer(served_address, urlsplit(served_address).query))
    assert (status, headers["Location"]) == (302, "/")
    assert "HttpOnly" in headers["Set-Cookie"]
    assert "SameSite=Strict" in headers["Set-Cookie"]


def test_only_the_loopback_interface_answers(served_address):
    port = urlsplit(served_address).port
    others = {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)} - {
        "127.0.0.1"
    }
    for other in (address for address in others if not address.startswith("127.")):
        with pytest.raises(ConnectionRefusedError), socket.create_connection((other, port), timeout=2):
            pass


def test_the_live_view_is_sent_to_the_browser(served_address):
    async def received():
        url = urlsplit(served_address)
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            await answer(served_address, url.query)
            await session.get(served_address)
            text = ""
            async with session.ws_connect(f"ws://{url.netloc}/ws?width=120&height=40") as socket_:
                async for message in socket_:
                    text += message.data.decode(errors="replace") if message.type == aiohttp.WSMsgType.BINARY else ""
                    if "rows done" in text:
                        return text
        return text

    assert "rows done" in asyncio.run(asyncio.wait_for(received(), 120))


def test_the_page_draws_a_terminal_and_sends_no_request_to_other_hosts(served_address, tmp_path):
    with Page(chromium_path(), tmp_path) as page:
        asyncio.run(answer(served_address, urlsplit(served_address).query))
        page.call("Page.navigate", url=served_address)
        page.until("document.querySelector('.xterm-screen')")
        assert page.evaluate("problems") == []
        assert {urlsplit(url).netloc for url in page.requests if url.startswith("http")} == {
            urlsplit(served_address).netloc
        }
