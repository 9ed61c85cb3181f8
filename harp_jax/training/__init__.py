"""Adversarial training of one stage: its trainable variables, compiled step and loop over epochs.

Knows no configuration. `config` and the rooms above it may import this one.
"""
