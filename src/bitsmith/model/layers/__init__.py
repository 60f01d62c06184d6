"""Layers of the module lane: weights packed, activations in float or quantized token by token.

``packed`` holds one weight, ``linear``, ``embedding`` and ``other`` are layers that own such
weights, and ``owners`` says which parameters of which module are weights.
"""
