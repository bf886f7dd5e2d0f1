"""A kubeconfig with the oidc auth-provider: its login is renewed at the issuer, and written down for kubectl."""

from __future__ import annotations

import base64
import json
import os
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster.conftest import Lab, eventually, service
from tests.integration.cluster.issuer import CLIENT, Issuer, issuer, token
from tests.integration.cluster.proxy import proxy
from tp2.cluster import kubewrite
from tp2.cluster.kubeconfig import Access, load
from tp2.cluster.oidc import SKEW, has_expired
from tp2.errors import ClusterError
from tp2.sandbox.kubeapi_resources import SERVICES
from tp2.sandbox.tls import KeyPair, new_authority

EXPIRED = token("me", -60)


@pytest.fixture
async def login(authority: KeyPair, tmp_path: Path) -> AsyncIterator[Issuer]:
    async with issuer(authority, tmp_path) as one:
        yield one


def config_of(lab: Lab) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(lab.path.read_text())["users"][0]["user"]["auth-provider"]["config"]
    return config


def kubeconfig(lab: Lab, login: Issuer, authority: KeyPair, **changes: Any) -> Path:
    """Write a kubeconfig whose ID token has expired."""
    config = {
        "idp-issuer-url": login.url,
        "idp-certificate-authority-data": base64.b64encode(authority.certificate).decode(),
        "client-id": CLIENT,
        "client-secret": login.secret,
        "id-token": EXPIRED,
        "refresh-token": login.refresh,
        **changes,
    }
    document = lab.api.kubeconfig("shop")
    config = {key: value for key, value in config.items() if value is not None}
    document["users"][0]["user"] = {"auth-provider": {"name": "oidc", "config": config}}
    lab.path.write_text(json.dumps(document, indent=2))
    return lab.path


async def logged_in_with(access: Access) -> str:
    """The token of a new client."""
    client = await access.connect()
    try:
        settings = await client.configuration.auth_settings()
        return str(settings["BearerToken"]["value"]).removeprefix("Bearer ")
    finally:
        await client.close()


async def refusal(access: Access) -> ClusterError:
    with pytest.raises(ClusterError) as raised:
        await access.connect()
    error = raised.value
    assert all((error.what, error.why, error.remedy))
    assert "first" not in str(error), "a refresh token is nothing to show"
    return error


async def test_a_token_that_is_still_good_is_used_as_it_is(lab: Lab, login: Issuer, authority: KeyPair) -> None:
    good = token("me", 600)
    assert await logged_in_with(load(kubeconfig(lab, login, authority, **{"id-token": good}), None)) == good
    assert login.issued == []


@pytest.mark.parametrize(
    "present",
    [EXPIRED, token("me", 5), "nonsense", "a.b.c", None],
    # The same in every process of the test run: tokens tell the time.
    ids=["expired", "about to expire", "nonsense", "no token", "none"],
)
async def test_one_that_has_expired_is_renewed_and_both_new_tokens_are_written_down(
    lab: Lab, login: Issuer, authority: KeyPair, present: str | None
) -> None:
    path = kubeconfig(lab, login, authority, **{"id-token": present})
    path.chmod(0o644)
    assert await logged_in_with(load(path, None)) == login.issued[0]
    after = config_of(lab)
    assert (after["id-token"], after["refresh-token"]) == (login.issued[0], "first+")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert await logged_in_with(load(path, None)) == login.issued[0]
    assert len(login.issued) == 1


async def test_a_running_tp2_renews_it_when_the_server_takes_the_old_one_no_more(
    lab: Lab, login: Issuer, authority: KeyPair
) -> None:
    login.lifetime = SKEW + 1.5
    login.on_issue = lambda token: setattr(lab.api, "token", token)
    async with lab.followed(access=load(kubeconfig(lab, login, authority), None)) as followed:
        await lab.api.watched(3)
        await eventually(lambda: has_expired(login.issued[0], time.time()))
        lab.api.token = "nothing that anybody has"
        lab.api.end_watches()
        lab.api.store.create(SERVICES, "shop", service("new"))
        await followed.has("web", "new")
    assert config_of(lab)["refresh-token"] == login.refresh == "first++"


@pytest.mark.parametrize(
    ("methods", "way"),
    [
        (None, "basic"),
        (["client_secret_basic", "client_secret_post"], "basic"),
        (["client_secret_post", "private_key_jwt"], "post"),
    ],
)
async def test_the_secret_is_told_as_the_issuer_wants_it_and_once(
    lab: Lab, login: Issuer, authority: KeyPair, methods: list[str] | None, way: str
) -> None:
    login.methods = methods
    await logged_in_with(load(kubeconfig(lab, login, authority), None))
    assert login.seen == [way]


async def test_a_client_without_a_secret_renews_too(lab: Lab, login: Issuer, authority: KeyPair) -> None:
    login.secret = None
    assert await logged_in_with(load(kubeconfig(lab, login, authority), None)) == login.issued[0]


