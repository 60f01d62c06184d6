"""Small models by name, and any other model that can be named on a command line."""

from bitsmith.zoo.load import LoadedModel, load_model
from bitsmith.zoo.models import ZooModel, zoo_models
from bitsmith.zoo.weights import load_weights

__all__ = ["LoadedModel", "ZooModel", "load_model", "load_weights", "zoo_models"]
