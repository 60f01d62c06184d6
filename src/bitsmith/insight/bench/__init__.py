"""What is fast on this machine, measured now.

``kernels`` times linear layers of one shape in every recipe, beside float32 and the operators of
others; ``network`` the layers of a model, and the whole; ``bandwidth`` is the limit of both.
"""
