"""The kinds of terms that a loss is made of, one a file: functions of predictions and targets that give one number an image.

Shapes in this folder: B images, P patch tokens, E dimension of a teacher, C classes; predictions and targets are (B, E) of
cls tokens or (B, P, E) of patches, computed with in float32 whatever they come in, and the result is (B,). Means over a
batch are taken by the caller, so that shares of a batch add up.
"""
