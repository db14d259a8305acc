"""Where replicas are found: a file, DNS, Kubernetes. What becomes of the pool is
`sessile.router.discovery`'s."""
