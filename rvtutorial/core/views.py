"""Views of images in a run's folder (VRT files), whose images may have been moved since."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

from rvtutorial.core.files import atomic_path

__all__ = ["view_of_image"]


def view_of_image(
    view: Path,  # A file that the run wrote: a view, or anything else
    find: Callable[[str], Path],  # Says where an image is now that was at some place
) -> Path:  # The same; a view names its image where that is now
    """Make a view of an image that was moved name its new place.

    Raises what `find` raises for an image that it does not find.
    """
    if view.suffix.lower() != ".vrt":
        return view
    tree, found = ET.parse(view), {}
    for source in tree.iter("SourceFilename"):
        there = source.text or ""
        if not (view.parent / there).is_file():  # an absolute path stays one
            found[there] = found.get(there) or Path(find(there)).absolute()
            source.text = str(found[there])
            source.set("relativeToVRT", "0")
    if found:
        with atomic_path(view) as partial:
            tree.write(partial)
    return view
