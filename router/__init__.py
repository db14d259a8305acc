"""Where a turn goes: the pool of replicas, the policies, the decision, the way upstream."""
