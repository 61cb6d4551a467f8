"""neuron-sum: a dialogue-summarization model from data to a SageMaker endpoint on AWS's own chips, by one recipe.

Importing this package imports nothing heavy; every module loads what it needs when it is used.
"""

__version__ = "0.2.0"
