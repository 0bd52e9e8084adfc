"""Visual cues for a user's own problems: asked of a vision-language model, kept, and written beside them."""
