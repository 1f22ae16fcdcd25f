"""The benchmark of the suite's own speed: networks have random weights and random images.

Times that are compared are taken in turn, so that they share whatever else the machine does: read ratios, not
milliseconds.
"""
