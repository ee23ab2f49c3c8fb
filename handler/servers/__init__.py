"""Servers around the engine beside TorchServe: a FastAPI application, run by uvicorn or by Ray Serve."""
