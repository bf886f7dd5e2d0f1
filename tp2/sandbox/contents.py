"""What the sandbox's cluster has: a shop with a headless database, and a blog with a service of the same name."""

from __future__ import annotations

from typing import Final

from tp2.sandbox.objects import Object, endpoint_slice, namespace, service

#: The objects that its API starts with.
OBJECTS: Final[list[Object]] = [
    namespace("default"),
    namespace("shop"),
    namespace("blog"),
    namespace("empty"),
    service("default", "kubernetes", "10.96.0.1", {"https": 443}),
    # One port, as most services; the same port and name in another namespace.
    service("shop", "web", "10.96.1.1", {"http": 80}),
    endpoint_slice("shop", "web", {"web-a": "10.244.1.1"}, {"http": 8080}),
    service("blog", "web", "10.96.2.1", {"http": 80}),
    endpoint_slice("blog", "web", {"web-b": "10.244.2.1"}, {"http": 8080}),
    # Two ports.
    service("shop", "api", "10.96.1.2", {"http": 8080, "admin": 9090}),
    endpoint_slice("shop", "api", {"api-a": "10.244.1.2"}, {"http": 8080, "admin": 9090}),
    # Headless: its name means its pods.
    service("shop", "db", "None", {"sql": 5432}),
    endpoint_slice("shop", "db", {"db-0": "10.244.1.10", "db-1": "10.244.1.11"}, {"sql": 5432}),
    # Programs that speak first, or end one side before the other.
    service("shop", "mail", "10.96.1.3", {"smtp": 25, "digest": 26, "farewell": 27}),
    endpoint_slice("shop", "mail", {"mail-a": "10.244.1.3"}, {"smtp": 25, "digest": 26, "farewell": 27}),
    # Nothing listens behind this one.
    service("shop", "dead", "10.96.1.4", {"http": 80}),
]

#: The programs behind them, as :mod:`tp2.sandbox.services` takes them.
PROGRAMS: Final[list[str]] = [
    "http:web.shop:10.96.1.1:80",
    "http:web.blog:10.96.2.1:80",
    "http:api.shop:10.96.1.2:8080",
    "http:api-admin.shop:10.96.1.2:9090",
    "greet:db-0.db.shop:10.244.1.10:5432",
    "greet:db-1.db.shop:10.244.1.11:5432",
    "greet:mail.shop:10.96.1.3:25",
    "digest:mail.shop:10.96.1.3:26",
    "farewell:mail.shop:10.96.1.3:27",
]


def program(specification: str) -> tuple[str, str, str, str]:
    """Return the kind, name, address and port of a program."""
    kind, name, where = specification.split(":", 2)
    address, _, port = where.rpartition(":")
    return kind, name, address, port
