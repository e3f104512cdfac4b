"""Videos in, batches of tensors out: scan, decode, augment, load.

Nothing is imported here on purpose: the worker processes of `workers.py` import only the decoding
modules, which need NumPy and PyAV but not torch, and so start in a fraction of a second.
"""
