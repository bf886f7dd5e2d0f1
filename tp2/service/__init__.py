"""tp2 started with the machine, by systemd or launchd."""
