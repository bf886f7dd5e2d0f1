"""The ``oidc`` auth-provider of a kubeconfig: an ID token, renewed at its issuer when it has expired.

kubernetes_asyncio has such a provider too, but does not check the issuer's certificate unless the kubeconfig brings a
CA for it, cannot use one that it brings, and does not write down what the issuer gives in the place of the refresh
token, which may be good for one use only. What kubectl does is done here: the discovery document names the token
endpoint, the refresh token is exchanged there, and both new tokens are handed to whoever keeps the kubeconfig.

https://kubernetes.io/docs/reference/access-authn-authz/authentication/#option-1-oidc-authenticator;
https://openid.net/specs/openid-connect-core-1_0.html#RefreshTokens; RFC 6749 sections 2.3.1, 5.2 and 6
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlsplit

import aiohttp

from tp2.cluster.http import http_proxy, session
from tp2.cluster.proxies import proxy_for
from tp2.errors import ClusterError

NAME: Final = "oidc"
"""The auth-provider's ``name``."""

SKEW: Final = 10.0
"""Seconds before its end from which on a token is not used any more: the clocks of two machines differ."""

ANSWER_LIMIT: Final = 1024 * 1024
_TIMEOUT: Final = aiohttp.ClientTimeout(total=30, sock_connect=10)


class Tokens(NamedTuple):
    """What a login consists of."""

    id_token: str
    refresh_token: str


class LoginExpired(ClusterError):
    """The issuer takes the refresh token no more, or there is none."""


Keep = Callable[[Tokens], Awaitable[None]]
"""Told of new tokens, before they are used."""


async def current_token(config: Mapping[str, Any], context: str, keep: Keep) -> str:
    """Return an ID token that has not expired.

    :param config: the auth-provider's ``config``.
    :raises LoginExpired: somebody has to log in again.
    :raises ClusterError: the config is incomplete, or the issuer cannot be asked.
    """
    fields = {key: str(value) for key, value in config.items() if value not in (None, "")}
    token = fields.get("id-token")
    if token and not has_expired(token, time.time()):
        return token
    refresh = fields.get("refresh-token")
    if not refresh:
        raise LoginExpired(
            f"the login of context {context!r} has expired",
            "its ID token is not valid any more, and there is no refresh token",
            "log in again, with the tool that wrote the kubeconfig",
        )
    for name in ("idp-issuer-url", "client-id"):
        if name not in fields:
            raise _cannot(context, f"the kubeconfig gives no {name} for the auth-provider", "complete the kubeconfig")
    tokens = await _Issuer(fields, context).exchange(refresh)
    await keep(tokens)
    return tokens.id_token


def has_expired(token: str, now: float) -> bool:
    """Whether an ID token (a JWT, RFC 7519) is past its end at Unix time *now*, or is none."""
    try:
        _, payload, _ = token.split(".")
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return bool(claims["exp"] - SKEW <= now)
    except (ValueError, LookupError, TypeError, RecursionError):
        return True


class _Issuer:
    def __init__(self, fields: Mapping[str, str], context: str) -> None:
        self._fields = fields
        self._context = context
        self._url = fields["idp-issuer-url"].rstrip("/")
        self._proxy = proxy_for(self._url, None, os.environ)

    async def exchange(self, refresh: str) -> Tokens:
        """Give the refresh token away for new tokens."""
        async with session(self._proxy, self._tls(), timeout=_TIMEOUT) as http:
            provider = await self._ask(http, "GET", f"{self._url}/.well-known/openid-configuration")
            endpoint = provider.get("token_endpoint")
            if not isinstance(endpoint, str):
                raise self._strange("its discovery document names no token_endpoint")
            form = {"grant_type": "refresh_token", "refresh_token": refresh}
            answer = await self._ask(http, "POST", endpoint, **self._authenticated(form, provider))
        token, follower = answer.get("id_token"), answer.get("refresh_token")
        if not isinstance(token, str):
            raise self._strange("it gave no id_token; was the scope openid asked for at the login?")
        return Tokens(token, follower if isinstance(follower, str) and follower else refresh)

    def _authenticated(self, form: dict[str, str], provider: Mapping[str, Any]) -> dict[str, Any]:
        # The issuer says how it wants to be told the secret. Trying one way and then the other would use up a refresh
        # token that is good for one use.
        identifier, secret = self._fields["client-id"], self._fields.get("client-secret")
        if secret is None:
            return {"data": {**form, "client_id": identifier}}
        methods = provider.get("token_endpoint_auth_methods_supported")
        if isinstance(methods, list) and "client_secret_basic" not in methods and "client_secret_post" in methods:
            return {"data": {**form, "client_id": identifier, "client_secret": secret}}
        login = f"{quote(identifier, safe='')}:{quote(secret, safe='')}".encode()
        return {"data": form, "headers": {"Authorization": f"Basic {base64.b64encode(login).decode()}"}}

    def _tls(self) -> ssl.SSLContext:
        data, path = self._fields.get("idp-certificate-authority-data"), self._fields.get("idp-certificate-authority")
        try:
            pem = base64.b64decode(data).decode("ascii") if data else Path(path).read_text("ascii") if path else None
            context = ssl.create_default_context(cadata=pem)
        except (OSError, ValueError) as error:
            raise _cannot(
                self._context,
                f"the CA of the issuer {self._url} cannot be used: {getattr(error, 'strerror', None) or error}",
                "correct idp-certificate-authority in the kubeconfig",
            ) from error
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context

    async def _ask(self, http: aiohttp.ClientSession, method: str, url: str, **options: Any) -> dict[str, Any]:
        if urlsplit(url).scheme != "https":
            raise _cannot(
                self._context,
                f"{url} would be told the refresh token in the clear",
                "correct idp-issuer-url in the kubeconfig: issuers of ID tokens speak https",
            )
        try:
            # A redirect could lead a secret elsewhere.
            async with http.request(
                method, url, proxy=http_proxy(self._proxy), allow_redirects=False, **options
            ) as response:
                body = await response.content.read(ANSWER_LIMIT)
        except (OSError, aiohttp.ClientError, ValueError) as error:
            why = "it does not answer" if isinstance(error, TimeoutError) else " ".join(str(error).split())
            raise _cannot(
                self._context,
                f"its issuer {self._url} cannot be asked: {why or type(error).__name__}",
                "check that the issuer can be reached from here (VPN, proxy, firewall)",
            ) from error
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if response.status != 200 or not isinstance(answer, dict):
            raise self._refused(response.status, answer if isinstance(answer, dict) else {})
        return answer

    def _refused(self, status: int, answer: Mapping[str, Any]) -> ClusterError:
        # RFC 6749 section 5.2. Of what it wrote, only what was meant for people.
        words = [str(answer[key]) for key in ("error", "error_description") if answer.get(key)]
        why = f"{self._url} answered {status}" + (f": {', '.join(words)}" if words else "")
        if answer.get("error") == "invalid_grant":
            remedy = "log in again, with the tool that wrote the kubeconfig"
            return LoginExpired(f"the login of context {self._context!r} has expired", why, remedy)
        return _cannot(self._context, why, "check the issuer and the client in the kubeconfig, or log in again")

    def _strange(self, why: str) -> ClusterError:
        return _cannot(self._context, f"the issuer {self._url} answered strangely: {why}", "log in again")


def _cannot(context: str, why: str, remedy: str) -> ClusterError:
    return ClusterError(f"the login of context {context!r} cannot be renewed", why, remedy)
