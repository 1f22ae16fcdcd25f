"""What is done with a recorded graph before it is quantized: norms are folded, blocks found, weights accounted for.

Imports `ptmq.quantization` and what is below.
"""
