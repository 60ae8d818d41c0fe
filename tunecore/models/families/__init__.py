"""The families of transformers' models, one file each."""
