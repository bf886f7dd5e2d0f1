"""A local port for each cluster ip:port in use: the mapping table and its listeners."""
