"""One listener a family for all destinations: the kernel says where each connection was to go."""
