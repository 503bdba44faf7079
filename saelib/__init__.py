"""The tensor floor: language models, activations, sparse autoencoders, what is measured on them. No SQL, no flows."""
