"""Sessile."""
