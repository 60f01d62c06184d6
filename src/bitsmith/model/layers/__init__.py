"""Layers of the module lane: weights packed, activations in float or quantized token by token.

``packed`` holds one weight, ``linear``, ``embedding`` and ``other`` are layers that own such
weights, and ``replace`` says which of them takes the place of a float layer.
"""
