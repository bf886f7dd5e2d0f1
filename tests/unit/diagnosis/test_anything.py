"""What comes from files and programs may be anything: it is read, or passed over."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tp2.diagnosis import resolved
from tp2.diagnosis.naming import hosts_services, judge, owner_of

LINES = st.lists(
    st.one_of(
        st.text(max_size=40),
        st.sampled_from(
            [
                "Global",
                "Link 2 (eth0)",
                "    Protocols: +DNSOverTLS DNSSEC=yes/supported",
                "    DNSOverTLS setting: opportunistic",
                "    DNS Servers: 192.0.2.1",
                "                 2001:db8::1",
                "    DNS Domain: ~.",
                "hosts: files [NOTFOUND=return] dns",
            ]
        ),
    )
).map("\n".join)


@given(LINES)
def test_whatever_resolvectl_says_is_judged(text: str) -> None:
    found = judge(resolved.parse(text), "cluster.local", without_packets=True)
    assert found
    assert all(finding.what for finding in found)


@given(LINES)
def test_whatever_a_file_says_is_read(text: str) -> None:
    hosts_services(text)
    owner_of(None, text)
    owner_of(text, text)
