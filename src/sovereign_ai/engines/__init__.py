"""Engines: what a deployment needs to run (pure, triton.py) and the pinned environments it runs in."""
