"""Synthetic subjects on the anatomy of the MNI152 template: one concern a module.

``template`` (the maps and their grid) → ``anatomy`` (a subject's tissues, by deforming the template) → ``lesions`` (what
is wrong with them, and what merely looks it) → ``contrast`` (the scan) → ``dataset`` (slices). Everything up to the
slices is 3-D and given in millimetres, so the resolution can be chosen and volumes can be written.
"""
