"""Fused operations for the GPU, in Triton, each beside its plain reference; maps are (N, H, W, C).

The modules of this folder import without Triton; only ``*_triton.py`` need it, and are imported where they run.
"""
