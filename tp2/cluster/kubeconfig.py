"""The way to the cluster: from a kubeconfig, or the pod's service account, to a client that is logged in.

:func:`load` is cheap and runs nothing: it reads files and says what is wrong with them. Credentials are fetched when
a client is made (:meth:`Access.connect`), and again for every client, because tokens expire and ``kubectl``,
cloud tools and credential plugins replace them in the meantime. Files and plugins are read and run as the current
user.

kubernetes_asyncio is imported when it is needed and not before: that takes most of a second.
"""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tp2 import __version__
from tp2.cluster.kubefile import Selection, select
from tp2.cluster.plugin import credentials
from tp2.errors import ClusterError

if TYPE_CHECKING:
    from kubernetes_asyncio.client import ApiClient, Configuration

logger = logging.getLogger(__name__)

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class Access:
    """A cluster that can be logged in to.

    :param context: the kubeconfig's context, or ``in-cluster`` for the pod's service account.
    :param server: URL of the Kubernetes API, without a trailing slash.
    :param namespace: the context's namespace, where short names are looked up; ``default`` if it has none.
    """

    context: str
    server: str
    namespace: str
    _log_in: Callable[[Configuration], Awaitable[None]] = field(repr=False)

    async def connect(self) -> ApiClient:
        """A new client with fresh credentials; the caller closes it. It does not talk to the server yet.

        The client's TLS material is loaded from temporary files that are gone when this returns, so that a
        killed tp2 leaves no key behind.

        :raises ClusterError: the credentials cannot be had: a file is missing, a plugin failed.
        """
        from kubernetes_asyncio.client import ApiClient, Configuration

        configuration = Configuration()
        # Python 3.13 asks more of certificates (RFC 5280 extensions) than kubectl does and many clusters have.
        configuration.disable_strict_ssl_verification = True
        try:
            await self._log_in(configuration)
            client = ApiClient(configuration)
        except ClusterError:
            raise
        except Exception as error:
            # Whatever a plugin, a login service or a certificate file may be, it ends in one of a dozen classes.
            raise ClusterError(
                f"the credentials of context {self.context!r} cannot be used",
                " ".join(str(error).split()) or type(error).__name__,
                f"check that `kubectl --context {self.context} get services` works; if it does not, log in again",
            ) from error
        finally:
            _remove_temporary_files()
        client.user_agent = f"tp2/{__version__}"
        return client


def load(kubeconfig: Path | None, context: str | None) -> Access:
    """Find the way to the cluster: *kubeconfig*, else ``$KUBECONFIG`` (several paths), else ``~/.kube/config``,
    else the service account of the pod that tp2 runs in.

    :raises ClusterError: there is none, it cannot be read, or it lacks the context, its cluster or its user.
    """
    if kubeconfig is not None:
        return _from_files([_expanded(kubeconfig)], context, all_must_exist=True)
    if paths := [_expanded(Path(part)) for part in os.environ.get("KUBECONFIG", "").split(os.pathsep) if part]:
        return _from_files(paths, context, all_must_exist=False)
    default = _expanded(Path("~/.kube/config"))
    if _exists(default):
        return _from_files([default], context, all_must_exist=True)
    if os.environ.get("KUBERNETES_SERVICE_HOST") and context is None:
        return _from_service_account()
    raise ClusterError(
        "no kubeconfig was found",
        f"$KUBECONFIG is not set and {default} does not exist",
        "name one with --kubeconfig, or fetch one with your cluster's tool (kind, gcloud, aws, az, ...)",
    )


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
    if chosen.cluster.get("insecure-skip-tls-verify"):
        logger.warning(
            "the kubeconfig says insecure-skip-tls-verify for context %r: whoever is on the way to %s can read and "
            "change everything, the credentials included",
            chosen.context,
            chosen.server,
        )

    async def log_in(configuration: Configuration) -> None:
        # Read again: a login in the meantime has put new credentials there.
        await _log_in_with(select(paths, chosen.context, all_must_exist=all_must_exist), configuration)

    return Access(chosen.context, chosen.server, chosen.namespace, log_in)


async def _log_in_with(chosen: Selection, configuration: Configuration) -> None:
    from kubernetes_asyncio.config import load_kube_config_from_dict

    user = {key: value for key, value in chosen.user.items() if key != "exec"}
    if isinstance(plugin := chosen.user.get("exec"), dict):
        given = await credentials(plugin, chosen.context)
        # The library expects what kubeconfigs have: base64 around PEM. Plugins give PEM.
        user |= {key: value if key == "token" else _base64(value) for key, value in given.items()}
    document = replace(chosen, user=user).as_kubeconfig()
    await load_kube_config_from_dict(document, client_configuration=configuration)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _from_service_account() -> Access:
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    try:
        namespace = (_SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
    except OSError:
        namespace = ""

    async def log_in(configuration: Configuration) -> None:
        from kubernetes_asyncio.config import ConfigException, load_incluster_config

        try:
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except (ConfigException, OSError) as error:
            raise ClusterError(
                "the pod's service account cannot be used",
                str(error),
                "mount a service account token into the pod, or name a kubeconfig with --kubeconfig",
            ) from error

    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Access("in-cluster", f"https://{authority}", namespace or "default", log_in)


def _remove_temporary_files() -> None:
    """kubernetes_asyncio writes keys from a kubeconfig to files, for OpenSSL to read, and keeps them until Python
    exits; they are needed until the client exists. Its exit handler is the one thing that knows where they are."""
    from kubernetes_asyncio.config import kube_config

    clean_up = getattr(kube_config, "_cleanup_temp_files", None)
    if clean_up is not None:
        clean_up()
