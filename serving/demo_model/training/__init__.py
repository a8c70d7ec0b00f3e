"""Training and evaluation of the demo model; not installed with the package.

Training needs PyTorch.
"""
