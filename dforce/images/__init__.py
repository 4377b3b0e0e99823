"""Image models: data that packages ship, training, sampling, and what is measured on samples."""
