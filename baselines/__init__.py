"""The models the Latent Thought Model is compared with: one file, one family."""
