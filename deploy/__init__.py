"""Start, ask and stop a local TorchServe: what ``make serve``, ``predict``, ``stop`` and ``demo`` run."""
