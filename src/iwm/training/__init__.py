"""From a loader of crops and a model to a trained run."""
