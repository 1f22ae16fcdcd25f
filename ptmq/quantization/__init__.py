"""Quantization of tensors: grids and their gradients, step-size search, rounding, and the two quantizers.

Knows no network: weights and activations are tensors here. Imports `ptmq.common` alone.
"""
