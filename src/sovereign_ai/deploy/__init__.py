"""Runs a plan on this machine: processes, supervision, state."""
