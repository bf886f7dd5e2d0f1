"""How the SSH endpoint's sshd runs in its pod: its configuration, its user, and the commands of its containers.

Pure: texts only. The pod's root file system is read-only and its processes have no capabilities, so:

* a sshd that is not root can log in its own user only, and neither needs nor has any way to become another one;
* that user has to have a name. The pod brings an ``/etc/passwd`` of its own, so that any image with a sshd will do,
  whatever users it was built with;
* the host key is made when the pod starts, by an init container, into memory that both containers share. It is in no
  file of a repository, no Secret and no backup, and goes when the pod goes. Its public half is printed: whoever may
  read that log through the API server has it from the pod itself, over the API's TLS.

sshd allows local TCP forwarding and nothing else. Several directives say the same thing twice: ``MaxSessions 0``
refuses every session channel, thus shell, command, subsystem and terminal; ``ForceCommand`` and the user's shell,
both ``/bin/false``, would have nothing to run if it did not.
"""

from __future__ import annotations

from typing import Final

USER: Final = "tp2"
"""The one user who can log in."""

UID: Final = 65532
"""Its uid and gid: the ones that images without root commonly use, above those that a distribution hands out."""

PORT: Final = 2222
"""Where sshd listens: below 1024 would need a capability."""

CONFIG_DIRECTORY: Final = "/run/tp2/config"
AUTHORIZED_KEYS_DIRECTORY: Final = "/run/tp2/authorized-keys"
AUTHORIZED_KEYS_FILE: Final = "authorized_keys"
HOST_KEY_DIRECTORY: Final = "/run/tp2/host-key"
HOST_KEY: Final = f"{HOST_KEY_DIRECTORY}/ssh_host_ed25519_key"

PASSWD: Final = f"{USER}:x:{UID}:{UID}:tp2 endpoint:/:/bin/false\n"
"""The pod's ``/etc/passwd``."""

CONFIG: Final = f"""\
# TCP forwarding for people with a key, and nothing else.
Port {PORT}
HostKey {HOST_KEY}
AuthorizedKeysFile {AUTHORIZED_KEYS_DIRECTORY}/{AUTHORIZED_KEYS_FILE}
# Kubernetes mounts volumes as root with modes of its own, which StrictModes takes for carelessness.
StrictModes no
PidFile none

# An image may know more users than the pod's /etc/passwd has (nss-systemd makes up two).
AllowUsers {USER}
PermitRootLogin no
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
# PAM and host-based ways in need root.
UsePAM no
# ssh-agents offer all their keys, one after the other.
MaxAuthTries 20
LoginGraceTime 20
MaxStartups 30:30:100

AllowTcpForwarding local
PermitOpen any
PermitListen none
GatewayPorts no
AllowStreamLocalForwarding no
AllowAgentForwarding no
X11Forwarding no
PermitTunnel no

MaxSessions 0
PermitTTY no
PermitUserRC no
PermitUserEnvironment no
ForceCommand /bin/false

Compression no
# A laptop that went to sleep is forgotten after a minute.
ClientAliveInterval 15
ClientAliveCountMax 4
"""
"""``sshd_config``, for OpenSSH 8.7 and later."""

RUN_SSHD: Final = f"""\
sshd="$(command -v sshd || command -v sshd.pam)" || {{ echo "this image has no sshd" >&2; exit 127; }}
set -- -D -e -f {CONFIG_DIRECTORY}/sshd_config
# OpenSSH 9.8 and later shut out the source of failed logins. Through a port-forward everybody comes from 127.0.0.1,
# so one wrong key would shut out all. Older ones do not know the option.
if "$sshd" "$@" -t -o PerSourcePenalties=no 2>/dev/null; then
  set -- "$@" -o PerSourcePenalties=no
fi
exec "$sshd" "$@"
"""
"""The endpoint container's script, for a POSIX shell. sshd wants to be called by its whole path."""

MAKE_HOST_KEY: Final = f"""\
set -eu
key={HOST_KEY}
# The public half is written last: without it the key is not whole.
if [ ! -s "$key.pub" ]; then
  rm -f "$key"
  ssh-keygen -q -t ed25519 -N "" -C {USER} -f "$key"
fi
cat "$key.pub"
"""
"""The init container's script. It runs again when a node restarts the pod, and keeps the key if that is still there."""
