"""The DNS server: answers for what the cluster has, forwards everything else."""
