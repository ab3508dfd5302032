"""The executor of TPUs: one kernel a leaf, made by Pallas.

layout   how a TPU keeps a leaf, and the pieces in which the kernel steps it
body     the program of a tile, run for many tiles side by side
call     the kernel
"""
