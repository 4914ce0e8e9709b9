"""The encoder's passes written out: forward, tangent, pull-back and backward without autograd.

``layer`` has the mathematics, ``weights`` the tensors it multiplies with, ``workspace`` the saved
activations, ``encoder`` the passes over all layers.
"""
