"""A calibrated model as a file for other runtimes, and what it is worth there: parity, size, speed."""
