"""Forwarding rules on macOS and FreeBSD: one anchor of pf, loaded whole.

pfctl replaces an anchor in one transaction, so the rules are made anew from what is wanted at each change
(:mod:`tp2.forward.pfrules`): at no time is there half of a change, and a change that pf refuses leaves what was
there. What a load costs grows with the number of mappings. It is paid seldom: the mapper (:mod:`tp2.portmap.mapper`)
puts all lookups that come while one change is under way into the next, so that the slower the loads, the fewer they
are; and what changes nothing loads nothing.

Nothing but pf's own words is believed: before anything is changed, the main ruleset must call our anchor, and the
loopback must not be skipped; both are looked at again later, since other programs change them.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tp2.errors import ForwarderError, Tp2Error
from tp2.forward import pfundo, resolverfiles
from tp2.forward.pfctl import Pfctl, is_called, run
from tp2.forward.pfguard import Guardian
from tp2.forward.pfrules import EXEMPT_PORTS, anchor_text
from tp2.forward.pfundo import Record, Records, flush_cache, undo
from tp2.forward.platforms import FREEBSD, MACOS, Platform, this_platform
from tp2.forward.resolverfiles import ResolverFiles
from tp2.forward.rules import Inlet
from tp2.types import Destination, Redirect

#: Seconds for which a look at the hooks and the loopback is good.
CHECK_INTERVAL: Final = 10.0

# Ports that are tried for an exempted socket before giving up; the range is mostly free.
_BIND_ATTEMPTS: Final = 64


class Pf:
    """A :class:`tp2.forward.rules.Rules` on pf. Needs root.

    :param directory: for the record of what was done.
    :param resolver: /etc/resolver, or another directory in its place.
    :param clock: seconds.
    """

    kind = "pf"

    def __init__(
        self,
        platform: Platform | None = None,
        *,
        directory: Path = pfundo.DIRECTORY,
        resolver: Path = resolverfiles.DIRECTORY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._platform = platform or this_platform()
        self._pfctl = Pfctl(self._platform)
        self._records = Records(directory)
        self._resolver_directory = resolver
        self._resolver = ResolverFiles(resolver)
        self._clock = clock
        self._record: Record | None = None
        self._guardian: Guardian | None = None
        self._checked = 0.0
        self._loaded = ""
        self._redirects: dict[Destination, Redirect] = {}
        self._nameservers: tuple[str, ...] = ()
        self._dns_port = 0
        self._cluster: dict[str, None] = {}

    def open(self) -> None:
        """Undo what a killed tp2 has left, see that rules would be looked at, enable pf and claim the anchor.

        :raises AlreadyRunning: another tp2 captures on this machine.
        :raises PrivilegeError: not root.
        :raises ForwarderError: there is no pf, or its main ruleset would not get to our rules. Nothing has changed.
        """
        self._pfctl.check_present()
        if self._platform is FREEBSD and (kldload := shutil.which("kldload")) is not None:
            # A kernel module, not a rule; it stays, since somebody may have come to use it. Already loaded is fine.
            run(kldload, "-n", "pf")
        try:
            lock, self._pfctl.inherited = self._records.claim()
            self._guardian = Guardian(self._platform.name, self._records.directory, self._resolver_directory, lock)
            trouble = undo(self._records.read() or Record(), self._pfctl, self._resolver)
            if trouble is not None:
                raise trouble
            self._records.erase()
            self._record = Record()
            self._enable(self._record)
            self._load(anchor_text((), (), 0, ()))
        except OSError as error:
            self.close()
            raise ForwarderError(
                "cannot capture traffic with pf",
                f"{error.filename}: {error.strerror}",
                "see whether the disk is full; tp2 keeps a record in /var/run",
            ) from error
        except BaseException:
            self.close()
            raise

    def capture_dns(self, nameservers: Sequence[str], port: int) -> None:
        """See :meth:`tp2.forward.rules.Rules.capture_dns`."""
        for address in nameservers:
            parsed = ipaddress.ip_address(address)
            if parsed.is_link_local or parsed.is_unspecified:
                raise ForwarderError(
                    "cannot capture DNS with pf",
                    f"pf cannot tell the packets to the nameserver {address}, which has no address of its own",
                    "name the others: --dns IP; on macOS, tp2 need not capture DNS at all",
                )
        former = self._nameservers, self._dns_port
        self._nameservers, self._dns_port = tuple(nameservers), port
        try:
            self._commit(grows=bool(nameservers))
        except Tp2Error:
            self._nameservers, self._dns_port = former
            raise

    def update(self, add: Sequence[Redirect], remove: Sequence[Destination]) -> None:
        """See :meth:`tp2.forward.rules.Rules.update`."""
        former = self._redirects
        self._redirects = dict(former)
        for destination in remove:
            self._redirects.pop(destination, None)
        self._redirects |= {redirect.destination: redirect for redirect in add}
        try:
            self._commit(grows=bool(add))
        except Tp2Error:
            self._redirects = former
            raise

    def cluster(self, add: Sequence[str], remove: Sequence[str], port: int | None) -> None:
        """See :meth:`tp2.forward.rules.Rules.cluster`; *port* must be None."""
        if port is not None:
            raise ForwarderError(
                "cannot capture whole addresses with pf",
                "an unprivileged listener cannot ask pf where a connection was going",
                "use --mode portmap",
            )
        former = self._cluster
        gone = set(remove)
        self._cluster = dict.fromkeys([*(address for address in former if address not in gone), *add])
        try:
            self._commit(grows=bool(add))
        except Tp2Error:
            self._cluster = former
            raise

    def containers(self, inlets: Sequence[Inlet]) -> None:
        """See :meth:`tp2.forward.rules.Rules.containers`; *inlets* must be empty."""
        if inlets:
            raise ForwarderError(
                "cannot capture containers' traffic with pf",
                "containers run in a virtual machine here, and its packets do not pass this host's rules",
                "use --containers off, and run tp2 inside the virtual machine if need be",
            )

    def steer_dns(self, domains: Sequence[str], search: Sequence[str], port: int) -> None:
        """Let macOS ask tp2, at *port* on 127.0.0.1, for names below exactly these *domains*.

        :param search: what is appended to single labels below them.
        :raises ForwarderError: this is not macOS, or /etc/resolver cannot be used; what was steered before still is.
        """
        if self._platform is not MACOS:
            raise ForwarderError(
                "cannot steer DNS by domain",
                f"{self._platform.name} has no /etc/resolver",
                "capture the nameservers instead",
            )
        record = self._recorded()
        if domains and not record.resolver_directory and self._resolver.needs_directory():
            record.resolver_directory = True
            self._records.write(record)
        self._resolver.apply(domains, search, port)
        flush_cache()

    def exempt(self, sock: socket.socket) -> None:
        """See :meth:`tp2.forward.rules.Rules.exempt`; binds the socket to a port that the rules let pass.

        On BSDs a socket keeps its port for life, so this holds through any number of connects.
        """
        trouble: OSError | None = None
        for _ in range(_BIND_ATTEMPTS):
            try:
                # Not to be guessed: it is half of what a forged answer needs (RFC 5452 section 9.2).
                sock.bind(("", secrets.choice(EXEMPT_PORTS)))
            except OSError as error:
                trouble = error
            else:
                return
        raise ForwarderError(
            "cannot exempt tp2's own queries",
            f"no source port of {EXEMPT_PORTS.start}-{EXEMPT_PORTS.stop - 1} can be had: {trouble}",
            "see who has them: netstat -an",
        )

    def refused(self) -> dict[Destination, int]:
        """See :meth:`tp2.forward.rules.Rules.refused`; pf counts packets by rule, not by port, so: none."""
        return {}

    def end_orphans(self) -> None:
        """See :meth:`tp2.forward.rules.Rules.end_orphans`; macOS lets nobody end another's connection: nothing."""

    def close(self) -> None:
        """See :meth:`tp2.forward.rules.Rules.close`."""
        if self._record is not None:
            record, self._record = self._record, None
            if undo(record, self._pfctl, self._resolver) is None:
                self._records.erase()
        if self._guardian is not None:
            # It tries once more what did not work.
            guardian, self._guardian = self._guardian, None
            guardian.dismiss()
        self._records.release()

    def _enable(self, record: Record) -> None:
        self._check_loopback()
        ruleset = self._pfctl.main_ruleset()
        called = all(is_called(ruleset, self._platform.hook))
        if self._platform.counts_references:
            if not called:
                raise self._not_called(ruleset)
            record.token = self._pfctl.acquire(lambda: self._records.write(Record(acquirer=os.getpid())))
            self._records.write(record)
        else:
            self._enable_uncounted(record, ruleset, called=called)
        self._checked = self._clock()

    def _enable_uncounted(self, record: Record, ruleset: str, *, called: bool) -> None:
        """Enable pf where nobody counts who needs it: only if nobody does, with a main ruleset of ours."""
        enabled = self._pfctl.is_enabled()
        if called and not enabled:
            raise ForwarderError(
                "cannot capture traffic with pf",
                "pf has rules but is disabled, and to enable it would put them into force",
                "enable it: sudo service pf start",
            )
        if not called:
            # To load a main ruleset resets what is skipped, so there must be nothing of the kind either.
            if ruleset.strip() or self._pfctl.skipped_interfaces():
                raise self._not_called(ruleset)
            record.main, record.enabled = True, not enabled
            self._records.write(record)
            hook = self._platform.hook
            self._pfctl.load_main(f'rdr-anchor "{hook}"\nanchor "{hook}"\n')
            if not enabled:
                self._pfctl.enable()

    def _commit(self, *, grows: bool) -> None:
        """Load what is wanted, unless it is loaded. To take rules away works whatever others have done to pf."""
        self._recorded()
        text = anchor_text(self._redirects.values(), self._nameservers, self._dns_port, self._cluster)
        if text == self._loaded:
            return
        if grows and self._clock() - self._checked >= CHECK_INTERVAL:
            self._check()
        self._load(text)

    def _load(self, text: str) -> None:
        self._pfctl.load(text)
        self._loaded = text

    def _check(self) -> None:
        """See that rules are still looked at.

        :raises ForwarderError: they are not; it says why.
        """
        self._check_loopback()
        ruleset = self._pfctl.main_ruleset()
        if not all(is_called(ruleset, self._platform.hook)):
            raise self._not_called(ruleset)
        if not self._pfctl.is_enabled():
            raise ForwarderError(
                "nothing is captured any more",
                "another program has disabled pf (pfctl -d)",
                "restart tp2, and tell that program to use pfctl -X instead",
            )
        self._checked = self._clock()

    def _check_loopback(self) -> None:
        if not self._pfctl.skipped_interfaces() & {"lo", "lo0"}:
            return
        if self._platform is MACOS:
            remedy = (
                "end the program that has set it (some VPNs and virtual machines do); then clear it: "
                "sudo pfctl -f /etc/pf.conf, which also cuts virtual machines off that share this Mac's network"
            )
        else:
            remedy = "remove 'set skip on lo0' from /etc/pf.conf, then: sudo pfctl -f /etc/pf.conf"
        raise ForwarderError(
            "cannot capture traffic with pf", "pf does not look at the loopback ('skip on lo0' is set)", remedy
        )

    def _not_called(self, ruleset: str) -> ForwarderError:
        hook = self._platform.hook
        lines = [
            f'{keyword} "{hook}"'
            for keyword, there in zip(("rdr-anchor", "anchor"), is_called(ruleset, hook), strict=True)
            if not there
        ]
        if self._platform is MACOS:
            remedy = (
                "load the system's own ruleset: sudo pfctl -f /etc/pf.conf, "
                "which also cuts virtual machines off that share this Mac's network"
            )
        else:
            remedy = "add them to /etc/pf.conf (translation before filtering), then: sudo pfctl -f /etc/pf.conf"
        return ForwarderError(
            "cannot capture traffic with pf",
            f"its main ruleset does not get to tp2's rules: {' and '.join(lines)} is not in it",
            remedy,
        )

    def _recorded(self) -> Record:
        if self._record is None:
            raise ForwarderError("nothing is captured any more", "the rules are closed", "run tp2 up again")
        return self._record
