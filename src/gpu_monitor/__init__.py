"""gpu_monitor: the flight recorder and the ledger of a GPU fleet."""

__version__ = "0.1.0"
