"""The operating system's forwarding rules, and the privileged helper that sets them."""
