"""Answers requests with an archived encoder model, with or without TorchServe around it."""
