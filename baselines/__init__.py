"""Baseline methods, one file each; `ptmq.methods.interface` finds them here.

Imports `ptmq.methods` and what is below. Nothing outside imports a baseline.
"""
