"""What is fast on this machine: float layers and packed ones, measured now.

``race`` times contestants by turns, ``memory`` says how many copies of a layer lie beyond the
cache, ``stand_in`` packs a layer as a recipe would, without the work of rounding it well, and
``layers`` times the layers of a model with the inputs they really get.
"""
