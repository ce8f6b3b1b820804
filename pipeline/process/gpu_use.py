"""How busy a GPU is, where that can be known: torch asks NVIDIA's management library (the extra `gpu`)."""


def gpu_use(device: str | None = None) -> float | None:
    """Fraction of the driver's last sample period (a second or less) in which kernels ran on a CUDA device, by default
    the current one; None without such a device, without the library, or where the driver does not tell (MIG)."""
    import torch

    if not torch.cuda.is_available() or (device is not None and not device.startswith("cuda")):
        return None
    try:
        return torch.cuda.utilization(device) / 100
    except Exception:  # an ornament, and each library has its own errors
        return None
