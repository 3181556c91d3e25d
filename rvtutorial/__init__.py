import os

# albumentations asks the package index for a newer version of itself on import
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.1.0"

from rvtutorial import _old_names  # noqa: E402, F401
