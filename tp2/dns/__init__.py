"""The DNS server: answers for what the cluster has, forwards everything else.

Read in this order: :mod:`~tp2.dns.zone` (what the names are), :mod:`~tp2.dns.responder` (when an answer may leave),
:mod:`~tp2.dns.server` (the sockets), :mod:`~tp2.dns.upstream` (everything that is not the cluster's).
"""
