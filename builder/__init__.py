"""Turns a Hugging Face encoder checkpoint into a TorchServe archive: compile, load, pack, trace, prove, archive."""
