"""Training with labels: the trainer, augmentation, and networks that keep their BatchNorms while they are trained.

Imports `ptmq.reconstruction` and what is below; the methods that train stand above.
"""
