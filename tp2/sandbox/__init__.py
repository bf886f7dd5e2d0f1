"""A cluster in a box: network namespaces with a Kubernetes API, an SSH endpoint and real services."""
