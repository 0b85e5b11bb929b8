"""The checks of the exercises, a module for each prefix: `check("whole.rms_norm", ...)` reads `whole.py`.

A module names its lesson in LESSON, and lists its checks in CHECKS, in the order of the lesson.
"""
