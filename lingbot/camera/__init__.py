"""Cameras: from keys or recorded poses to the rays that condition the transformer.

Everything here works in float32 or float64; bf16 cannot hold pixel coordinates. Poses are
camera-to-world matrices with OpenCV axes: x right, y down, z forward.
"""
