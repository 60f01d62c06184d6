"""Native kernels: the library in ``csrc/``, called through ctypes, and its PyTorch operators.

``library`` finds and loads it, ``form`` says which quantized weights it takes, ``weight`` repacks
them for the machine, and ``operators`` are ``torch.ops.bitsmith.linear`` and ``embedding``.
Nothing is loaded before the first layer runs.
"""
