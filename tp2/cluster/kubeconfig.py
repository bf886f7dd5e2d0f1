"""The way to the cluster: from a kubeconfig, or the pod's service account, to a client that is logged in.

:func:`load` is cheap and runs nothing: it reads files and says what is wrong with them. Credentials are fetched when
a client is made (:meth:`Access.connect`), and again for every client, because tokens expire and ``kubectl``,
cloud tools and credential plugins replace them in the meantime. Files and plugins are read and run as the current
user.

kubernetes_asyncio is imported when it is needed and not before, and not all of it (:mod:`tp2.cluster.lean`).
"""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tp2 import __version__
from tp2.cluster import http, lean, oidc
from tp2.cluster.kubefile import Selection, select
from tp2.cluster.kubewrite import Unwritten, write_tokens
from tp2.cluster.plugin import credentials
from tp2.cluster.proxies import proxy_for
from tp2.errors import ClusterError

if TYPE_CHECKING:
    from kubernetes_asyncio.client import ApiClient, Configuration

logger = logging.getLogger(__name__)

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

# Servers whose certificates are not checked, by context, that this process has warned of: once is enough.
_warned: set[tuple[str, str]] = set()

# Logins that could not be written down, by the refresh token that they took the place of and that the kubeconfig has.
_unwritten: dict[str, oidc.Tokens] = {}


@dataclass(frozen=True, slots=True)
class Access:
    """A cluster that can be logged in to.

    :param context: the kubeconfig's context, or ``in-cluster`` for the pod's service account.
    :param server: URL of the Kubernetes API, without a trailing slash.
    :param namespace: the context's namespace, where short names are looked up; ``default`` if it has none.
    :param proxy: URL of the proxy to the server, if there is one.
    """

    context: str
    server: str
    namespace: str
    _log_in: Callable[[Configuration], Awaitable[ApiClient]] = field(repr=False)
    _cluster: Mapping[str, object] = field(repr=False, default_factory=dict)
    _user: Mapping[str, object] = field(repr=False, default_factory=dict)
    proxy: str | None = field(repr=False, default=None)

    def leads_to_the_same_cluster_as(self, other: Access) -> bool:
        """Whether context, server and the way to trust it are the same."""
        return (self.context, self.server, self._cluster) == (other.context, other.server, other._cluster)

    def has_the_same_user_as(self, other: Access) -> bool:
        """Whether the kubeconfig's credentials are the same."""
        return self._user == other._user

    @property
    def plugin(self) -> Mapping[str, object] | None:
        """The user's credential plugin, as the kubeconfig's ``exec`` has it; None if there is none."""
        plugin = self._user.get("exec")
        return plugin if isinstance(plugin, dict) else None

    @property
    def trusts_anybody(self) -> bool:
        """Whether the server's certificate is not checked (``insecure-skip-tls-verify``)."""
        return bool(self._cluster.get("insecure-skip-tls-verify"))

    @property
    def server_name(self) -> str | None:
        """The name that the server's certificate should have, where that is not the URL's (``tls-server-name``)."""
        name = self._cluster.get("tls-server-name")
        return str(name) if name else None

    async def connect(self) -> ApiClient:
        """A new client with fresh credentials; the caller closes it. It does not talk to the server yet.

        :raises ClusterError: the credentials cannot be had: a file is missing, a plugin failed.
        """
        lean.prepare()
        from kubernetes_asyncio.client import Configuration

        configuration = Configuration()
        # Python 3.13 asks more of certificates (RFC 5280 extensions) than kubectl does and many clusters have.
        configuration.disable_strict_ssl_verification = True
        try:
            client = await self._log_in(configuration)
        except ClusterError:
            raise
        except Exception as error:
            # Whatever a plugin, a login service or a certificate file may be, it ends in one of a dozen classes.
            raise ClusterError(
                f"the credentials of context {self.context!r} cannot be used",
                " ".join(str(error).split()) or type(error).__name__,
                f"check that `kubectl --context {self.context} get services` works; if it does not, log in again",
            ) from error
        client.user_agent = f"tp2/{__version__}"
        return client


def load(kubeconfig: Path | None, context: str | None) -> Access:
    """Find the way to the cluster: *kubeconfig*, else ``$KUBECONFIG`` (several paths), else ``~/.kube/config``,
    else the service account of the pod that tp2 runs in.

    :raises ClusterError: there is none, it cannot be read, or it lacks the context, its cluster or its user.
    """
    paths = files(kubeconfig)
    if kubeconfig is not None:
        return _from_files(paths, context, all_must_exist=True)
    if os.environ.get("KUBECONFIG", "").strip(os.pathsep):
        return _from_files(paths, context, all_must_exist=False)
    default = paths[0]
    if _exists(default):
        return _from_files(paths, context, all_must_exist=True)
    if os.environ.get("KUBERNETES_SERVICE_HOST") and context is None:
        return _from_service_account()
    raise ClusterError(
        "no kubeconfig was found",
        f"$KUBECONFIG is not set and {default} does not exist",
        "name one with --kubeconfig, or fetch one with your cluster's tool (kind, gcloud, aws, az, ...)",
    )


def files(kubeconfig: Path | None) -> list[Path]:
    """Return the files that :func:`load` reads, whether they exist or not."""
    if kubeconfig is not None:
        return [_expanded(kubeconfig)]
    from_environment = [_expanded(Path(part)) for part in os.environ.get("KUBECONFIG", "").split(os.pathsep) if part]
    return from_environment or [_expanded(Path("~/.kube/config"))]


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        # A container may run as a user without a home directory.
        return path


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        # Something is there, and reading it will say what is wrong.
        return True
    return True


