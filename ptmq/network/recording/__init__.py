"""A network becomes a graph: it is run on a few images, and whatever it does with them is written down.

What operations have constant weights become layers, fused attention its parts. Imports `ptmq.common` alone.
"""
