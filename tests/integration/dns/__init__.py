"""The DNS server beside real clients and a real nameserver."""
