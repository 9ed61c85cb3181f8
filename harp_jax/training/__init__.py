"""Adversarial training of one stage: what learns, the compiled step, the loop over epochs."""
