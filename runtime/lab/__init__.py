"""Instruments: replicas for tests, generated and recorded workloads, and the benchmarks."""
