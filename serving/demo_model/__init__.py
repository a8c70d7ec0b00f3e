"""A tiny vision-language model of our own, and the scenes it was trained on."""
