"""PTMQ and its baselines: post-training multi-bit quantization of vision networks.

`python -m ptmq --help` is the command line; the workflow in the Snakefile runs everything.
"""
