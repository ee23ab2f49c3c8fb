"""Measurements of the encoder, of the serving stack and of task accuracy, each against its peers."""
