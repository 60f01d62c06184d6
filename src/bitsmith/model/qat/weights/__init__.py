"""Rules by which weights become codes, one a file; each registers when one is first looked up."""

from bitsmith.model.qat.weights.learned_step import LearnedRounding, LearnedStep

__all__ = ["LearnedRounding", "LearnedStep"]
