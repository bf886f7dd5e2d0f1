"""An issuer of ID tokens over TLS (OpenID Connect Core 1.0, Discovery 1.0): the part that renews a login."""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from aiohttp import BasicAuth, web

from tp2.sandbox.tls import KeyPair, issue

CLIENT = "kubernetes"


def token(subject: str, lifetime: float) -> str:
    """An ID token that ends *lifetime* seconds from now. Nobody here looks at its signature."""
    parts: list[dict[str, Any]] = [{"alg": "none"}, {"sub": subject, "exp": int(time.time() + lifetime)}]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, "signature"])


class Issuer:
    """The server. A refresh token is good for one use; ``refresh`` is the one that is good now.

    ``answer`` is what it answers in the place of tokens, if anything; ``methods`` are the ways to authenticate that it
    knows; ``seen`` are the logins that it was shown; ``on_discovery`` and ``on_issue`` are called at these moments.
    """

    def __init__(self) -> None:
        self.refresh = "first"
        self.secret: str | None = "of/the client"
        self.answer: tuple[int, Any] | None = None
        self.methods: list[str] | None = None
        self.lifetime = 3600.0
        self.issued: list[str] = []
        self.seen: list[str] = []
        self.url = ""
        self.endpoint: str | None = None
        self.on_discovery: Callable[[], object] = lambda: None
        self.on_issue: Callable[[str], object] = lambda token: None

    async def discover(self, _request: web.Request) -> web.Response:
        self.on_discovery()
        document: dict[str, Any] = {"issuer": self.url, "token_endpoint": self.endpoint or f"{self.url}/token"}
        if self.methods is not None:
            document["token_endpoint_auth_methods_supported"] = self.methods
        return web.json_response(document)

    async def exchange(self, request: web.Request) -> web.Response:
        form = await request.post()
        if self.answer is not None:
            status, body = self.answer
            return web.json_response(body, status=status)
        header = request.headers.get("Authorization")
        if header:
            login = BasicAuth.decode(header)
            client, secret = login.login, login.password
            self.seen.append("basic")
        else:
            client, secret = str(form.get("client_id")), str(form.get("client_secret", ""))
            self.seen.append("post")
        # Both are encoded for a form first (RFC 6749 section 2.3.1).
        if (client, secret) not in ((CLIENT, self.secret or ""), (CLIENT, "of%2Fthe%20client")):
            return web.json_response({"error": "invalid_client"}, status=401)
        if form.get("grant_type") != "refresh_token" or form.get("refresh_token") != self.refresh:
            error = {"error": "invalid_grant", "error_description": "the refresh token was used already"}
            return web.json_response(error, status=400)
        self.refresh += "+"
        self.issued.append(token("me", self.lifetime))
        self.on_issue(self.issued[-1])
        return web.json_response(
            {"id_token": self.issued[-1], "refresh_token": self.refresh, "token_type": "Bearer", "access_token": "-"}
        )


@contextlib.asynccontextmanager
async def issuer(authority: KeyPair, directory: Path) -> AsyncIterator[Issuer]:
    """Run an :class:`Issuer`, whose certificate is *authority*'s."""
    one = Issuer()
    issue(authority, "issuer", hosts=["127.0.0.1"]).write(directory, "issuer")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(directory / "issuer.crt", directory / "issuer.key")
    app = web.Application()
    app.router.add_get("/realm/.well-known/openid-configuration", one.discover)
    app.router.add_post("/realm/token", one.exchange)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    one.url = f"https://127.0.0.1:{runner.addresses[0][1]}/realm"
    try:
        yield one
    finally:
        await runner.cleanup()
