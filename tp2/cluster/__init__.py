"""What the cluster has: kubeconfig, list and watch, and the catalog that they keep."""
