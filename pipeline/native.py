"""The compiled module's functions. Each returns whether it did anything: where the module is missing, none does, and
what is left to OpenCV has the same bytes.
"""

try:
    from shardline.pipeline._native import chroma, resize, shrink

    WHY_MISSING = ""
except ImportError as error:  # the text of which would name folders
    WHY_MISSING = "there was no compiler" if isinstance(error, ModuleNotFoundError) else "not for this processor"

    def resize(*_: object) -> bool:
        """Not at all."""
        return False

    chroma = shrink = resize
