"""Where a turn goes: the pool of replicas, the policies, the decision, and the connection upstream."""
