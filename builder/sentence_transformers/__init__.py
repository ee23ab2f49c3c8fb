"""Folders of sentence-transformers: embedding models of several modules, and cross-encoders."""
