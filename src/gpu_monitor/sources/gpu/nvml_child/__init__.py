"""What runs in the NVML child: everything that calls the driver. `codes` is shared with the supervisor."""
