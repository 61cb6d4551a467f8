"""neuron-sum: take a dialogue-summarization model from data to a SageMaker endpoint on AWS chips with one recipe.

Importing this package imports nothing heavy; each module imports its dependencies when they are used.
"""

__version__ = "0.2.0"
