"""Backbones: the registry, any network of timm or torchvision by name, and public checkpoints by hash.

Imports `ptmq.common` alone.
"""
