"""Text-to-image transformers of diffusers as backbones of one level: one file for each family."""
