"""Preview: what styles ask about a few rows and what the model replies; nothing is stored."""
