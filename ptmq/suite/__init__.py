"""What the workflow calls: profiles, the stages (calibration, evaluation, mixed precision), the bench, run records.

Imports everything below but the baselines, which are found by name. Nothing but the command line and the workflow
imports it.
"""
