"""From an nn.Module to a network that switches its widths: trace, fold, place, cut; its layers, units and files.

trace -> fold norms -> place activation quantizers -> replace layers -> absorb ReLUs -> cut into units. No network is
written twice: what a network computes is recorded while it runs (`graph`), and quantized by these steps. Imports
`ptmq.quantization` and what is below.
"""
