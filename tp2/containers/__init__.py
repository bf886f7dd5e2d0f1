"""What comes from the containers on this machine's bridges: which bridges, and what listens there."""