def _from_files(paths: list[Path], context: str | None, *, all_must_exist: bool) -> Access:
    chosen = select(paths, context, all_must_exist=all_must_exist)
    if chosen.cluster.get("insecure-skip-tls-verify") and (chosen.context, chosen.server) not in _warned:
        _warned.add((chosen.context, chosen.server))
        logger.warning(
            "the kubeconfig says insecure-skip-tls-verify for context %r: whoever is on the way to %s can read and "
            "change everything, the credentials included",
            chosen.context,
            chosen.server,
        )

    def now() -> Selection:
        # Read again: a login in the meantime has put new credentials there.
        return select(paths, chosen.context, all_must_exist=all_must_exist)

    async def log_in(configuration: Configuration) -> ApiClient:
        current = now()
        try:
            return await _client_of(current, paths, configuration, proxy)
        except oidc.LoginExpired:
            # kubectl may have used the refresh token in the same moment, and written down what it got for it.
            if (again := now()).user == current.user:
                raise
            return await _client_of(again, paths, configuration, proxy)

    proxy = proxy_for(chosen.server, str(chosen.cluster.get("proxy-url") or ""), os.environ)
    return Access(chosen.context, chosen.server, chosen.namespace, log_in, chosen.cluster, chosen.user, proxy)


async def _client_of(
    chosen: Selection, paths: list[Path], configuration: Configuration, proxy: str | None
) -> ApiClient:
    lean.prepare()
    from kubernetes_asyncio.client import ApiClient
    from kubernetes_asyncio.config import load_kube_config_from_dict

    user = {key: value for key, value in chosen.user.items() if key != "exec"}
    if isinstance(plugin := chosen.user.get("exec"), dict):
        user |= await credentials(plugin, chosen.context, chosen.cluster)
    provider = user.get("auth-provider")
    if isinstance(provider, dict) and provider.get("name") == oidc.NAME:
        user = {"token": await _id_token(provider.get("config"), chosen, paths)}
    # OpenSSL takes keys from files only. kubernetes_asyncio would write them too, but leaves them, open, until Python
    # ends: a killed tp2 would leave a key behind. These are gone as soon as the client has read them.
    with TemporaryDirectory(prefix="tp2-") as name:
        directory = Path(name)
        selection = replace(chosen, cluster=_in_files(chosen.cluster, directory), user=_in_files(user, directory))
        await load_kube_config_from_dict(selection.as_kubeconfig(), client_configuration=configuration)
        return await http.lead(ApiClient(configuration), proxy)


async def _id_token(config: Any, chosen: Selection, paths: list[Path]) -> str:
    fields = config if isinstance(config, dict) else {}
    written = str(fields.get("refresh-token"))

    async def keep(tokens: oidc.Tokens) -> None:
        changes = {"id-token": tokens.id_token, "refresh-token": tokens.refresh_token}
        try:
            await write_tokens(paths, chosen.user_name, written, changes)
        except Unwritten as error:
            _unwritten[written] = tokens
            logger.log(
                logging.DEBUG if tokens.refresh_token == written else logging.WARNING,
                "tp2 has renewed the login of context %r, but cannot write it into the kubeconfig, so that kubectl may "
                "have to log in again: %s",
                chosen.context,
                error,
            )
        else:
            _unwritten.pop(written, None)

    newer = _unwritten.get(written)
    latest = {"id-token": newer.id_token, "refresh-token": newer.refresh_token} if newer else {}
    return await oidc.current_token({**fields, **latest}, chosen.context, keep)


def _in_files(fields: Mapping[str, object], directory: Path) -> dict[str, object]:
    """Put what stands in ``X-data`` (base64) of a cluster or user into a file, and name that in ``X``."""
    changed = dict(fields)
    for key in fields:
        if key.endswith("-data"):
            path = directory / key.removesuffix("-data")
            path.write_bytes(base64.b64decode(str(changed.pop(key))))
            changed[path.name] = str(path)
    return changed


def _from_service_account() -> Access:
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    try:
        namespace = (_SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
    except OSError:
        namespace = ""

    async def log_in(configuration: Configuration) -> ApiClient:
        lean.prepare()
        from kubernetes_asyncio.client import ApiClient

        authority = _SERVICE_ACCOUNT / "ca.crt"
        try:
            # kubelet replaces the token before it expires; each login takes the one that is there then.
            token = (_SERVICE_ACCOUNT / "token").read_text(encoding="ascii").strip()
            authority.read_bytes()
        except (OSError, ValueError) as error:
            raise ClusterError(
                "the pod's service account cannot be used",
                f"{getattr(error, 'filename', None) or _SERVICE_ACCOUNT / 'token'}: "
                f"{getattr(error, 'strerror', None) or error}",
                "mount a service account token into the pod, or name a kubeconfig with --kubeconfig",
            ) from error
        configuration.host, configuration.ssl_ca_cert = server, str(authority)
        configuration.api_key["BearerToken"] = f"Bearer {token}"
        return await http.lead(ApiClient(configuration), proxy)

    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    proxy = proxy_for(server, None, os.environ)
    return Access("in-cluster", server, namespace or "default", log_in, proxy=proxy)