async def test_the_ca_of_the_issuer_may_be_a_file(lab: Lab, login: Issuer, authority: KeyPair, tmp_path: Path) -> None:
    authority.write(tmp_path, "ca")
    changes = {"idp-certificate-authority-data": None, "idp-certificate-authority": str(tmp_path / "ca.crt")}
    assert await logged_in_with(load(kubeconfig(lab, login, authority, **changes), None)) == login.issued[0]


async def test_the_issuers_certificate_is_checked(lab: Lab, login: Issuer, authority: KeyPair) -> None:
    for ca in (None, base64.b64encode(new_authority().certificate).decode()):
        changes = {"idp-certificate-authority-data": ca}
        error = await refusal(load(kubeconfig(lab, login, authority, **changes), None))
        assert login.url in error.why
        assert "certificate verify failed" in error.why
    assert login.seen == []


async def test_a_refresh_token_is_not_sent_in_the_clear(lab: Lab, login: Issuer, authority: KeyPair) -> None:
    error = await refusal(load(kubeconfig(lab, login, authority, **{"idp-issuer-url": "http://127.0.0.1:1"}), None))
    assert "in the clear" in error.why
    login.endpoint = login.url.replace("https", "http")
    error = await refusal(load(kubeconfig(lab, login, authority), None))
    assert "in the clear" in error.why


async def test_a_login_that_is_over_asks_for_a_new_one(lab: Lab, login: Issuer, authority: KeyPair) -> None:
    error = await refusal(load(kubeconfig(lab, login, authority, **{"refresh-token": "first but old"}), None))
    assert "has expired" in error.what
    assert "invalid_grant, the refresh token was used already" in error.why
    assert "log in again" in error.remedy
    error = await refusal(load(kubeconfig(lab, login, authority, **{"refresh-token": None}), None))
    assert "no refresh token" in error.why


async def test_what_kubectl_has_renewed_in_the_same_moment_is_used(lab: Lab, login: Issuer, authority: KeyPair) -> None:
    access, good = load(kubeconfig(lab, login, authority), None), token("me", 600)

    def kubectl_is_first() -> None:
        login.refresh = "kubectl's"
        kubeconfig(lab, login, authority, **{"id-token": good})

    login.on_discovery = kubectl_is_first
    assert await logged_in_with(access) == good
    assert config_of(lab)["refresh-token"] == "kubectl's"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((200, {"access_token": "-"}), "no id_token"),
        ((200, {"id_token": 7}), "no id_token"),
        ((200, [1]), "answered 200"),
        ((500, {}), "answered 500"),
        ((302, {}), "answered 302"),
        ((400, {"error": "unauthorized_client", "error_description": "no"}), "unauthorized_client, no"),
    ],
)
async def test_strange_answers_are_told(
    lab: Lab, login: Issuer, authority: KeyPair, answer: tuple[int, Any], why: str
) -> None:
    login.answer = answer
    assert why in (await refusal(load(kubeconfig(lab, login, authority), None))).why


@pytest.mark.parametrize("missing", ["idp-issuer-url", "client-id"])
async def test_a_config_that_is_incomplete_is_told(lab: Lab, login: Issuer, authority: KeyPair, missing: str) -> None:
    error = await refusal(load(kubeconfig(lab, login, authority, **{missing: None}), None))
    assert missing in error.why


async def test_an_issuer_that_is_away_is_told(lab: Lab, login: Issuer, authority: KeyPair) -> None:
    error = await refusal(load(kubeconfig(lab, login, authority, **{"idp-issuer-url": "https://127.0.0.1:1"}), None))
    assert "https://127.0.0.1:1" in error.why
    assert "reached" in error.remedy


async def test_an_issuer_without_a_token_that_follows_keeps_the_old_one(
    lab: Lab, login: Issuer, authority: KeyPair
) -> None:
    login.answer = (200, {"id_token": token("me", 600)})
    await logged_in_with(load(kubeconfig(lab, login, authority), None))
    assert config_of(lab)["refresh-token"] == "first"


async def test_a_kubeconfig_that_cannot_be_written_does_not_log_tp2_out(
    lab: Lab, login: Issuer, authority: KeyPair, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubewrite, "LOCK_PATIENCE", 0.1)
    path = kubeconfig(lab, login, authority)
    before = path.read_text()
    lock = path.with_name(f"{path.name}.lock")
    os.close(os.open(lock, os.O_CREAT))
    login.lifetime = 5.0
    for number in (1, 2):
        assert await logged_in_with(load(path, None)) == login.issued[number - 1]
        assert len(login.issued) == number
        assert path.read_text() == before
    assert "kubectl may have to log in again" in caplog.text
    assert str(lock) in caplog.text
    lock.unlink()
    await logged_in_with(load(path, None))
    assert config_of(lab)["refresh-token"] == login.refresh


async def test_the_issuer_is_asked_through_the_proxy_of_the_environment(
    lab: Lab, login: Issuer, authority: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxy("http", names={"login.example": "127.0.0.1"}) as between:
        monkeypatch.setenv("HTTPS_PROXY", between.url)
        issuer_url = login.url.replace("127.0.0.1", "login.example")
        error = await refusal(load(kubeconfig(lab, login, authority, **{"idp-issuer-url": issuer_url}), None))
        # It arrived, by a name that its certificate lacks.
        assert "login.example" in error.why
        assert between.tunnels
