"""SOCKS5, the SSH tunnel into the cluster, and the relay between local connections and the tunnel."""
