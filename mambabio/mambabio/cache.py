"""Where derived files live, and whole files or none: `mambacore.cache`, under its older name."""

from mambacore.cache import (
    atomic_path,
    atomic_write,
    default_cache_dir,
    lock,
    replace_folder,
)

__all__ = ["atomic_path", "atomic_write", "default_cache_dir", "lock", "replace_folder"]
