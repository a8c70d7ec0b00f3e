"""How the demo model is trained and measured; not installed with the package.

Training needs PyTorch.
"""
