"""The nftables table of tp2, in nft(8)'s own language: what is there from the start, and what is filled in later.

Maps and sets hold all that changes; their keys are what is captured. The comments are nft's.
"""

from __future__ import annotations

from typing import Final

from tp2.forward.stopgap import DEVICE

TABLE: Final = "inet tp2"

#: Marks the packets of exempted sockets: ASCII "tp", away from the low bits that VPNs and Kubernetes use.
MARK: Final = 0x7470

#: Destinations of refused connections that are counted at one time, and how long each is kept, in hours.
REFUSED_SIZE: Final = 1024
REFUSED_HOURS: Final = 1

_COUNTED: Final = f"size {REFUSED_SIZE}; flags dynamic,timeout; timeout {REFUSED_HOURS}h; counter;"

#: One transaction, a command a line.
SKELETON: Final = f"""\
create table {TABLE} {{ flags owner; }}

# Redirects: ip:port of the cluster to a local address and port. IPv6 has but one loopback address.
add map {TABLE} redirects4 {{ type ipv4_addr . inet_service : ipv4_addr . inet_service; }}
add map {TABLE} redirects6 {{ type ipv6_addr . inet_service : inet_service; }}
# The keys of both, while there are inlets: a map cannot be asked whether it has a key.
add set {TABLE} captured4 {{ type ipv4_addr . inet_service; }}
add set {TABLE} captured6 {{ type ipv6_addr . inet_service; }}
# All addresses of the cluster, and what was refused of them.
add set {TABLE} cluster4 {{ type ipv4_addr; }}
add set {TABLE} cluster6 {{ type ipv6_addr; }}
add set {TABLE} refused4 {{ type ipv4_addr . inet_service; {_COUNTED} }}
add set {TABLE} refused6 {{ type ipv6_addr . inet_service; {_COUNTED} }}
# Captured nameservers.
add set {TABLE} dns4 {{ type ipv4_addr; }}
add set {TABLE} dns6 {{ type ipv6_addr; }}
# Inlets: their interfaces, their ports, and the ports alone.
add set {TABLE} inlets {{ type ifname; }}
add map {TABLE} inlet_tcp {{ type ifname : inet_service; }}
add map {TABLE} inlet_dns {{ type ifname : inet_service; }}
add set {TABLE} inlet_ports {{ type ifname . inet_proto . inet_service; }}
add set {TABLE} closed {{ type inet_proto . inet_service; }}

# Filled in later.
add chain {TABLE} dns
add chain {TABLE} cluster_out
add chain {TABLE} cluster_in
add chain {TABLE} refuse

# What starts here. NAT looks at the first packet of a connection only.
add chain {TABLE} output {{ type nat hook output priority -110; policy accept; }}
add rule {TABLE} output meta mark {MARK:#x} return
add rule {TABLE} output ip daddr @dns4 jump dns
add rule {TABLE} output ip6 daddr @dns6 jump dns
add rule {TABLE} output meta l4proto != tcp return
add rule {TABLE} output fib daddr type local return
add rule {TABLE} output dnat ip to ip daddr . tcp dport map @redirects4
add rule {TABLE} output meta l4proto tcp redirect to :ip6 daddr . tcp dport map @redirects6
add rule {TABLE} output jump cluster_out

# What comes in by an inlet: a redirect leads to the interface's own address.
add chain {TABLE} prerouting {{ type nat hook prerouting priority -110; policy accept; }}
add rule {TABLE} prerouting iifname != @inlets return
add rule {TABLE} prerouting ip daddr @dns4 meta l4proto {{ tcp, udp }} th dport 53 redirect to :iifname map @inlet_dns
add rule {TABLE} prerouting ip6 daddr @dns6 meta l4proto {{ tcp, udp }} th dport 53 redirect to :iifname map @inlet_dns
add rule {TABLE} prerouting meta l4proto != tcp return
add rule {TABLE} prerouting fib daddr type local return
add rule {TABLE} prerouting ip daddr . tcp dport @captured4 redirect to :iifname map @inlet_tcp
add rule {TABLE} prerouting ip6 daddr . tcp dport @captured6 redirect to :iifname map @inlet_tcp
add rule {TABLE} prerouting jump cluster_in

# What was not redirected. A stopgap route is for what is: the interface named here is that of before NAT.
add chain {TABLE} local_out {{ type filter hook output priority -10; policy accept; }}
add rule {TABLE} local_out oifname "{DEVICE}" ct status & dnat == 0 reject with icmpx type no-route
add rule {TABLE} local_out meta mark {MARK:#x} return
add rule {TABLE} local_out jump refuse
add chain {TABLE} forward {{ type filter hook forward priority -10; policy accept; }}
add rule {TABLE} forward oifname "{DEVICE}" reject with icmpx type no-route
add rule {TABLE} forward iifname @inlets jump refuse

# Ports of inlets take what was redirected to them, and loopback addresses nothing from outside (as kubelet has it):
# not even where some other program lets them be routed.
add chain {TABLE} input {{ type filter hook input priority -10; policy accept; }}
add rule {TABLE} input ct state != new return
add rule {TABLE} input ct status dnat return
add rule {TABLE} input iif != lo ip daddr 127.0.0.0/8 drop
add rule {TABLE} input iifname . meta l4proto . th dport @inlet_ports drop
add rule {TABLE} input iif != lo meta l4proto . th dport @closed fib daddr . iif type != local drop

# A redirected connection's answers come back over the loopback interface, from the cluster's address. VPNs guard their
# own address (wg-quick does) and drop what comes to it from addresses that are not this machine's; so while such guards
# look, at priority -300, they see a loopback address. A packet on the loopback interface still has its connection.
add chain {TABLE} disguise
add rule {TABLE} disguise fib saddr type local return
add rule {TABLE} disguise ip saddr set 127.0.0.1
add rule {TABLE} disguise ip6 saddr set ::1
add chain {TABLE} reveal
add rule {TABLE} reveal ip saddr 127.0.0.1 ip saddr set ct original ip daddr
add rule {TABLE} reveal ip6 saddr ::1 ip6 saddr set ct original ip6 daddr
add chain {TABLE} before_guards {{ type filter hook prerouting priority -310; policy accept; }}
add rule {TABLE} before_guards iif lo ct direction reply meta l4proto {{ tcp, udp }} jump disguise
add chain {TABLE} after_guards {{ type filter hook prerouting priority -290; policy accept; }}
add rule {TABLE} after_guards iif lo ct direction reply meta l4proto {{ tcp, udp }} jump reveal
"""

