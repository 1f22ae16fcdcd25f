"""Images: digits, CIFAR-10, ImageNet and folders, each with three fixed splits.

Imports `ptmq.models` (how a backbone wants its images) and what is below.
"""
