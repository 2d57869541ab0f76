"""``python -m gpu_monitor``: the same program as the installed ``gpu_monitor``."""

from gpu_monitor.cli.main import entry

if __name__ == "__main__":
    entry()
