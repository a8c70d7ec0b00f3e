"""A tiny vision-language model for demos and tests, and the scenes it was trained on."""
