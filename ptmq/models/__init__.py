"""Backbones: the registry, public checkpoints by hash, and the few networks that no library has, one family a file.

Imports `ptmq.common` alone.
"""
