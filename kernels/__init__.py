"""Triton kernels, installed as ``sbrrt_fast.kernels``; nothing in here imports ``sbrrt_fast``."""
