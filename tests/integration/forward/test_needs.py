"""A machine whose nftables cannot do all that tp2 needs: one message, and nothing is left.

The kernel here can do it all, so between the helper and libnftables stands something that refuses what an older one
would: every command with certain words in it.
"""

from __future__ import annotations

import pytest

from tests.integration.forward.kit import PATIENCE, Helper, network
from tp2.errors import ForwarderError
from tp2.forward import protocol
from tp2.sandbox.namespaces import Host

_LACKING = """
from tp2.forward import helper, libnftables
real = libnftables.Session.run

def run(session, commands):
    if any({words!r} in line for line in commands.splitlines()):
        return {answer!r}
    return real(session, commands)

libnftables.Session.run = run
helper.main()
"""


@pytest.mark.parametrize(
    ("words", "answer", "why", "remedy"),
    [
        ("flags owner", "syntax error, unexpected string", "no table can have an owner here", "Linux 5.12"),
        ("flags owner", "Could not process rule: Operation not supported", "no table can have an owner", "uname -r"),
        ("table inet", "Could not process rule: No such file or directory", "IPv4 and IPv6 together", "nf_tables_inet"),
        ("type nat", "Could not process rule: No such file or directory", "lacks NAT", "nft_chain_nat"),
        ("redirect to", "Could not process rule: No such file or directory", "lacks redirection (", "nft_redir"),
        ("dnat ip to", "Could not process rule: No such file or directory", "from a map", "nft_nat"),
        ("fib daddr", "Could not process rule: No such file or directory", "lacks routing lookups", "nft_fib_inet"),
        ("reject with", "Could not process rule: No such file or directory", "refusing", "nft_reject_inet"),
        ("ct status", "Could not process rule: No such file or directory", "connection tracking", "nft_ct"),
        ("flags dynamic", "Could not process rule: Operation not supported", "sets with counters", "5.12"),
        # Something that no need explains, while each need is met: the kernel's own words.
        ("create table", "Could not process rule: Out of memory", "Out of memory", "libnftables"),
    ],
)
def test_what_is_missing_is_named(host: Host, words: str, answer: str, why: str, remedy: str) -> None:
    before = network(host)
    helper = Helper(host, program=("-c", _LACKING.format(words=words, answer=answer)))
    with pytest.raises(ForwarderError) as caught:
        protocol.decode_reply(helper.hello)
    assert caught.value.what == "cannot capture traffic with nftables"
    assert why in caught.value.why
    assert remedy in caught.value.remedy
    assert helper.lines.readline() == b""
    assert helper.process.wait(PATIENCE) == 1
    helper.close()
    assert network(host) == before
