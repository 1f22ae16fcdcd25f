"""From an nn.Module to a graph of tensor operations: recorded, lifted to layers, folded, and its natural blocks.

record -> build (layers and norms get back their names) -> fold. Imports `ptmq.quantization` and what is below.
"""
