"""What users call, tested through its public names on a real runtime.

These tests hold for Ray, too, where they do not say `differs_from_ray`: each was tried there first.
"""
