"""What the workflow calls: profiles, the stages (calibration, evaluation, mixed precision), the bench, run records.

Imports everything below; nothing but the command line imports it.
"""
