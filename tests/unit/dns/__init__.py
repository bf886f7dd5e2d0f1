"""The DNS room, without sockets."""
