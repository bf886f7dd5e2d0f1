"""Why there is no port-forward to a pod, or none any more, in words for people.

Pure. The API server's refusals and the words on the error channel come in, an error with what, why and remedy goes
out. Failures on the way to the API server are those of every request: :mod:`tp2.cluster.failure` knows them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tp2.cluster.failure import NOT_AT_ALL, ApiError, explain
from tp2.cluster.kubeconfig import Access
from tp2.cluster.portforward_frames import NotPortForward, StreamFailed
from tp2.errors import ClusterError, EndpointError, Tp2Error

_GONE = "tp2 tries again with another pod; see `kubectl -n {namespace} get pods` if there is none"


@dataclass(frozen=True, slots=True)
class Place:
    """The port of a pod that a port-forward leads to."""

    namespace: str
    pod: str
    port: int

    def __str__(self) -> str:
        return f"port {self.port} of pod {self.namespace}/{self.pod}"


def not_opened(error: Exception, access: Access, place: Place) -> Tp2Error:
    """Why the handshake for a port-forward to *place* failed: ``lasting`` if a person has to act first."""
    if isinstance(error, ApiError) and error.status != 401:
        return _refused(error, access, place)
    failure = explain(error, access, "pods/portforward", place.namespace)
    failure.error.lasting = failure.patience == NOT_AT_ALL
    return failure.error


def no_answer(access: Access, place: Place, seconds: float) -> EndpointError:
    """The API server took the request and said nothing: it is trying to reach the pod's node."""
    return EndpointError(
        f"cannot reach {place} through the Kubernetes API",
        f"{access.server} did not open the port-forward within {seconds:g} s",
        f"check that the pod's node is up: `kubectl -n {place.namespace} get pod {place.pod} -o wide`",
    )


def _refused(error: ApiError, access: Access, place: Place) -> Tp2Error:
    what = f"cannot reach {place} through the Kubernetes API"
    if error.status == 403:
        return _forbidden(error, access, place)
    if error.status == 404:
        return EndpointError(f"the pod {place.namespace}/{place.pod} is gone", error.message, _gone(place))
    if error.status == 500 and "pod not found" in error.message:
        # The kubelet's answer for a pod that has run to its end.
        return EndpointError(f"the pod {place.namespace}/{place.pod} does not run", error.message, _gone(place))
    why = f"{error.status} {error.message}"
    if error.status >= 500:
        remedy = f"check that the pod's node is up: `kubectl -n {place.namespace} get pod {place.pod} -o wide`"
        return EndpointError(what, why, remedy)
    return ClusterError(what, why, f"check that whatever stands between here and {access.server} lets WebSockets pass")


def _forbidden(error: ApiError, access: Access, place: Place) -> ClusterError:
    what = f"port-forwarding to pods in the namespace {place.namespace!r} is not allowed"
    remedy = f"ask for the verbs get and create on pods/portforward in the namespace {place.namespace!r}"
    if "is forbidden" not in error.message:
        what = f"{access.server} does not port-forward over WebSockets"
        why = "403, without a word on rights: the subprotocol v4.channel.k8s.io was refused"
        remedy = "check that the server is the Kubernetes API and that no proxy in between changes WebSocket headers"
    elif '"system:anonymous"' in error.message:
        why = error.message
        remedy = f"log in: the user of context {access.context!r} has no credentials in the kubeconfig"
    else:
        # Of the second verb that it checks, create, the server says that it is missing but not what is.
        words = error.message.rstrip()
        why = f"{words} create on pods/portforward is not granted" if words.endswith(":") else words
    forbidden = ClusterError(what, why, remedy)
    forbidden.lasting = True
    return forbidden


def _gone(place: Place) -> str:
    return _GONE.format(namespace=place.namespace)


def broken(error: Exception, place: Place) -> EndpointError:
    """Why a port-forward to *place* that was open has ended."""
    what = f"the port-forward to {place} has ended"
    if isinstance(error, StreamFailed):
        if "connection refused" in str(error):
            what = f"nothing listens on {place}"
            return EndpointError(what, str(error), f"see `kubectl -n {place.namespace} describe pod {place.pod}`")
        return EndpointError(what, str(error), _gone(place))
    if isinstance(error, NotPortForward):
        remedy = "check that no proxy on the way to the Kubernetes API changes WebSockets"
        return EndpointError(what, f"the server does not speak the port-forward protocol: {error}", remedy)
    return EndpointError(what, str(error) or type(error).__name__, _gone(place))
