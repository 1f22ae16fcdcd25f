"""Methods: what one is and how it is found, the bases they are made of, and PTMQ itself.

Imports `ptmq.training`, `ptmq.reconstruction` and what is below. The baselines stand outside, in `baselines/`.
"""
