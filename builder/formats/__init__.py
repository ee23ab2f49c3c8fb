"""The forms in which a model is saved, a module each."""
