"""PTMQ and its baselines: post-training multi-bit quantization of vision networks.

`ptmq.saved.load_model` opens a calibrated model; `python -m ptmq --help` is the command line; the workflow in
the Snakefile runs everything.
"""
