"""What a checkpoint's pictures are worth at every level, measured against photographs.

Bottom to top: `features` and `metrics`, `report`, `runs`; none imports from a higher one.
"""