#: For the cluster's addresses where no port is given. Counting comes first and by itself: where the set is full, the
#: rest of its rule does not apply.
REFUSE: Final = f"""\
add rule {TABLE} refuse meta l4proto != tcp return
add rule {TABLE} refuse tcp flags & (fin|syn|rst|ack) != syn return
add rule {TABLE} refuse fib daddr type local return
add rule {TABLE} refuse ip daddr @cluster4 update @refused4 {{ ip daddr . tcp dport }}
add rule {TABLE} refuse ip6 daddr @cluster6 update @refused6 {{ ip6 daddr . tcp dport }}
add rule {TABLE} refuse ip daddr @cluster4 reject with tcp reset
add rule {TABLE} refuse ip6 daddr @cluster6 reject with tcp reset
"""

#: For the cluster's addresses where a port is given; to be formatted with it.
REDIRECT: Final = f"""\
add rule {TABLE} cluster_out ip daddr @cluster4 meta l4proto tcp redirect to :{{port}}
add rule {TABLE} cluster_out ip6 daddr @cluster6 meta l4proto tcp redirect to :{{port}}
add rule {TABLE} cluster_in ip daddr @cluster4 meta l4proto tcp redirect to :iifname map @inlet_tcp
add rule {TABLE} cluster_in ip6 daddr @cluster6 meta l4proto tcp redirect to :iifname map @inlet_tcp
"""
